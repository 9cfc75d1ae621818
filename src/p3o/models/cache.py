"""The key–value cache of generation: each prompt prefilled once, room for K responses set aside, finished rows moved out.

A cache that grows by concatenation copies itself at every token. Here the layers that hold plain keys and values write
into memory that was allocated once; layers of another kind (sliding windows, linear attention, …) stay as transformers made
them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from p3o.functional.devices import onto
from p3o.models.language import accepted
from p3o.models.packing import length_buckets
from p3o.models.tokens import PromptBatch

PREFILL_TOKENS = {"cpu": 1024}
"""Positions of one prefill pass, by type of device, else 16384: prompts of like length share a pass, so that little of it is
padding; a CPU gains nothing from larger ones."""


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer in buffers [row, head, capacity, width] of this dtype, of which views are handed out."""

    def __init__(self, like: DynamicLayer, dtype: torch.dtype, *, rows: int, length: int, capacity: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = dtype, like.device, True
        # Zeros, not memory as it comes: columns left of a short prompt are masked, but 0 · NaN would still be NaN.
        self.key_buffer, self.value_buffer = (
            states.new_zeros(rows, states.shape[1], capacity, states.shape[3], dtype=dtype)
            for states in (like.keys, like.values)
        )
        self.view(rows, length)

    def view(self, rows: int, length: int) -> None:
        """Hand out the first rows and columns from now on."""
        self.keys, self.values = self.key_buffer[:rows, :, :length], self.value_buffer[:rows, :, :length]

    def put(self, rows: Int[Tensor, " row"], keys: Tensor, values: Tensor) -> None:
        """The prompts of these rows, ending where the view ends."""
        end = self.keys.shape[-2]
        start = end - keys.shape[-2]
        self.key_buffer[rows, :, start:end] = keys.to(self.dtype)
        self.value_buffer[rows, :, start:end] = values.to(self.dtype)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new states behind the old ones."""
        rows, length = self.keys.shape[0], self.keys.shape[-2]
        self.view(rows, length + key_states.shape[-2])
        self.keys[:, :, length:] = key_states
        self.values[:, :, length:] = value_states
        return self.keys, self.values

    def move(self, sources: Int[Tensor, " moved"], places: Int[Tensor, " moved"], rows: int) -> None:
        """Copy some rows over others, then go on with the first ``rows``: what leaves is overwritten, the rest stays put."""
        length = self.keys.shape[-2]
        self.keys[places] = self.keys[sources]
        self.values[places] = self.values[sources]
        self.view(rows, length)


class PromptCache:
    """The cache of K rows per prompt after the prefill, and the logits of their first tokens.

    Attributes:
        cache: transformers' cache object, to be handed to the model.
        logits: of the first token of every row.
    """

    def __init__(self, model: nn.Module, prompts: PromptBatch, *, responses: int, room: int) -> None:
        """Prefill every prompt once.

        Args:
            model: a causal language model of transformers.
            prompts: left-padded.
            responses: K, rows per prompt.
            room: tokens that will be written behind each prompt.
        """
        groups, width = prompts.tokens.shape
        buckets = [torch.arange(groups)]
        if plain_layers(DynamicCache(config=model.config)):
            budget = PREFILL_TOKENS.get(prompts.tokens.device.type, 16384)
            buckets = [torch.tensor(bucket) for bucket in length_buckets(prompts.mask.sum(-1).tolist(), budget)]
        first = _prefill(model, prompts, buckets[0])
        self.cache: Any = first.past_key_values
        self.preallocated = plain_layers(self.cache)
        if not self.preallocated:
            if len(buckets) > 1:  # the configuration promised plain layers
                first = _prefill(model, prompts, torch.arange(groups))
                self.cache = first.past_key_values
            self.cache.batch_repeat_interleave(responses)
            self.logits = first.logits[:, -1].repeat_interleave(responses, 0)
            return
        rows = groups * responses
        # Under autocast rotated keys come in float32 and a cache of transformers follows them, but attention reads all of it in
        # the half precision, anew at every token: kept in that, nothing changes but the memory and the time.
        half: torch.dtype | None = getattr(model, "autocast_dtype", None)
        layers = [
            PreallocatedLayer(layer, half or layer.dtype, rows=rows, length=width, capacity=width + room)
            for layer in self.cache.layers
        ]
        self.logits = first.logits.new_empty(rows, first.logits.shape[-1])
        self._take(layers, first, buckets[0], responses)
        for bucket in buckets[1:]:
            self._take(layers, _prefill(model, prompts, bucket), bucket, responses)
        self.cache.layers = layers

    def _take(self, layers: Sequence[PreallocatedLayer], output: Any, bucket: Tensor, responses: int) -> None:
        """Copy what the prefill of these prompts gave to their K rows each."""
        for response in range(responses):
            rows = onto(bucket * responses + response, output.logits.device)
            self.logits[rows] = output.logits[:, -1]
            for layer, prefilled in zip(layers, output.past_key_values.layers, strict=True):
                layer.put(rows, prefilled.keys, prefilled.values)

    def keep(self, going: Bool[Tensor, " row"]) -> Int[Tensor, " kept"]:
        """Drop the rows that are not going on. Returns the old numbers of the rows kept, in their new order.

        The last rows move into the gaps: as many rows are copied as leave, not as many as stay.
        """
        count = int(going.sum())
        order = torch.arange(count, device=going.device)
        gaps = (~going[:count]).nonzero().squeeze(-1)
        movers = going[count:].nonzero().squeeze(-1) + count
        order[gaps] = movers
        if self.preallocated:
            for layer in self.cache.layers:
                layer.move(movers, gaps, count)
        else:
            self.cache.batch_select_indices(order)
        return order


def plain_layers(cache: Any) -> bool:
    """Whether all layers of a cache of transformers hold nothing but the keys and values of every token."""
    layers = getattr(cache, "layers", [])
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _prefill(model: nn.Module, prompts: PromptBatch, chosen: Int[Tensor, " chosen"]) -> Any:
    """The output of the model on these prompts, without the columns that are padding in all of them."""
    tokens, mask = prompts.tokens[chosen], prompts.mask[chosen]
    width = int(mask.sum(-1).max())
    tokens, mask = tokens[:, tokens.shape[1] - width :], mask[:, mask.shape[1] - width :]
    arguments = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0), "logits_to_keep": 1}
    return model(input_ids=tokens, attention_mask=mask.long(), use_cache=True, **accepted(model, arguments))
