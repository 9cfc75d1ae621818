"""How groups are laid out for the model: three ways to the same log-probs, of different cost.

- ``shared``  one row per group, [prompt | y1 | … | yK], under a mask of its own. Needs a model that obeys such a mask and
  position ids: no sliding window, no positions of its own making.
- ``split``   each prompt once with its graph, its cache repeated K times, then the responses. Needs the cache, which gradient
  checkpointing switches off.
- ``padded``  one row per response, the prompt in each: what every causal model can do.

Models that get one of the first two wrong do so silently, by nats. So :func:`choose_layout` compares each with the plain
padded path of ``p3o.models.language`` on the actual model, and takes the first that agrees. One ratio never mixes layouts:
they differ in the last bits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from p3o.distributed.sharding import gathers_on
from p3o.errors import P3OError
from p3o.models.language import accepted
from p3o.models.packing import Predictions, Rows, separate_rows, shared_length, shared_rows, split_rows
from p3o.models.selection import LOGITS_BUDGET, Call, Head
from p3o.models.tokens import GroupTokens

LayoutName = Literal["shared", "split", "padded"]


@dataclass(frozen=True)
class Layout(ABC):
    """A way to lay out groups.

    Attributes:
        budget: bytes of logits that may exist at once; more are computed in chunks. None: any number.
        words: what the model reads, for who does not know the names.
    """

    name: ClassVar[LayoutName]
    words: ClassVar[str]
    budget: int | None = LOGITS_BUDGET

    def logprobs(
        self, model: nn.Module, groups: Sequence[GroupTokens], *, temperature: float, time: int, fill: int
    ) -> Float[Tensor, "group response time"]:
        """log π(y_t | x, y_<t) of every response token at the sampling temperature, with its graph; 0 on padding.

        Args:
            model: a causal language model of transformers, adapters included.
            groups: with the same number of responses each.
            temperature: τ.
            time: the last axis of the result, at least the longest response.
            fill: the id that padding holds.
        """
        calls, predictions = self.passes(model, groups, time=time, fill=fill)
        return Head(temperature, self.budget).logprobs(model, calls, predictions)

    def scalars(
        self,
        model: nn.Module,
        read: Callable[[Call], Float[Tensor, " selected"]],
        groups: Sequence[GroupTokens],
        *,
        time: int,
        fill: int,
    ) -> Float[Tensor, "group response time"]:
        """What a scalar head makes of the state in which each response token is chosen, with its graph; 0 on padding.

        Args:
            model: the transformer that the head reads.
            read: runs a pass and gives the head's numbers at its selected positions.
            groups: with the same number of responses each.
            time: the last axis of the result, at least the longest response.
            fill: the id that padding holds.
        """
        calls, predictions = self.passes(model, groups, time=time, fill=fill)
        return predictions.scattered(torch.cat([read(call) for call in calls])[predictions.rows])

    @abstractmethod
    def passes(
        self, model: nn.Module, groups: Sequence[GroupTokens], *, time: int, fill: int
    ) -> tuple[list[Call], Predictions]:
        """The forward passes, not yet run, and what their selected positions predict."""

    @abstractmethod
    def length(self, group: GroupTokens) -> int:
        """Positions that the group takes, padding to other groups not counted: what a budget of tokens is spent on."""


class Shared(Layout):
    """One row per group."""

    name = "shared"
    words = "a prompt and all its responses in one row"

    def passes(
        self, model: nn.Module, groups: Sequence[GroupTokens], *, time: int, fill: int
    ) -> tuple[list[Call], Predictions]:
        """See :class:`Layout`."""
        rows, predictions = shared_rows(groups, time=time, fill=fill)
        there = rows.to(device_of(model))
        return [_call(model, rows, there, attention_mask(model, there.visible))], predictions.to(device_of(model))

    def length(self, group: GroupTokens) -> int:
        """See :class:`Layout`."""
        return shared_length(group)


class Split(Layout):
    """Each prompt once, then the responses on its repeated cache."""

    name = "split"
    words = "each prompt once, then its responses"

    def passes(
        self, model: nn.Module, groups: Sequence[GroupTokens], *, time: int, fill: int
    ) -> tuple[list[Call], Predictions]:
        """See :class:`Layout`.

        Raises:
            P3OError: under gradient checkpointing in training mode, where transformers drops the cache without a word.
        """
        if model.training and checkpoints_activations(model):
            raise P3OError(
                "layout split: gradient checkpointing in training mode disables the cache that this layout needs; "
                "use layout shared or padded, or turn checkpointing off"
            )
        split, device = split_rows(groups, time=time, fill=fill), device_of(model)
        prompts = split.prompts.to(device)
        caches: list[Any] = []

        def prefill() -> Any:
            arguments = accepted(model, {"position_ids": prompts.positions})
            output = model(input_ids=prompts.tokens, attention_mask=prompts.mask.long(), use_cache=True, **arguments)
            caches.append(output.past_key_values)
            return output

        calls = [Call.of(prefill, split.prompts.selected, device)]
        if split.responses is not None:
            responses = split.responses.to(device)
            repeats = len(groups[0].responses)

            def extend() -> Any:
                caches[0].batch_repeat_interleave(repeats)
                mask = torch.cat([prompts.mask.repeat_interleave(repeats, 0), responses.mask], dim=1)
                return model(
                    input_ids=responses.tokens,
                    attention_mask=mask.long(),
                    past_key_values=caches[0],
                    use_cache=True,
                    **accepted(model, {"position_ids": responses.positions}),
                )

            calls.append(Call.of(extend, split.responses.selected, device))
        return calls, split.predictions.to(device)

    def length(self, group: GroupTokens) -> int:
        """See :class:`Layout`."""
        longest = max(len(response) for response in group.responses)
        return len(group.prompt) + len(group.responses) * max(longest - 1, 0)


class Padded(Layout):
    """One row per response."""

    name = "padded"
    words = "each response in a row of its own, behind its prompt"

    def passes(
        self, model: nn.Module, groups: Sequence[GroupTokens], *, time: int, fill: int
    ) -> tuple[list[Call], Predictions]:
        """See :class:`Layout`."""
        rows, predictions = separate_rows(groups, time=time, fill=fill)
        there = rows.to(device_of(model))
        # All ones: padding is on the right, where no token sees it. A mask that hides something costs [row, length, length]
        # numbers in every layer, and on a GPU the kernels of attention that take none.
        return [_call(model, rows, there, torch.ones_like(there.tokens))], predictions.to(device_of(model))

    def length(self, group: GroupTokens) -> int:
        """See :class:`Layout`."""
        longest = max(len(response) for response in group.responses)
        return len(group.responses) * (len(group.prompt) + max(longest - 1, 0))


LAYOUTS: dict[LayoutName, type[Layout]] = {layout.name: layout for layout in (Shared, Split, Padded)}
"""In the order in which they are tried."""


def attention_mask(
    model: nn.Module, visible: Bool[Tensor, "row 1 length length"]
) -> Float[Tensor, "row 1 length length"]:
    """The mask as the model's attention reads one, to be added.

    For sdpa it has the dtype that attention computes in, −∞, and rows whose length in memory is a multiple of 8: then all
    layers keep this one tensor for the backward pass. Of a boolean mask, or of one that a GPU's kernels have to convert or to
    pad, each would keep a copy of its own.
    """
    config: Any = model.config
    dtype = next(model.parameters()).dtype
    hidden = torch.finfo(dtype).min
    if config._attn_implementation == "sdpa":  # noqa: SLF001 transformers has no public name for it
        dtype, hidden = getattr(model, "autocast_dtype", dtype), -torch.inf
    length = visible.shape[-1]
    wide = torch.zeros(*visible.shape[:-1], -(-length // 8) * 8, dtype=dtype, device=visible.device)
    return wide[..., :length].masked_fill_(~visible, hidden)


def checkpoints_activations(model: nn.Module) -> bool:
    """Whether the model forgets its activations and computes them again; older transformers call it by another name."""
    checkpoints = getattr(model, "is_activation_checkpointing", None)
    return bool(getattr(model, "is_gradient_checkpointing", False) if checkpoints is None else checkpoints)


def device_of(model: nn.Module) -> torch.device:
    """Where the model computes: where its weights are, or where shards that rest on the CPU are gathered."""
    weight = next(model.parameters())
    return torch.device("cuda") if gathers_on(weight) == "cuda" else weight.device


def _call(model: nn.Module, rows: Rows, there: Rows, mask: Tensor) -> Call:
    """A forward pass of these rows, which are also ``there`` on the model's device, without a cache."""
    arguments = accepted(model, {"position_ids": there.positions, "use_cache": False})
    device = there.tokens.device
    return Call.of(lambda: model(input_ids=there.tokens, attention_mask=mask, **arguments), rows.selected, device)
