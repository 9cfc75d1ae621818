"""Who wins on the same prompts, and how sure that is: win rates with intervals, ties counting one half.

``head_to_head`` compares rewards, ``head_to_head_by_prompt`` outcomes of several pairs a prompt, and
``kl_adjusted_win_rates`` rewards of which a nat of KL has been paid for.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
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
        method: "wilson" without ties or where all prompts came out the same, else "bootstrap".
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


def unvaried_interval(mean: float, prompts: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a mean of outcomes in [0, 1] of which every prompt shows the same: a bootstrap would have nothing to draw.

    None of the prompts came out otherwise, so by Wilson's upper limit at most a share q = z²/(n + z²) of all prompts does.
    With those all lost or all won the mean lies between (1 − q)·mean and (1 − q)·mean + q. At a mean of 0 or 1 this is
    Wilson's interval of n prompts.

    Raises:
        ValueError: as ``wilson_interval``.
    """
    _, others = wilson_interval(0, prompts, confidence)
    low = (1 - others) * mean
    return low, min(low + others, 1.0)


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
    binomial and the interval is Wilson's; with ties it is the percentile bootstrap over prompts, and with nothing but ties
    ``unvaried_interval``.

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
    drawn = 0 < ties < n
    if drawn:
        low, high = _bootstrap_interval(wins, ties, losses, confidence, resamples, seed)
    elif ties:
        low, high = unvaried_interval(0.5, n, confidence)
    else:
        low, high = wilson_interval(wins, n, confidence)
    rate = (wins + 0.5 * ties) / n
    return HeadToHead(wins, ties, losses, rate, low, high, confidence, "bootstrap" if drawn else "wilson")


def head_to_head_by_prompt(
    outcomes: ArrayLike,
    prompts: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> HeadToHead:
    """Compare two policies over pairs of which several may share a prompt.

    Pairs of one prompt are not independent, so the bootstrap draws prompts and takes all pairs of each. Where all prompts
    have the same mean outcome it would draw the same again and again, and ``unvaried_interval`` of the prompts takes its
    place. With one pair a prompt this is ``head_to_head``.

    Args:
        outcomes: above 0 where A won, below 0 where B did, 0 for a tie.
        prompts: what tells the prompts apart, one for each outcome.
        confidence: as in ``head_to_head``, like the next two.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: as ``head_to_head``, or if there is not one prompt for each outcome.
    """
    signs = np.sign(np.asarray(outcomes, dtype=np.float64))
    if len(prompts) != signs.size:
        raise ValueError(f"{len(prompts)} prompts for {signs.size} outcomes")
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    whole = head_to_head(signs, np.zeros_like(signs), confidence=confidence, resamples=resamples, seed=seed)
    if len(places) == signs.size:
        return whole
    owner = np.array([places[prompt] for prompt in prompts])
    pairs = np.bincount(owner)
    points = np.bincount(owner, weights=(signs + 1) / 2)
    if np.ptp(points / pairs) == 0:
        low, high = unvaried_interval(whole.win_rate, len(places), confidence)
        return replace(whole, low=low, high=high, method="wilson")
    drawn = np.random.default_rng(seed).multinomial(len(places), np.full(len(places), 1 / len(places)), size=resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile((drawn @ points) / (drawn @ pairs), [tail, 1 - tail])
    return replace(whole, low=float(low), high=float(high), method="bootstrap")


@dataclass(frozen=True)
class KLAdjusted:
    """A against B when a nat of KL costs ``price`` of reward: by (reward − price · KL) of each response."""

    price: float
    result: HeadToHead


def kl_adjusted_win_rates(
    rewards_a: ArrayLike, kl_a: ArrayLike, rewards_b: ArrayLike, kl_b: ArrayLike, prices: ArrayLike
) -> list[KLAdjusted]:
    """The head-to-head of two policies under each price of a nat, prompt by prompt.

    A reward win rate favours whoever moved further from the SFT model; β is the price that training itself paid. The KL of a
    response is its own estimate, which at price 0 plays no part.

    Raises:
        ValueError: as ``head_to_head``.
    """
    left, right = (
        (np.asarray(reward, dtype=np.float64), np.asarray(kl, dtype=np.float64))
        for reward, kl in ((rewards_a, kl_a), (rewards_b, kl_b))
    )
    for reward, kl in (left, right):
        if reward.shape != kl.shape:
            raise ValueError(f"rewards and KLs must be equally long, got shapes {reward.shape} and {kl.shape}")
    return [
        KLAdjusted(float(price), head_to_head(left[0] - price * left[1], right[0] - price * right[1]))
        for price in np.atleast_1d(np.asarray(prices, dtype=np.float64))
    ]


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
