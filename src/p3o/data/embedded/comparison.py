"""Comparisons of the embedded task without any reward in sight: what a labeller with the gold reward in mind would say."""

import math
from collections.abc import Sequence

from p3o.data.embedded.gold import gold_reward

SCALE = 2.0
"""Gold reward to log-odds, as of the demo's simulated labeller."""


def gold_preference(prompts: Sequence[str], responses_a: Sequence[str], responses_b: Sequence[str]) -> list[float]:
    """2 p(a ≻ b) − 1 = tanh( scale · (g(a) − g(b)) / 2 ) of the Bradley–Terry labeller, in [−1, 1]."""
    gold_a, gold_b = gold_reward(prompts, responses_a), gold_reward(prompts, responses_b)
    return [math.tanh(0.5 * SCALE * (a - b)) for a, b in zip(gold_a, gold_b, strict=True)]
