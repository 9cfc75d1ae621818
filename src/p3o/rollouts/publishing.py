"""The learner's weights to the servers: broadcast, by files, or the adapter alone.

A push is all or nothing for each server by itself: the servers that failed are named with their reason, and have no work
until a later push to them succeeds. While weights change a server is paused with ``mode=wait``: what it works on is finished
with the old weights, and nothing begins before the new ones are whole.
"""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from p3o.errors import P3OError
from p3o.files import make_folder
from p3o.models.adapters import has_adapter
from p3o.rollouts.http import ServerError
from p3o.rollouts.links import Link
from p3o.rollouts.server import VLLMServer
from p3o.rollouts.weights import Weights

SHARD = 4 << 30
"""Bytes of a file of weights."""


@runtime_checkable
class Publisher(Protocol):
    """One way to give weights to servers."""

    def push(self, servers: Sequence[VLLMServer], model: nn.Module, version: str) -> dict[str, str]:
        """Give them the model's weights under the name of ``version``. Returns why it failed, by address of the server."""

    def version(self, server: VLLMServer, expected: str) -> str:
        """Of the weights that the server has.

        Raises:
            ServerError: if it cannot be asked.
        """

    def model(self, served: str, version: str) -> str:
        """The model to name in a request: ``served`` is the server's own."""

    def forget(self, server: VLLMServer) -> None:
        """It is lost: whatever connects us is worth nothing now."""

    def close(self) -> None:
        """Give back connections and files."""


def each(
    servers: Sequence[VLLMServer], action: Callable[[VLLMServer], Any], failed: dict[str, str]
) -> list[VLLMServer]:
    """Do something with all servers at once; those that it failed with go to ``failed``, the others are returned."""
    if not servers:
        return []
    with ThreadPoolExecutor(len(servers)) as executor:
        futures = [executor.submit(action, server) for server in servers]
    for server, future in zip(servers, futures, strict=True):
        error = future.exception()
        if isinstance(error, (ServerError, RuntimeError)):
            failed[server.url] = str(error)
        elif error is not None:
            raise error
    return [server for server in servers if server.url not in failed]


def _pause(server: VLLMServer) -> None:
    server.post("/pause", mode="wait")


def _resume(server: VLLMServer) -> None:
    server.post("/reset_prefix_cache")
    server.post("/resume")


class Broadcast:
    """Tensor by tensor over a link to each server; every parameter is gathered once for all of them.

    Args:
        connect: opens a link to a server.
    """

    def __init__(self, connect: Callable[[VLLMServer], Link]) -> None:
        self.connect = connect
        self.links: dict[str, Link] = {}

    def push(self, servers: Sequence[VLLMServer], model: nn.Module, version: str) -> dict[str, str]:
        """As ``Publisher.push``."""
        weights, failed = Weights(model), dict[str, str]()
        left = each(servers, self._prepare, failed)
        shapes = weights.shapes()
        announcement = {
            "names": [shape.name for shape in shapes],
            "dtype_names": [str(shape.dtype).removeprefix("torch.") for shape in shapes],
            "shapes": [list(shape.size) for shape in shapes],
        }
        with ThreadPoolExecutor(max(len(left), 1)) as executor:
            received = {
                server.url: executor.submit(server.post, "/update_weights", {"update_info": announcement})
                for server in left
            }
            # Every rank of a sharded learner must take part in the gathers, so they go on even if no server is left.
            for name, tensor in weights:
                for server in left:
                    if server.url not in failed:
                        self._send(server, received[server.url], name, tensor, failed)
        left = each([server for server in left if server.url not in failed], lambda s: received[s.url].result(), failed)
        left = each(left, lambda s: s.post("/finish_weight_update", {"weight_version": version}), failed)
        each(left, _resume, failed)
        for url in failed:
            self._cut(url)
        return failed

    def _prepare(self, server: VLLMServer) -> None:
        _pause(server)
        if server.url not in self.links:
            self.links[server.url] = self.connect(server)
        server.post("/start_weight_update")

    def _send(
        self, server: VLLMServer, received: "Future[Any]", name: str, tensor: Tensor, failed: dict[str, str]
    ) -> None:
        if received.done() and (error := received.exception()) is not None:
            failed[server.url] = str(error)  # it will not listen any more
            return
        try:
            self.links[server.url].send(tensor)
        except RuntimeError as error:
            failed[server.url] = f"{name}: {error}"
            self._cut(server.url)

    def version(self, server: VLLMServer, expected: str) -> str:  # noqa: ARG002 - as Publisher
        """As the server says."""
        return server.weight_version()

    def model(self, served: str, version: str) -> str:  # noqa: ARG002 - as Publisher
        """The server's own model."""
        return served

    def forget(self, server: VLLMServer) -> None:
        """Close the link; a new one is opened with the next push."""
        self._cut(server.url)

    def _cut(self, url: str) -> None:
        link = self.links.pop(url, None)
        if link is not None:
            link.close()

    def close(self) -> None:
        """Close all links."""
        for url in list(self.links):
            self._cut(url)


