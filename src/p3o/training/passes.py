"""Log-probs and values of groups, in whole groups of like length that fit a budget of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from p3o.models.heads import Critic
from p3o.models.layouts import Layout
from p3o.models.packing import length_buckets
from p3o.models.tokens import GroupTokens

TOKENS = {"cpu": 2048}
"""Tokens of a pass by type of device, else 16384. More would not keep a CPU busier, only pad more."""


@dataclass(frozen=True)
class Passes:
    """How groups go through a model.

    Attributes:
        layout: of the rows.
        temperature: of all log-probs.
        fill: the id that padding holds.
        tokens: budget of a pass, padding counted; a larger group has a pass of its own.
        groups: the most that go through together; None: any number.
        critic_layout: of the critic's rows; None: as the others.
    """

    layout: Layout
    temperature: float
    fill: int
    tokens: int
    groups: int | None = None
    critic_layout: Layout | None = None

    def micro_batches(self, groups: Sequence[GroupTokens]) -> list[list[int]]:
        """Indices of the groups of each pass, longest groups first."""
        return length_buckets(list(map(self.layout.length, groups)), self.tokens, most=self.groups)

    def one(self, model: nn.Module, groups: Sequence[GroupTokens], time: int) -> Float[Tensor, "group response time"]:
        """Token log-probs of all groups in one pass, with their graph."""
        return self.layout.logprobs(model, groups, temperature=self.temperature, time=time, fill=self.fill)

    @torch.no_grad()
    def logprobs(
        self, model: nn.Module, groups: Sequence[GroupTokens], time: int
    ) -> Float[Tensor, "group response time"]:
        """Token log-probs of the groups in their order, pass by pass."""
        batches = self.micro_batches(groups)
        return in_order(batches, [self.one(model, [groups[i] for i in batch], time) for batch in batches])

    def one_of_values(
        self, critic: Critic, groups: Sequence[GroupTokens], time: int
    ) -> Float[Tensor, "group response time"]:
        """The critic's values of all groups in one pass, with their graph."""
        return critic.values(self.critic_layout or self.layout, groups, time=time, fill=self.fill)

    @torch.no_grad()
    def values(self, critic: Critic, groups: Sequence[GroupTokens], time: int) -> Float[Tensor, "group response time"]:
        """The critic's values of the groups in their order, pass by pass."""
        batches = self.micro_batches(groups)
        return in_order(batches, [self.one_of_values(critic, [groups[i] for i in batch], time) for batch in batches])


def in_order(batches: Sequence[Sequence[int]], parts: Sequence[Tensor]) -> Tensor:
    """What was computed batch by batch, in the order of the groups."""
    order = torch.tensor([i for batch in batches for i in batch]).argsort()
    return torch.cat(list(parts))[order.to(parts[0].device)]
