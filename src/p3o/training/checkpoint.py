"""Checkpoints: everything that a stopped training needs to go on as if it had never stopped.

A state is a tree of dicts, lists, plain values and tensors. Tensors go to a safetensors file, the rest to JSON; nothing is
ever pickled. A checkpoint is a folder that appears whole or not at all, with the size and the SHA-256 of every file in it:

    STAGE/
      00000040/            named after the step
        tensors.safetensors
        state.json
        manifest.json      {"state.json": {"bytes": 812, "sha256": "…"}, …}
      00000050/

Of several processes the first writes what all have alike; sharded tensors are written by all (``shard_files.py``). How many
processes go on from a checkpoint is free.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from p3o.distributed.messages import TENSOR, put_back, take_tensors
from p3o.distributed.world import world
from p3o.errors import P3OError
from p3o.files import atomic_directory, open_for_reading, plain_os_errors, remove
from p3o.training.shard_files import SavedShards, as_placed, find_shards, read_into, shard_name, take_shards

State = dict[str, Any]
"""A tree of dicts with text keys, lists, tuples (which come back as lists), tensors, texts, numbers, booleans and None."""

TENSORS, VALUES, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


class DamagedCheckpointError(Exception):
    """A checkpoint that is torn, cut short or changed; the message names the file and what is wrong with it."""


def save_state(folder: Path, state: Mapping[str, Any], files: Mapping[str, Any] | None = None) -> None:
    """Write a state into a folder and see it on the disk before returning.

    Args:
        folder: empty but for ``files``.
        state: without sharded tensors.
        files: fingerprints of what other processes have written there.

    Raises:
        P3OError: if the system refuses.
    """
    tensors: dict[str, Tensor] = {}
    values = take_tensors(state, "", tensors)
    with plain_os_errors(folder, "written"):
        save_file(tensors, folder / TENSORS)
        (folder / VALUES).write_text(json.dumps(values), encoding="utf-8")
        manifest = {**(files or {}), **{name: _fingerprint(folder / name) for name in (TENSORS, VALUES)}}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        for name in (TENSORS, VALUES, MANIFEST):
            _sync(folder / name)


def load_state(folder: Path) -> State:
    """The state that ``save_state`` wrote, checked against its fingerprints; tensors on the CPU, sharded ones not yet read.

    Of several processes each checks some of the files.

    Raises:
        DamagedCheckpointError: if a file is missing, cut short or changed.
        P3OError: if the system refuses to read.
    """
    manifest = _read_json(folder / MANIFEST)
    names = (TENSORS, VALUES, *sorted(set(manifest) - {TENSORS, VALUES}))
    for name in names[world().rank :: world().size]:
        expected = manifest.get(name)
        if not isinstance(expected, dict):
            raise DamagedCheckpointError(f"{folder / MANIFEST}: does not list {name}")
        if not (folder / name).is_file():
            raise DamagedCheckpointError(f"{folder / name}: is missing")
        found = _fingerprint(folder / name)
        if found["bytes"] != expected.get("bytes"):
            raise DamagedCheckpointError(
                f"{folder / name}: has {found['bytes']} bytes instead of {expected.get('bytes')}"
            )
        if found != expected:
            raise DamagedCheckpointError(f"{folder / name}: its content has changed since it was written")
    try:
        tensors = load_file(folder / TENSORS)
    except SafetensorError as error:
        raise DamagedCheckpointError(f"{folder / TENSORS}: {error}") from error

    def find(mark: dict[str, Any]) -> Any:
        return tensors[mark[TENSOR]] if TENSOR in mark else find_shards(mark, folder)

    state = put_back(_read_json(folder / VALUES), find)
    assert isinstance(state, dict)
    return state


class Checkpoints:
    """The checkpoints of one training: the newest ``keep`` of them, each in a folder named after its step.

    Args:
        folder: where they stand; made when the first one is saved.
        keep: how many to keep. Two or more, and a damaged one has an older one to fall back to.
        warn: told about a damaged checkpoint that is passed over.
    """

    def __init__(self, folder: Path, *, keep: int = 2, warn: Callable[[str], None] = lambda _: None) -> None:
        self.folder, self.keep, self.warn = folder, keep, warn

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the state of this step, whole or not at all, then remove what is older than the newest ``keep``.

        All processes call it; what is not sharded is taken from the first.

        Raises:
            P3OError: if the system refuses; earlier checkpoints are then untouched.
        """
        together, shards = world(), dict[str, Tensor]()
        values = take_shards(state, "", shards)
        with ExitStack() as stack:

            def begin() -> str | None:
                target = atomic_directory(self.folder / f"{step:08d}", replace=True)
                return str(stack.enter_context(target)) if together.first else None

            def end() -> None:
                if together.first:
                    save_state(temporary, values, files)
                stack.close()
                if together.first:
                    _sync(self.folder)
                    for old in self.saved()[self.keep :]:
                        shutil.rmtree(old, ignore_errors=True)

            temporary = Path(together.from_first(together.together(begin)))
            files: dict[str, Any] = {}
            if shards:
                for told in together.gather(together.together(lambda: _save_shards(temporary, shards))):
                    files |= told
            together.together(end)

    def latest(self) -> State | None:
        """The newest state that is whole, or None if there is no checkpoint at all.

        Raises:
            P3OError: if there are checkpoints but every one is damaged; starting anew in silence could hide a loss of days.
        """
        damaged = []
        for name in world().from_first([path.name for path in self.saved()]):
            path = self.folder / name
            state, problems = _load_together(path)
            if state is None:
                damaged.append(problems[0])
                continue
            for problem_text in damaged:
                self.warn(f"skipped a damaged checkpoint: {problem_text}; continuing from {path.name.lstrip('0')}")
            return state
        if damaged:
            raise P3OError(
                f"{damaged[0]}; there is no intact checkpoint in {self.folder}; restore one or start again with --overwrite"
            )
        return None

    def saved(self) -> list[Path]:
        """The folders of the checkpoints, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if path.name.isdigit()), reverse=True)

    def remove(self) -> None:
        """Remove all of them: the training is done and its result is saved."""
        world().together(lambda: remove(self.folder) if world().first else None)


def _save_shards(folder: Path, shards: dict[str, Tensor]) -> dict[str, Any]:
    """This process's rows as a file. Returns its fingerprint by its name."""
    if not folder.is_dir():
        raise P3OError(
            f"{folder}: does not exist on process {world().rank}; sharded checkpoints need a folder that all "
            f"hosts share; choose one with --output"
        )
    name = shard_name(world().rank, world().size)
    with plain_os_errors(folder / name, "written"):
        save_file(shards, folder / name)
        _sync(folder / name)
    return {name: _fingerprint(folder / name)}


