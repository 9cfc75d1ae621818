"""What processes tell each other, as bytes: a tree of plain values and tensors. Never a pickle, which can run code."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

TENSOR = "\0tensor"
"""Marks, in the JSON, where a tensor stands: a name that no key of a tree can have."""

_LENGTH = 8


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
    return put_tensors(json.loads(message[_LENGTH:end]), load(message[end:]))


def take_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The value with a mark in the place of every tensor, which goes into ``tensors`` under its path.

    Raises:
        TypeError: if there is anything in it that a tree cannot hold.
    """
    if isinstance(value, Tensor):
        # A view may share its storage with another tensor, which safetensors refuses.
        whole = value.detach().cpu().contiguous()
        tensors[path] = whole.clone() if whole.untyped_storage().nbytes() > whole.nbytes else whole
        return {TENSOR: path}
    if isinstance(value, Mapping):
        return {str(key): take_tensors(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [take_tensors(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a checkpoint or message cannot hold a {type(value).__name__} (at {path})")


def put_tensors(value: Any, tensors: Mapping[str, Any]) -> Any:
    """The tree that ``take_tensors`` was given, with what stands in ``tensors`` for each mark."""
    if isinstance(value, dict):
        if TENSOR in value:
            return tensors[value[TENSOR]]
        return {key: put_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [put_tensors(item, tensors) for item in value]
    return value


def as_tensor(message: bytes) -> Tensor:
    """Bytes as a tensor of their own."""
    return torch.frombuffer(bytearray(message), dtype=torch.uint8)
