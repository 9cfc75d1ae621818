"""Several rewards as one: a weighted sum, with each part's mean kept for the log."""

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
            raise P3OError("reward: a weighted sum needs at least one reward with a weight other than 0")
        self.parts = dict(parts)
        self._sums = dict.fromkeys(self.parts, 0.0)
        self._scored = 0

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
            self._sums[name] += sum(rewards)
            totals = [total + part.weight * reward for total, reward in zip(totals, rewards, strict=True)]
        self._scored += len(responses)
        return totals

    def take_means(self) -> dict[str, float]:
        """The mean of each part, before its weight, over all responses since the last time this was asked; {} if
        none. Of several processes, all of them ask."""
        scored, *totals = world().totals(self._scored, *self._sums.values())
        if not scored:
            return {}
        means = {f"reward_{name}": total / scored for name, total in zip(self._sums, totals, strict=True)}
        self._sums, self._scored = dict.fromkeys(self.parts, 0.0), 0
        return means
