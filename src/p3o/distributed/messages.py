"""What processes tell each other, as bytes: a tree of plain values and tensors. Never a pickle, which can run code.

The same form is that of checkpoints: JSON, in which a mark {"\\0tensor": path} stands for each tensor, and the tensors as
safetensors. Keys of the tree that begin with a zero byte get a second one, so that no tree can be taken for a mark.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

TENSOR = "\0tensor"
_LENGTH = 8


@dataclass(frozen=True)
class Mark:
    """Stands in a tree for something that is kept elsewhere; its one key begins with one zero byte."""

    entry: dict[str, Any]


def pack(value: Any) -> bytes:
    """A tree of dicts with text keys, lists, tensors, texts, numbers, booleans and None as bytes.

    Raises:
        TypeError: if there is anything else in it.
    """
    tensors: dict[str, Tensor] = {}
    head = json.dumps(take_tensors(value, "", tensors)).encode()
    return len(head).to_bytes(_LENGTH, "little") + head + save(tensors)


def unpack(message: bytes) -> Any:
    """What ``pack`` was given; tensors on the CPU, tuples as lists."""
    end = _LENGTH + int.from_bytes(message[:_LENGTH], "little")
    tensors = load(message[end:])
    return put_back(json.loads(message[_LENGTH:end]), lambda mark: tensors[mark[TENSOR]])


def take_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The tree as plain JSON, with a mark in the place of every tensor, which goes into ``tensors`` under its path.

    Raises:
        TypeError: if there is anything in it that a tree cannot hold.
    """
    if isinstance(value, Tensor):
        # A view may share its storage with another tensor, which safetensors refuses.
        whole = value.detach().cpu().contiguous()
        tensors[path] = whole.clone() if whole.untyped_storage().nbytes() > whole.nbytes else whole
        return {TENSOR: path}
    if isinstance(value, Mark):
        return value.entry
    if isinstance(value, Mapping):
        return {_escaped(str(key)): take_tensors(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [take_tensors(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a checkpoint or message cannot hold a {type(value).__name__} (at {path})")


def put_back(value: Any, find: Callable[[dict[str, Any]], Any]) -> Any:
    """The tree that ``take_tensors`` was given, with what ``find`` gives for each mark."""
    if isinstance(value, dict):
        if any(key.startswith("\0") and not key.startswith("\0\0") for key in value):
            return find(value)
        return {_plain(key): put_back(item, find) for key, item in value.items()}
    if isinstance(value, list):
        return [put_back(item, find) for item in value]
    return value


def as_tensor(message: bytes) -> Tensor:
    """Bytes as a tensor of their own."""
    return torch.frombuffer(bytearray(message), dtype=torch.uint8)


def _escaped(key: str) -> str:
    return f"\0{key}" if key.startswith("\0") else key


def _plain(key: str) -> str:
    return key[1:] if key.startswith("\0") else key
