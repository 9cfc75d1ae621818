"""The logits of selected positions only, through the model's own forward.

The rows that reach the head are selected by a hook on the head itself: adapters, sharded weights, a softcap or a scale of the
logits stay what the model makes of them, and models whose forward knows no ``logits_to_keep`` work too. Where even the
selected logits pass a byte budget, the head runs in chunks on captured hidden states; what the model does to logits after
its head is then repeated from its configuration, which ``p3o.models.layouts`` checks at the start.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from p3o.functional.devices import onto
from p3o.functional.logprobs import chunked_logprobs, selected_logprobs
from p3o.models.packing import Predictions

LOGITS_BUDGET = 256 * 2**20
"""Bytes of logits that may exist at once, by default; more are computed in chunks, and again in the backward pass."""


@dataclass(frozen=True)
class Head:
    """How logits become log-probs.

    Attributes:
        temperature: divides the logits.
        budget: bytes of logits that may exist at once; None: any number.
    """

    temperature: float
    budget: int | None = LOGITS_BUDGET

    def logprobs(
        self, model: nn.Module, calls: "list[Call]", predictions: Predictions
    ) -> Float[Tensor, "group response time"]:
        """Log-probs of the predicted tokens, the selected positions of all calls counted through; 0 on padding.

        Args:
            model: a causal language model of transformers.
            calls: its forward passes, in order; each returns its output, for the next may need the cache.
            predictions: which of the selected positions predict what.
        """
        wanted = sum(call.count for call in calls)
        module = output_embeddings(model)
        rows_at_once = None if self.budget is None else self.rows_at_once(module)
        if module is None or rows_at_once is None or wanted <= rows_at_once:
            logits = [selected_logits(model, call) for call in calls]
            joined = full_precision(logits[0] if len(logits) == 1 else torch.cat(logits))
            values = selected_logprobs(joined, predictions.rows, predictions.tokens, temperature=self.temperature)
        else:
            hidden = torch.cat([selected_states(model, call) for call in calls])
            values = chunked_logprobs(
                hidden,
                lambda states: full_precision(head_logits(model, states)),
                predictions.rows if predictions.here is None else predictions.here,
                predictions.tokens,
                temperature=self.temperature,
                rows_at_once=rows_at_once,
            )
        return predictions.scattered(values)

    def rows_at_once(self, module: nn.Module | None) -> int | None:
        """Rows of logits that the budget allows, at least one; None if the width is not known."""
        weight = getattr(module, "weight", None)
        if self.budget is None or weight is None:
            return None
        return max(1, self.budget // (int(weight.shape[0]) * max(int(weight.element_size()), 4)))


@dataclass(frozen=True)
class Call:
    """One forward pass: ``run()`` returns the model's output, of which the positions at ``selected`` are wanted.

    Row and column of each position, and not a mask: how many a mask selects a GPU would have to be asked in every pass.
    """

    run: Callable[[], Any]
    selected: tuple[Int[Tensor, " selected"], Int[Tensor, " selected"]]

    @property
    def count(self) -> int:
        """Number of positions wanted."""
        return self.selected[0].shape[0]

    @classmethod
    def of(cls, run: Callable[[], Any], selected: Bool[Tensor, "row length"], device: torch.device) -> "Call":
        """A pass of which the positions are wanted where this mask on the CPU is True."""
        row, column = selected.nonzero(as_tuple=True)
        return cls(run, (onto(row, device), onto(column, device)))


def selected_logits(model: nn.Module, call: Call) -> Float[Tensor, "selected vocab"]:
    """The logits of the selected positions, row by row in the order of time."""
    module = output_embeddings(model)
    if module is None:
        logits: Tensor = call.run().logits[call.selected]
        return logits
    with _on_input(module, lambda states: states[call.selected]):
        output: Tensor = call.run().logits
    return output


def selected_states(model: nn.Module, call: Call) -> Float[Tensor, "selected hidden"]:
    """What the head would read at the selected positions; the head itself runs on no row at all."""
    module = output_embeddings(model)
    assert module is not None
    captured: list[Tensor] = []

    def capture(states: Tensor) -> Tensor:
        captured.append(states[call.selected])
        return captured[0][:0]

    with _on_input(module, capture):
        call.run()
    return captured[0]


def head_logits(model: nn.Module, states: Float[Tensor, "row hidden"]) -> Float[Tensor, "row vocab"]:
    """Head, then the scale and the softcap that the configuration names (Cohere, Granite, Gemma)."""
    module = output_embeddings(model)
    assert module is not None
    # A model that computes in another dtype than its weights' does so in its forward, which this is outside of.
    dtype: torch.dtype | None = getattr(model, "autocast_dtype", None)
    with torch.autocast(states.device.type, dtype=dtype, enabled=dtype is not None):
        logits: Tensor = module(states)
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = getattr(config, "logit_scale", None)
    if isinstance(scale, float | int):
        logits = logits * scale
    divisor = getattr(config, "logits_scaling", None)
    if isinstance(divisor, float | int):
        logits = logits / divisor
    softcap = getattr(config, "final_logit_softcapping", None)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return logits


def output_embeddings(model: nn.Module) -> nn.Module | None:
    """The head, through a data-parallel wrapper or an adapter; None if the model names none."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    get: Callable[[], nn.Module | None] | None = getattr(model, "get_output_embeddings", None)
    return None if get is None else get()


def full_precision(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """In float32 at least: a softmax over the vocabulary in half precision loses what ratios are made of."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


@contextmanager
def _on_input(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within, ``module`` reads the changed first argument."""
    handle = module.register_forward_pre_hook(lambda _module, arguments: (change(arguments[0]), *arguments[1:]))
    try:
        yield
    finally:
        handle.remove()
