"""Log-probs and values of groups, in whole groups of like length that fit a budget of tokens, divided among the processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from p3o.distributed.sharding import is_sharded
from p3o.distributed.shares import shares
from p3o.distributed.world import world
from p3o.functional.devices import onto
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

    def share(self, groups: Sequence[GroupTokens], *models: nn.Module | None) -> "Share":
        """The passes that fall to this process: whole groups, balanced by tokens.

        Every rank knows all groups, so it also knows how many passes the busiest one makes; where a model is sharded, it makes
        as many (a pass through it is a collective operation), the last of them of no weight.

        Args:
            groups: of the whole batch, the same on every rank.
            models: that the passes go through.
        """
        dealt = [
            [[part[i] for i in batch] for batch in self.micro_batches([groups[i] for i in part])]
            for part in shares(list(map(self.layout.length, groups)), world().size)
        ]
        mine = dealt[world().rank]
        in_step = any(model is not None and is_sharded(model) for model in models)
        return Share(mine, max(map(len, dealt)) - len(mine) if in_step else 0, device_of(next(filter(None, models))))

    def one(self, model: nn.Module, groups: Sequence[GroupTokens], time: int) -> Float[Tensor, "group response time"]:
        """Token log-probs of all groups in one pass, with their graph."""
        return self.layout.logprobs(model, groups, temperature=self.temperature, time=time, fill=self.fill)

    @torch.no_grad()
    def logprobs(
        self, model: nn.Module, groups: Sequence[GroupTokens], time: int
    ) -> Float[Tensor, "group response time"]:
        """Token log-probs of the groups in their order, pass by pass; each process makes its share and all get the whole."""
        return self.share(groups, model).compute(groups, lambda chosen: self.one(model, chosen, time))

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
        """The critic's values of the groups in their order, pass by pass; each process makes its share."""
        return self.share(groups, critic).compute(groups, lambda chosen: self.one_of_values(critic, chosen, time))


@dataclass(frozen=True)
class Share:
    """One process's part of a batch.

    Attributes:
        batches: indices of the groups of each pass.
        idle: further passes that it makes only so that the others need not wait for it.
        device: of the models.
    """

    batches: list[list[int]]
    idle: int
    device: torch.device

    def passes(self, groups: Sequence[GroupTokens]) -> Iterator[tuple[list[int], bool]]:
        """Indices of the groups of each pass, and whether the pass counts. An idle one is of the smallest group."""
        for batch in self.batches:
            yield batch, True
        smallest = min(range(len(groups)), key=lambda i: sum(map(len, groups[i].responses), len(groups[i].prompt)))
        for _ in range(self.idle):
            yield [smallest], False

    def compute(
        self,
        groups: Sequence[GroupTokens],
        one: Callable[[list[GroupTokens]], Float[Tensor, "chosen response time"]],
    ) -> Float[Tensor, "group response time"]:
        """What ``one`` gives for each group, in their order, from all processes."""
        found = [one([groups[i] for i in batch]) for batch, _ in self.passes(groups)]
        own = [part for part, (_, counts) in zip(found, self.passes(groups), strict=True) if counts]
        return self.gathered(own)

    def gathered(self, own: Sequence[Tensor]) -> Tensor:
        """What this process computed, batch by batch, and what the others did: of all groups, in their order."""
        if world().size == 1:
            return in_order(self.batches, own)
        message = {"batches": self.batches, "values": torch.cat(list(own))} if own else None
        found = [told for told in world().gather(message) if told is not None]
        values = [onto(told["values"], self.device) for told in found]
        return in_order([batch for told in found for batch in told["batches"]], values)


def in_order(batches: Sequence[Sequence[int]], parts: Sequence[Tensor]) -> Tensor:
    """What was computed batch by batch, in the order of the groups."""
    order = torch.tensor([i for batch in batches for i in batch]).argsort()
    return torch.cat(list(parts))[onto(order, parts[0].device)]
