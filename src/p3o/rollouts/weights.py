"""The learner's weights as a checkpoint would hold them: named whole tensors, one at a time.

A shard of FSDP2 (DTensor) is gathered when its turn comes, so no rank ever holds more than one whole parameter beside its own
shards; the gather is a collective, which every rank must take part in by iterating. LoRA's update is added to the weight that
it belongs to, on a copy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from p3o.models.adapters import has_adapter, plain_model


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
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def shapes(self) -> list[Shape]:
        """What iterating gives, without gathering anything."""
        return [Shape(name, weight.dtype, tuple(weight.shape)) for name, weight, _ in self._named()]

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight, layer in self._named():
            full = whole(weight)
            if layer is not None:
                # What merging would do, for one matrix: W + the update of each active adapter.
                full = full + sum(whole(layer.get_delta_weight(adapter)) for adapter in layer.active_adapters)
            yield name, full.detach()

    def _named(self) -> Iterator[tuple[str, Tensor, Any]]:
        """Name in a checkpoint, the weight, and the adapted layer that it is the base of."""
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


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or what a shard is a part of."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()
