"""Several rewards as one: a weighted sum, with each part's mean kept for the log."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from p3o.distributed.world import world
from p3o.errors import P3OError
from p3o.feedback.functions import RewardFunction


@dataclass(frozen=True)
class WeightedReward:
    """One part of a sum. A negative weight makes it a cost."""

    reward: RewardFunction
    weight: int | float = 1.0


class CombinedReward:
    """The reward function Σ weight · reward, in float64.

    Rewards come in units of their own (a reward model's log-odds, a count of words): the weights bring them to one scale, and
    nothing is normalised here, because what to divide by would change from batch to batch.

    Raises:
        P3OError: if there is no part, or every weight is 0.
    """

    def __init__(self, parts: Mapping[str, WeightedReward]) -> None:
        if not any(part.weight for part in parts.values()):
            raise P3OError("reward: a weighted sum needs at least one reward with a non-zero weight")
        self.parts = dict(parts)
        self._sums = dict.fromkeys(self.parts, 0.0)
        self._scored = dict.fromkeys(self.parts, 0)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """One reward per response.

        Raises:
            P3OError: if a part returns another number of rewards than there are responses.
        """
        totals = [0.0] * len(responses)
        for name, part in self.parts.items():
            rewards = [float(reward) for reward in part.reward(prompts, responses)]
            if len(rewards) != len(responses):
                raise P3OError(f"reward {name!r}: {len(rewards)} rewards for {len(responses)} responses")
            had = [reward for reward in rewards if math.isfinite(reward)]
            self._sums[name] += sum(had)
            self._scored[name] += len(had)
            totals = [total + part.weight * reward for total, reward in zip(totals, rewards, strict=True)]
        return totals

    def take_means(self) -> dict[str, float]:
        """The mean of each part, before its weight, over all responses since the last time this was asked for which it was
        had and finite; {} if none. Of several processes, all of them ask."""
        names = list(self.parts)
        told = world().totals(*(self._sums[name] for name in names), *(self._scored[name] for name in names))
        totals, scored = told[: len(names)], told[len(names) :]
        means = {f"reward_{name}": total / of for name, total, of in zip(names, totals, scored, strict=True) if of}
        self._sums, self._scored = dict.fromkeys(self.parts, 0.0), dict.fromkeys(self.parts, 0)
        return means