class Disk:
    """By safetensors in a folder that the servers see under the same path.

    Args:
        folder: made if needed. Holds the newest version alone of what is written here; what else is in it stays.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: Path | None = None
        self.plain: set[str] = set()
        """Servers without our extension of the workers, which only those on a CPU need."""

    def push(self, servers: Sequence[VLLMServer], model: nn.Module, version: str) -> dict[str, str]:
        """As ``Publisher.push``."""
        path = self.folder.absolute() / version
        _write(Weights(model), path)
        failed: dict[str, str] = {}
        each(servers, lambda server: self._load(server, path, version), failed)
        if self.written not in (None, path):
            shutil.rmtree(self.written, ignore_errors=True)
        self.written = path
        return failed

    def _load(self, server: VLLMServer, path: Path, version: str) -> None:
        _pause(server)
        server.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(path)}})
        self._repack(server)
        server.post("/update_weight_version", {"new_version": version})
        _resume(server)

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
        """Remove the weights: the servers have read them."""
        if self.written is not None:
            shutil.rmtree(self.written, ignore_errors=True)
            self.written = None


class Adapter:
    """The LoRA adapter alone, as a folder that the servers see under the same path; its name is the version.

    Args:
        folder: made if needed. Holds the newest version alone of what is written here; what else is in it stays.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: Path | None = None

    def push(self, servers: Sequence[VLLMServer], model: nn.Module, version: str) -> dict[str, str]:
        """As ``Publisher.push``.

        Raises:
            P3OError: if the policy has no adapter.
        """
        if not has_adapter(model):
            raise P3OError(
                "rl.rollout.weights: lora sends the adapter alone; add a section lora, or use gloo, nccl or disk"
            )
        path = self.folder.absolute() / version
        make_folder(path)
        saved: Any = model
        saved.save_pretrained(path, save_embedding_layers=False)
        failed: dict[str, str] = {}
        each(servers, lambda server: self._load(server, path, version), failed)
        if self.written not in (None, path):
            shutil.rmtree(self.written, ignore_errors=True)
        self.written = path
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
        """Remove the adapter: the servers have read it."""
        if self.written is not None:
            shutil.rmtree(self.written, ignore_errors=True)
            self.written = None


def _write(weights: Weights, path: Path) -> None:
    """Files of at most ``SHARD`` bytes, as soon as each is full: no more is held than one of them."""
    from safetensors.torch import save_file

    make_folder(path)
    part: dict[str, Tensor] = {}
    size = files = 0
    for name, tensor in weights:
        if part and size + tensor.nbytes > SHARD:
            save_file(part, path / f"model-{files:05d}.safetensors")
            part, size, files = {}, 0, files + 1
        part[name] = tensor.cpu().contiguous()
        size += tensor.nbytes
    save_file(part, path / f"model-{files:05d}.safetensors")
