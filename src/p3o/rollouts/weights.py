"""The learner's weights as a checkpoint would hold them: named whole tensors, one at a time.

A shard of FSDP2 (DTensor) is gathered when its turn comes, so no rank ever holds more than one whole parameter beside its own
shards; the gather is a collective, which every rank must take part in by iterating. LoRA's update is added to the weight that
it belongs to, on a copy.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from p3o.distributed.sharding import settle, whole
from p3o.distributed.world import world
from p3o.models.adapters import has_adapter, plain_model

Result = TypeVar("Result")


@dataclass(frozen=True)
class Shape:
    """What will come: name, dtype, size of the whole tensor."""

    name: str
    dtype: torch.dtype
    size: tuple[int, ...]


class Weights:
    """The weights of a model, to be iterated any number of times; always in the same order.

    Args:
        model: of transformers, plain or with an adapter of peft on it, whole or sharded by FSDP2.
        dtype: to round to; None leaves the weights as they rest. It is what a server of this dtype would do itself on loading.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        self.model, self.dtype = model, dtype

    def shapes(self) -> list[Shape]:
        """What iterating gives, without gathering anything."""
        return [Shape(name, self.dtype or weight.dtype, tuple(weight.shape)) for name, weight, _ in self._named()]

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight, layer in self._named():
            dtype = self.dtype or weight.dtype
            if layer is None:
                full = whole(weight.to(dtype))  # rounded before it is gathered: fewer bytes
            else:
                # What merging would do, for one matrix: W + the update of each active adapter.
                # Adapters may be of float32 on a base of bfloat16; what is sent has the dtype that was announced.
                full = whole(weight) + sum(whole(layer.get_delta_weight(adapter)) for adapter in layer.active_adapters)
                full = full.to(dtype)
            yield name, full.detach()

    def _named(self) -> Iterator[tuple[str, Tensor, Any]]:
        """Name in a checkpoint, the weight, and the adapted layer that it is the base of."""
        settle(self.model)
        if not has_adapter(self.model):
            for name, weight in self.model.named_parameters():
                yield name, weight, None
            return
        model = plain_model(self.model)
        for name, weight in model.named_parameters():
            path, _, last = name.rpartition(".")
            if path.endswith(".base_layer"):
                layer: Any = model.get_submodule(path.removesuffix(".base_layer"))
                yield f"{path.removesuffix('.base_layer')}.{last}", weight, layer if last == "weight" else None
            elif "lora_" not in name:
                yield name, weight, None


@dataclass(frozen=True)
class HeldWeights:
    """Whole tensors on this process's CPU, which need neither the model any more nor another process."""

    tensors: Mapping[str, Tensor]

    def shapes(self) -> list[Shape]:
        """What iterating gives."""
        return [Shape(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.tensors.items())


def on_the_cpu(tensors: Iterator[tuple[str, Tensor]]) -> HeldWeights:
    """Copies of these."""
    return HeldWeights({name: tensor.to("cpu", copy=True) for name, tensor in tensors})


def for_first(weights: Weights, use: Callable[[Iterator[tuple[str, Tensor]]], Result]) -> Result | None:
    """What ``use`` makes of the whole tensors in the first process, while all gather them; None on the others.

    If it fails half-way, the gathering goes on to its end, and the error is raised on all.
    """
    tensors = iter(weights)

    def gather() -> Result | None:
        try:
            return use(tensors) if world().first else None
        finally:
            deque(tensors, maxlen=0)

    return world().together(gather)