def _load_together(folder: Path) -> tuple[State | None, list[str]]:
    """The state, or what is wrong with it: whole on all processes, or damaged on all."""

    def attempt() -> tuple[State | None, str | None]:
        try:
            return load_state(folder), None
        except DamagedCheckpointError as problem:
            return None, str(problem)

    state, problem = world().together(attempt)
    problems = [told for told in world().gather(problem) if told is not None]
    return (None if problems else state), problems


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open_for_reading(path) as file:
        while block := file.read(2**22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DamagedCheckpointError(f"{path}: is missing")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path}: is not complete JSON") from error
    if not isinstance(value, dict):
        raise DamagedCheckpointError(f"{path}: is not a JSON object")
    return value


def _sync(path: Path) -> None:
    """See a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def optimiser_state(optimiser: torch.optim.Optimizer) -> State:
    """The optimiser's state with text keys."""
    state = optimiser.state_dict()
    return {
        "state": {str(index): dict(entries) for index, entries in state["state"].items()},
        "param_groups": state["param_groups"],
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, state: State) -> None:
    """Put back what ``optimiser_state`` gave."""
    current = optimiser.state_dict()["param_groups"]
    groups = []
    for now, saved in zip(current, state["param_groups"], strict=True):
        # JSON has no tuples: betas come back as a list.
        groups.append({key: tuple(value) if isinstance(now.get(key), tuple) else value for key, value in saved.items()})
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    entries = {
        int(index): {key: _of_parameter(parameters[int(index)], value) for key, value in saved.items()}
        for index, saved in state["state"].items()
    }
    optimiser.load_state_dict({"state": entries, "param_groups": groups})


def _of_parameter(parameter: Tensor, saved: Any) -> Any:
    """An entry of the optimiser's state: spread over the ranks as its parameter is, if it is a moment of it."""
    if isinstance(saved, SavedShards) or (isinstance(saved, Tensor) and isinstance(parameter, DTensor)):
        return as_placed(parameter, saved) if tuple(saved.shape) == tuple(parameter.shape) else saved
    return saved


def trainable_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name; a frozen base under an adapter is not among them."""
    return {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}


def restore_trainable(module: torch.nn.Module, saved: Mapping[str, Tensor | SavedShards]) -> None:
    """Put back what ``trainable_state`` gave.

    Raises:
        P3OError: if the model has other parameters than the saved one had.
    """
    present = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    different = sorted(set(present) ^ set(saved)) or [
        name for name, parameter in present.items() if parameter.shape != saved[name].shape
    ]
    if different:
        raise P3OError(
            f"the checkpoint belongs to another model: {different[0]} differs; resume with the configuration that wrote it"
        )
    with torch.no_grad():
        for name, parameter in present.items():
            read_into(parameter, saved[name])
