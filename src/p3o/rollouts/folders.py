"""The learner's weights to servers by a folder that both see: all of them as safetensors, or the LoRA adapter alone."""

import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p3o.distributed.sharding import is_sharded, settle, whole_tensors
from p3o.distributed.world import world
from p3o.errors import P3OError
from p3o.files import make_folder, plain_os_errors
from p3o.models.adapters import has_adapter
from p3o.rollouts.http import ServerError
from p3o.rollouts.publishing import Push, each, pause, resume
from p3o.rollouts.server import VLLMServer
from p3o.rollouts.weights import Weights, for_first

SHARD = 4 << 30
"""Bytes of a file of weights."""


class Folders:
    """The folders of versions: made for each, removed when a later one has been pushed; what else is in there stays.

    Args:
        place: made if needed.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.made: list[Path] = []

    def path(self, version: str) -> Path:
        """Where this version goes."""
        return self.place.absolute() / version

    def make(self, path: Path) -> None:
        """Make it."""
        make_folder(path)
        self.made.append(path)

    def pushed(self, path: Path) -> None:
        """This one has been pushed, so those before it are not needed any more."""
        self._remove(self.made[: self.made.index(path)])

    def clear(self) -> None:
        """Remove all of them: the servers have read what is in them."""
        self._remove(self.made)

    def _remove(self, paths: Sequence[Path]) -> None:
        for path in list(paths):
            shutil.rmtree(path, ignore_errors=True)
            self.made.remove(path)


class Disk:
    """By safetensors in a folder that the servers see under the same path. A sharded model is written as it is gathered, so no
    process holds more than one file of it.

    Args:
        place: made if needed.
        dtype: of what is written; None: as the weights rest.
    """

    def __init__(self, place: Path, dtype: torch.dtype | None = None) -> None:
        self.folders, self.dtype = Folders(place), dtype
        self.plain: set[str] = set()
        """Servers without our extension of the workers, which only those on a CPU need."""

    def take(self, model: nn.Module, version: str) -> Push:
        """As ``Publisher.take``."""
        path, weights = self.folders.path(version), Weights(model, self.dtype)
        if not is_sharded(model):
            return partial(self._push, path, weights, version)
        for_first(weights, lambda tensors: self._write(path, tensors))
        return partial(self._push, path, None, version)

    def _push(self, path: Path, weights: Weights | None, version: str, servers: Sequence[VLLMServer]) -> dict[str, str]:
        if weights is not None and path not in self.folders.made:
            self._write(path, weights)
        failed: dict[str, str] = {}
        each(servers, lambda server: self._load(server, path, version), failed)
        self.folders.pushed(path)
        return failed

    def _write(self, path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self.folders.make(path)
        write(tensors, path)

    def _load(self, server: VLLMServer, path: Path, version: str) -> None:
        pause(server)
        server.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(path)}})
        self._repack(server)
        server.post("/update_weight_version", {"new_version": version})
        resume(server)

    def _repack(self, server: VLLMServer) -> None:
        """See ``p3o.rollouts.worker``. Where a server cannot do it and should, the check of log-probs will tell."""
        if server.url in self.plain:
            return
        try:
            server.post("/collective_rpc", {"method": "p3o_repack"})
        except ServerError as error:
            if error.kind != "broken":
                raise
            self.plain.add(server.url)

    def version(self, server: VLLMServer, expected: str) -> str:  # noqa: ARG002 - as Publisher
        """As the server says."""
        return server.weight_version()

    def model(self, served: str, version: str) -> str:  # noqa: ARG002 - as Publisher
        """The server's own model."""
        return served

    def forget(self, server: VLLMServer) -> None:
        """It may be started again with other settings."""
        self.plain.discard(server.url)

    def close(self) -> None:
        """Remove the weights."""
        self.folders.clear()


class Adapter:
    """The LoRA adapter alone, as a folder that the servers see under the same path; its name is the version.

    Args:
        place: made if needed.
    """

    def __init__(self, place: Path) -> None:
        self.folders = Folders(place)

    def take(self, model: nn.Module, version: str) -> Push:
        """As ``Publisher.take``.

        Raises:
            P3OError: also if the policy has no adapter.
        """
        if not has_adapter(model):
            raise P3OError(
                "rl.rollout.weights: lora sends only the adapter; add a section lora, or use gloo, nccl or disk"
            )
        gathered: dict[str, Any] = {}
        if is_sharded(model):
            settle(model)
            trained = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
            gathered = {"state_dict": whole_tensors(trained)}

        path = self.folders.path(version)

        def save() -> None:
            self.folders.make(path)
            saved: Any = model
            with plain_os_errors(path, "written"):
                saved.save_pretrained(path, save_embedding_layers=False, **gathered)

        world().together(lambda: save() if world().first else None)
        return partial(self._push, path, version)

    def _push(self, path: Path, version: str, servers: Sequence[VLLMServer]) -> dict[str, str]:
        failed: dict[str, str] = {}
        each(servers, lambda server: self._load(server, path, version), failed)
        self.folders.pushed(path)
        return failed

    def _load(self, server: VLLMServer, path: Path, version: str) -> None:
        names = server.models()
        if version not in names:
            server.post("/v1/load_lora_adapter", {"lora_name": version, "lora_path": str(path)})
        family = version.rpartition("-")[0] + "-"
        for old in names[1:]:
            if old.startswith(family) and old != version:
                server.post("/v1/unload_lora_adapter", {"lora_name": old})

    def version(self, server: VLLMServer, expected: str) -> str:
        """The expected one if the server knows it, else the last of its models."""
        names = server.models()
        return expected if expected in names else names[-1]

    def model(self, served: str, version: str) -> str:  # noqa: ARG002 - as Publisher
        """The adapter."""
        return version

    def forget(self, server: VLLMServer) -> None:
        """Nothing connects us."""

    def close(self) -> None:
        """Remove the adapters."""
        self.folders.clear()


def write(weights: Iterable[tuple[str, Tensor]], path: Path) -> None:
    """Files of at most ``SHARD`` bytes, as soon as each is full: no more is held than one of them."""
    from safetensors.torch import save_file

    part: dict[str, Tensor] = {}
    size = files = 0
    with plain_os_errors(path, "written"):
        for name, tensor in weights:
            if part and size + tensor.nbytes > SHARD:
                save_file(part, path / f"model-{files:05d}.safetensors")
                part, size, files = {}, 0, files + 1
            part[name] = tensor.cpu().contiguous()
            size += tensor.nbytes
        save_file(part, path / f"model-{files:05d}.safetensors")
