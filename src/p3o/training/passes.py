"""Log-probs and values of groups, in whole groups of like length that fit a budget of tokens, divided among the processes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from p3o.distributed.sharding import settle
from p3o.models.division import Share, share_of
from p3o.models.heads import Critic
from p3o.models.layouts import Layout, device_of
from p3o.models.packing import length_buckets
from p3o.models.tokens import GroupTokens, collate_groups

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
        critic_layout: of the critic's rows; None: padded, through its own forward.
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

    def share(self, groups: Sequence[GroupTokens], *models: nn.Module | None) -> Share:
        """The passes that fall to this process (``share_of``) of these groups, the same on every rank, through these models."""
        return share_of(groups, self.layout.length, self.micro_batches, *models)

    def one(self, model: nn.Module, groups: Sequence[GroupTokens], time: int) -> Float[Tensor, "group response time"]:
        """Token log-probs of all groups in one pass, with their graph."""
        return self.layout.logprobs(model, groups, temperature=self.temperature, time=time, fill=self.fill)

    @torch.no_grad()
    def logprobs(
        self, model: nn.Module, groups: Sequence[GroupTokens], time: int
    ) -> Float[Tensor, "group response time"]:
        """Token log-probs of the groups in their order, pass by pass; each process makes its share and all get the whole.

        What a sharded model has gathered for it is given back: nothing else tells FSDP that no pass follows.
        """
        found = self.share(groups, model).compute(groups, lambda chosen: self.one(model, chosen, time))
        settle(model)
        return found

    def one_of_values(
        self, critic: Critic, groups: Sequence[GroupTokens], time: int
    ) -> Float[Tensor, "group response time"]:
        """The critic's values of all groups in one pass, with their graph."""
        if self.critic_layout is not None:
            return critic.values(self.critic_layout, groups, time=time, fill=self.fill)
        prompts, responses = collate_groups(groups, self.fill, time=time)
        device = device_of(critic)
        values: Tensor = critic(prompts.to(device), responses.to(device))
        return values

    @torch.no_grad()
    def values(self, critic: Critic, groups: Sequence[GroupTokens], time: int) -> Float[Tensor, "group response time"]:
        """The critic's values of the groups in their order, as ``logprobs`` finds those."""
        found = self.share(groups, critic).compute(groups, lambda chosen: self.one_of_values(critic, chosen, time))
        settle(critic)
        return found
