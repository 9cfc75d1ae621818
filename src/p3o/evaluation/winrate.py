"""Who wins on the same prompts, and how sure that is: win rates with intervals, ties counting one half."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri


@dataclass(frozen=True)
class HeadToHead:
    """A against B over the same prompts.

    Attributes:
        wins, ties, losses: prompts on which A's reward is higher, equal, lower.
        win_rate: (wins + ½ ties) / prompts.
        low, high: limits of the confidence interval of ``win_rate``.
        confidence: of the interval, .95 by default.
        method: "wilson" without ties, "bootstrap" with them.
    """

    wins: int
    ties: int
    losses: int
    win_rate: float
    low: float
    high: float
    confidence: float
    method: Literal["wilson", "bootstrap"]


def wilson_interval(wins: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927, without continuity correction).

    With p = wins/n and z the normal quantile of (1 + confidence)/2:
    ( p + z²/2n ± z √( p(1−p)/n + z²/4n² ) ) / (1 + z²/n).

    Raises:
        ValueError: unless 0 ≤ wins ≤ n, n ≥ 1 and 0 < confidence < 1.
    """
    if n < 1 or not 0 <= wins <= n:
        raise ValueError(f"need 0 <= wins <= n and n >= 1, got wins={wins}, n={n}")
    z = _normal_quantile(confidence)
    p = wins / n
    centre = p + z * z / (2 * n)
    half_width = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The limits at 0 and n wins are exactly 0 and 1; rounding would leave 1e-17 outside.
    low = 0.0 if wins == 0 else (centre - half_width) / scale
    high = 1.0 if wins == n else (centre + half_width) / scale
    return low, high


def head_to_head(
    rewards_a: ArrayLike,
    rewards_b: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> HeadToHead:
    """Compare two policies prompt by prompt; the two lists are rewards on the same prompts in the same order.

    Only the order within a prompt counts, so per-prompt offsets of the reward do not. Without ties the wins are
    binomial and the interval is Wilson's; with ties it is the percentile bootstrap over prompts. If every prompt is a
    tie the bootstrap interval is the point ½: the data hold no comparison at all.

    Args:
        confidence: of the interval.
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        ValueError: unequal or zero lengths, or a reward that is NaN.
    """
    a, b = np.asarray(rewards_a, dtype=np.float64), np.asarray(rewards_b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(f"rewards must be two equally long lists, got shapes {a.shape} and {b.shape}")
    if np.isnan(a).any() or np.isnan(b).any():
        raise ValueError("a reward is NaN")
    wins, losses = int((a > b).sum()), int((a < b).sum())
    n = a.size
    ties = n - wins - losses
    if ties:
        low, high = _bootstrap_interval(wins, ties, losses, confidence, resamples, seed)
    else:
        low, high = wilson_interval(wins, n, confidence)
    return HeadToHead(
        wins, ties, losses, (wins + 0.5 * ties) / n, low, high, confidence, "bootstrap" if ties else "wilson"
    )


def _bootstrap_interval(
    wins: int, ties: int, losses: int, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of the win rate. Resampling n prompts is drawing their three counts from a multinomial."""
    tail = (1 - _checked_confidence(confidence)) / 2
    counts = np.array([wins, ties, losses])
    n = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    rates = (drawn[:, 0] + 0.5 * drawn[:, 1]) / n
    low, high = np.quantile(rates, [tail, 1 - tail])
    return float(low), float(high)


def _normal_quantile(confidence: float) -> float:
    return float(ndtri((1 + _checked_confidence(confidence)) / 2))


def _checked_confidence(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return confidence
