"""Simulated people: a labeller who compares by a known reward, and offsets that no comparison can see."""

import hashlib
import math
from collections.abc import Callable, Sequence
from random import Random
from statistics import NormalDist

from p3o.errors import P3OError

RewardFunction = Callable[[Sequence[str], Sequence[str]], list[float]]


class SimulatedLabeller:
    """Labels pairs by the Bradley–Terry model on a gold reward g: p(a ≻ b | x) = σ( scale · (g(a|x) − g(b|x)) ).

    Args:
        gold_reward: the reward that the labeller has in mind, ``(prompts, responses) -> rewards``.
        scale: how decided the labeller is; with 0 every label is a coin flip, with infinity the better answer always wins.
        seed: of the labeller's own generator. Labels depend on the order of the calls, as those of people do.
    """

    def __init__(self, gold_reward: RewardFunction, *, scale: float, seed: int) -> None:
        if not scale >= 0:
            raise P3OError(f"labeller scale: {scale} is negative or not a number; use 0 or more")
        self._gold_reward = gold_reward
        self._scale = scale
        self._rng = Random(f"labeller {seed}")

    def label(self, prompts: Sequence[str], responses_a: Sequence[str], responses_b: Sequence[str]) -> list[bool]:
        """For each prompt, whether response a is preferred to response b."""
        rewards_a = self._gold_reward(prompts, responses_a)
        rewards_b = self._gold_reward(prompts, responses_b)
        return [
            self._rng.random() < _preference_probability(a - b, self._scale)
            for a, b in zip(rewards_a, rewards_b, strict=True)
        ]


def _preference_probability(gap: float, scale: float) -> float:
    if gap == 0.0:
        return 0.5
    return 0.5 * (1.0 + math.tanh(0.5 * scale * gap))


def prompt_offsets(prompts: Sequence[str], *, standard_deviation: float, seed: int) -> list[float]:
    """Reward offsets δ(x) ∼ N(0, sd²), one per prompt, settled by the prompt's text and the seed alone.

    Rounded to multiples of 2⁻¹⁰, so that rewards on the same grid, once shifted, subtract without any rounding error.
    """
    return [round(standard_deviation * _standard_normal(f"{seed}\n{prompt}") * 1024) / 1024 for prompt in prompts]


def _standard_normal(text: str) -> float:
    """The normal quantile of a number in (0, 1) made of the first 52 bits of the text's SHA-256."""
    bits = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 12
    return NormalDist().inv_cdf((bits + 0.5) / 2**52)
