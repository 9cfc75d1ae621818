"""Replay: the last batches of groups beside the newest, each group with the log-probs of the policy that sampled it.

One step of a loop with replay, as pseudo-code::

    buffer.add(arrived, rows)                                # ages: 0 or, sampled ahead, its lag; earlier batches one more
    experience, rows = buffer.experience(), buffer.rows()
    if algorithm.needs_critic:                               # a stale value estimate would be a stale baseline
        experience = experience.replace(values=critic(rows))
    experience = algorithm.prepare(experience)               # so advantages and returns are recomputed, too
    for chosen in stratified_minibatches(experience.age, minibatches, generator):   # once per epoch
        minibatch = experience.select(chosen)
        ...                                                  # policy log-probs of rows[chosen], loss, update

``age`` counts versions of the policy: how many steps ago the policy that sampled a group was the policy. A group that is
sampled in its step has age 0; one that was sampled ahead, while earlier steps trained, arrives with the number of these steps
(``training/asynchrony.py``); each later step adds one.

How ``age`` and ``kl_stop`` interact. ``kl_stop`` limits how far one step moves the policy: it compares the mean of
½·(log π_θ/π_start)² with its limit *on the youngest groups only*, π_start being the policy at the start of the step (for groups
of age 0 that is π_old). On a replayed group ½·(log π_θ/π_old)² measures how far the policy has come since that group was
sampled, several steps ago; counting it would end every step at once as soon as replay works. For that reason every minibatch
holds the same share of the youngest groups as the whole buffer, as nearly as whole groups allow, and never none while there are
at least as many of them as minibatches. When the stop triggers, the rest of the step's updates is left out, replayed groups
included; the youngest batch stays in the buffer and is used again in the next steps.
"""

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from p3o.types import Experience

Row = TypeVar("Row")


class ReplayBuffer(Generic[Row]):
    """The newest batch and at most ``capacity_batches`` earlier ones; 0 keeps the newest batch alone.

    A row is whatever the loop needs to recompute the policy's log-probs of one group (its tokens, as a rule); the buffer
    only keeps it at the group's side.
    """

    def __init__(self, capacity_batches: int) -> None:
        if capacity_batches < 0:
            raise ValueError(f"capacity_batches must be at least 0, got {capacity_batches}")
        self._batches: deque[tuple[Experience, list[Row]]] = deque(maxlen=capacity_batches + 1)

    def __len__(self) -> int:
        """Number of groups held."""
        return sum(experience.groups for experience, _ in self._batches)

    def add(self, experience: Experience, rows: Sequence[Row]) -> None:
        """Put in the batch of this step, of the age that it has; batches already there age by one and the oldest leaves a full
        buffer.

        The batch should be as it was sampled: what ``Algorithm.prepare`` writes (advantages, returns) and critic values are
        dropped, for they are recomputed at every use.

        Raises:
            ValueError: if there is not one row per group, or the groups' number of responses differs from the buffer's.
        """
        for i, (earlier, earlier_rows) in enumerate(self._batches):
            self._batches[i] = (earlier.replace(age=earlier.age + 1), earlier_rows)
        self.put_back(experience, rows)

    def put_back(self, experience: Experience, rows: Sequence[Row]) -> None:
        """Put in a batch as :meth:`batches` gave it: nothing ages.

        Raises:
            ValueError: as for :meth:`add`.
        """
        if len(rows) != experience.groups:
            raise ValueError(f"{experience.groups} groups need as many rows, got {len(rows)}")
        responses = experience.response_mask.shape[1]
        if self._batches and (held := self._batches[-1][0].response_mask.shape[1]) != responses:
            raise ValueError(f"the buffer holds groups of {held} responses, got groups of {responses}")
        plain = experience.replace(values=None, advantages=None, returns=None, start_logprobs=None)
        self._batches.append((plain, list(rows)))

    def experience(self) -> Experience:
        """All groups held, newest batch first, padded on the right to the longest response.

        Raises:
            ValueError: if the buffer is empty.
        """
        return concatenate([experience for experience, _ in reversed(self._batches)])

    def rows(self) -> list[Row]:
        """The rows of :meth:`experience`, in its order."""
        return [row for _, rows in reversed(self._batches) for row in rows]

    def batches(self) -> list[tuple[Experience, list[Row]]]:
        """The batches held, oldest first: what a checkpoint saves; putting them back in this order restores the buffer."""
        return list(self._batches)


def concatenate(experiences: Sequence[Experience]) -> Experience:
    """One experience of all groups, in order; shorter ``time`` is padded with masked zeros.

    Fields that are None in one of them are None in the result: a batch with scores and one with comparisons only are, together,
    comparisons only. Groups without weights count as 1 beside others that have some.

    Raises:
        ValueError: if there is nothing to concatenate.
    """
    if not experiences:
        raise ValueError("no experience to concatenate: add a batch first")
    time = max(experience.response_mask.shape[-1] for experience in experiences)
    per_token = {
        "response_mask",
        "behaviour_logprobs",
        "reference_logprobs",
        "values",
        "advantages",
        "returns",
        "start_logprobs",
    }

    def joined(name: str) -> Tensor | None:
        parts = [getattr(experience, name) for experience in experiences]
        if name == "weights" and not all(part is None for part in parts):
            ones = [experience.reference_logprobs.new_ones(experience.groups) for experience in experiences]
            parts = [one if part is None else part for part, one in zip(parts, ones, strict=True)]
        if any(part is None for part in parts):
            return None
        if name in per_token:
            parts = [torch.nn.functional.pad(part, (0, time - part.shape[-1])) for part in parts]
        return torch.cat(parts)

    return experiences[0].replace(**{name: joined(name) for name in vars(experiences[0])})


def stratified_minibatches(
    age: Int[Tensor, " group"], minibatches: int, generator: torch.Generator
) -> list[Int[Tensor, " chosen"]]:
    """One epoch: every group once, in ``minibatches`` random parts with equal shares of each age, up to one group.

    Raises:
        ValueError: if there are fewer groups than minibatches.
    """
    groups = age.shape[0]
    if not 1 <= minibatches <= groups:
        raise ValueError(
            f"cannot divide {groups} groups into {minibatches} minibatches; lower minibatches or sample more prompts"
        )
    shuffled = torch.randperm(groups, generator=generator)
    # Sorted by age (stable, so random within an age) and dealt like cards: group n goes to minibatch n mod minibatches.
    by_age = shuffled[torch.sort(age.cpu()[shuffled], stable=True).indices].to(age.device)
    return [by_age[start::minibatches] for start in range(minibatches)]


def fresh_groups(experience: Experience) -> Bool[Tensor, " group"]:
    """Which groups the policy with which the step began has sampled: before the first update its log-probs are π_old's."""
    return experience.age == 0
