"""Which groups a process takes through models that several processes have together: dealt by tokens, in step where sharded."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from p3o.distributed.sharding import is_sharded
from p3o.distributed.shares import shares
from p3o.distributed.world import world
from p3o.functional.devices import onto
from p3o.models.layouts import device_of
from p3o.models.tokens import GroupTokens


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
        self, groups: Sequence[GroupTokens], one: Callable[[list[GroupTokens]], Float[Tensor, "chosen response any"]]
    ) -> Float[Tensor, "group response any"]:
        """What ``one`` gives for each group, in their order, from all processes."""
        found = [one([groups[i] for i in batch]) for batch, _ in self.passes(groups)]
        own = [part for part, (_, counts) in zip(found, self.passes(groups), strict=True) if counts]
        return self.gathered(own)

    def gathered(self, own: Sequence[Tensor]) -> Tensor:
        """What this process computed, batch by batch, and what the others did: of all groups, in their order."""
        if world().size == 1:
            return _in_order(self.batches, own)
        message = {"batches": self.batches, "values": torch.cat(list(own))} if own else None
        found = [told for told in world().gather(message) if told is not None]
        values = [onto(told["values"], self.device) for told in found]
        return _in_order([batch for told in found for batch in told["batches"]], values)


def share_of(
    groups: Sequence[GroupTokens],
    length: Callable[[GroupTokens], int],
    cut: Callable[[Sequence[GroupTokens]], list[list[int]]],
    *models: nn.Module | None,
) -> Share:
    """The passes that fall to this process: whole groups, balanced by tokens.

    Every rank knows all groups, so it also knows how many passes the busiest one makes; where a model is sharded, it makes as
    many (a pass through it is a collective operation), the last of them of no weight.

    Args:
        groups: of the whole batch, the same on every rank.
        length: tokens of a group.
        cut: some groups into passes, each a list of their indices.
        models: that the passes go through.
    """
    dealt = [
        [[part[i] for i in batch] for batch in cut([groups[i] for i in part])]
        for part in shares(list(map(length, groups)), world().size)
    ]
    mine = dealt[world().rank]
    in_step = any(model is not None and is_sharded(model) for model in models)
    return Share(mine, max(map(len, dealt)) - len(mine) if in_step else 0, device_of(next(filter(None, models))))


def _in_order(batches: Sequence[Sequence[int]], parts: Sequence[Tensor]) -> Tensor:
    """What was computed batch by batch, in the order of the groups."""
    order = torch.tensor([i for batch in batches for i in batch]).argsort()
    return torch.cat(list(parts))[onto(order, parts[0].device)]
