"""Sharded tensors on the disk: each process writes its rows into a safetensors file of its own, and any number of processes
reads them again.

    00000040/
      tensors.safetensors state.json manifest.json        what is the same on every rank
      shard-00000-of-00002.safetensors                     rows of every sharded tensor, under its path in the state
      shard-00001-of-00002.safetensors

In state.json a sharded tensor is {"\\0sharded": path, "shape": […], "files": 2}: file k of n holds the k-th of n chunks of
⌈rows/n⌉ rows along the first axis. A process reads the slices that overlap its own rows, and no more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from p3o.distributed.messages import Mark
from p3o.distributed.sharding import rows_here
from p3o.distributed.world import world

SHARDED = "\0sharded"


def shard_name(rank: int, size: int) -> str:
    """Of the file that a rank writes."""
    return f"shard-{rank:05d}-of-{size:05d}.safetensors"


@dataclass(frozen=True)
class SavedShards:
    """A tensor in the files of several ranks, not yet read.

    Attributes:
        folder: of the checkpoint.
        name: of the tensor in each file.
        shape: of the whole.
        files: how many.
    """

    folder: Path
    name: str
    shape: tuple[int, ...]
    files: int

    def rows(self, start: int, stop: int) -> Tensor:
        """These rows along the first axis."""
        chunk = -(-self.shape[0] // self.files)
        pieces = []
        for k in range(self.files):
            first = min(k * chunk, self.shape[0])
            low, high = max(start, first), min(stop, first + chunk)
            # The first file is opened in any case: it knows the dtype of no rows at all.
            if low < high or (k == 0 and start >= stop):
                with safe_open(self.folder / shard_name(k, self.files), framework="pt") as file:
                    low, high = (low, high) if low < high else (first, first)
                    pieces.append(file.get_slice(self.name)[low - first : high - first])
        return torch.cat(pieces)

    def whole(self) -> Tensor:
        """All rows."""
        return self.rows(0, self.shape[0])


def take_shards(value: Any, path: str, shards: dict[str, Tensor]) -> Any:
    """The tree with a mark in the place of every sharded tensor, whose rows of this rank go into ``shards``."""
    if isinstance(value, DTensor):
        local = value.to_local().detach().cpu().contiguous()
        # A shard is a view into what all shards of its block share.
        shards[path] = local.clone() if local.untyped_storage().nbytes() > local.nbytes else local
        return Mark({SHARDED: path, "shape": list(value.shape), "files": world().size})
    if isinstance(value, Mapping):
        return {str(key): take_shards(item, f"{path}/{key}", shards) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [take_shards(item, f"{path}/{index}", shards) for index, item in enumerate(value)]
    return value


def find_shards(mark: Mapping[str, Any], folder: Path) -> SavedShards:
    """What a mark stands for."""
    return SavedShards(folder, mark[SHARDED], tuple(mark["shape"]), mark["files"])


def read_into(target: Tensor, saved: Tensor | SavedShards) -> None:
    """Fill a tensor, whole or sharded, from what was saved, whole or sharded."""
    if not isinstance(target, DTensor):
        target.copy_(saved.whole() if isinstance(saved, SavedShards) else saved)
        return
    start, stop = rows_here(target)
    rows = saved.rows(start, stop) if isinstance(saved, SavedShards) else saved[start:stop]
    target.to_local().copy_(rows)


def as_placed(target: Tensor, saved: Tensor | SavedShards) -> Tensor:
    """What was saved for this parameter (a moment of its gradient), placed as the parameter is."""
    placed = torch.zeros_like(target, dtype=saved.dtype if isinstance(saved, Tensor) else None)
    read_into(placed, saved)
    return placed
