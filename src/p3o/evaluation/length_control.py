"""Win rates that length cannot buy.

Judges like longer answers. With y the outcome of a pair (1 won, ½ tied, 0 lost) and d the length of A minus that of B,

    P(A wins | d) = σ( α + φ · tanh(d / s) ),     s the standard deviation of d,

is fitted by logistic regression, and σ(α) is the win rate at equal length. The form of the length term is that of AlpacaEval 2
(Dubois et al., arXiv:2404.04475). We depart from it in two ways: there is no difficulty of its own for every instruction, which
takes many models to estimate, and a weak ridge keeps the fit finite where one side wins everything.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from p3o.evaluation.winrate import HeadToHead, head_to_head_by_prompt, unvaried_interval

Array = Float[np.ndarray, "..."]

RIDGE = 0.01
"""Weight of ½(α² + φ²) against the log-likelihood of all pairs; at 100 pairs it moves a rate of 60 % by about .01 %."""

_PORTION = 100
"""Resamples that are fitted together."""


@dataclass(frozen=True)
class LengthControlled:
    """The win rate at equal length.

    Attributes:
        win_rate: σ(α).
        low, high: percentile bootstrap over prompts, both coefficients fitted anew in each resample; where the bootstrap has
            nothing to draw (all outcomes are equal, or there is one prompt), at least ``unvaried_interval`` of the prompts.
        length_effect: φ, in log-odds; positive if longer answers win.
        raw: the win rate as it is.
    """

    win_rate: float
    low: float
    high: float
    length_effect: float
    raw: float


@dataclass(frozen=True)
class LengthBin:
    """The pairs with ``low`` ≤ length of A − length of B ≤ ``high``, and who won them."""

    low: float
    high: float
    result: HeadToHead


def length_controlled_win_rate(
    outcomes: ArrayLike,
    length_difference: ArrayLike,
    *,
    prompts: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    ridge: float = RIDGE,
) -> LengthControlled:
    """Fit the model above. Where all differences are equal, length explains nothing and the intercept is all.

    Args:
        outcomes: above 0 where A won, below 0 where B did, 0 for a tie.
        length_difference: of A minus B, in any unit of length.
        prompts: what tells the prompts apart, one for each outcome; a resample draws prompts and takes all pairs of each.
            None: every pair has a prompt of its own.
        confidence: of the interval.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        ridge: see ``RIDGE``; with 0 the fit is plain maximum likelihood, which may not exist.

    Raises:
        ValueError: unequal or zero lengths, or values that are not finite.
    """
    y, d = _checked(outcomes, length_difference)
    owner, groups = _owners(prompts, y.size)
    scale = float(d.std())
    x = np.tanh(d / scale) if scale > 0 else np.zeros_like(d)
    alpha, phi = _fit(x, y, np.ones((1, y.size)), ridge)[0]
    random = np.random.default_rng(seed)
    chances = np.full(groups, 1 / groups)
    drawn = []
    for start in range(0, resamples, _PORTION):
        times = random.multinomial(groups, chances, size=min(_PORTION, resamples - start))
        drawn.append(_fit(x, y, times[:, owner].astype(np.float64), ridge))
    tail = (1 - confidence) / 2
    low, high = map(float, _sigmoid(np.quantile(np.concatenate(drawn)[:, 0], [tail, 1 - tail])))
    rate = float(_sigmoid(np.array([alpha]))[0])
    if groups == 1 or np.ptp(y) == 0:
        least, most = unvaried_interval(rate, groups, confidence)
        low, high = min(low, least), max(high, most)
    return LengthControlled(rate, low, high, float(phi), float(y.mean()))


def win_rate_by_length(
    outcomes: ArrayLike, length_difference: ArrayLike, *, prompts: Sequence[Hashable] | None = None, bins: int = 4
) -> list[LengthBin]:
    """The win rate in bins of the length difference that hold about equally many pairs; equal differences share a bin.

    Args:
        outcomes: as in ``length_controlled_win_rate``, like the next two.
        length_difference: of A minus B.
        prompts: what tells the prompts apart.
        bins: at most so many.

    Raises:
        ValueError: as ``length_controlled_win_rate``.
    """
    y, d = _checked(outcomes, length_difference)
    owner, _ = _owners(prompts, y.size)
    edges = np.unique(np.quantile(d, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, d, side="left")
    found: list[LengthBin] = []
    for index in np.unique(place):
        inside = place == index
        result = head_to_head_by_prompt(y[inside] - 0.5, owner[inside].tolist())
        found.append(LengthBin(float(d[inside].min()), float(d[inside].max()), result))
    return found


def lengths(texts: Sequence[str]) -> list[int]:
    """Lengths in words, for texts whose tokens nobody has counted."""
    return [len(text.split()) for text in texts]


def _checked(outcomes: ArrayLike, length_difference: ArrayLike) -> tuple[Array, Array]:
    """Outcomes as 1, ½, 0 and differences, in float64."""
    signs, d = np.asarray(outcomes, dtype=np.float64), np.asarray(length_difference, dtype=np.float64)
    if signs.ndim != 1 or signs.shape != d.shape or signs.size == 0:
        raise ValueError(f"outcomes and lengths must be two equally long lists, got shapes {signs.shape} and {d.shape}")
    if not (np.isfinite(signs).all() and np.isfinite(d).all()):
        raise ValueError("outcomes and lengths must be finite")
    return (np.sign(signs) + 1) / 2, d


def _owners(prompts: Sequence[Hashable] | None, pairs: int) -> tuple[Int[np.ndarray, " pair"], int]:
    """The number of each pair's prompt, and how many prompts there are."""
    if prompts is None:
        return np.arange(pairs), pairs
    if len(prompts) != pairs:
        raise ValueError(f"{len(prompts)} prompts for {pairs} outcomes")
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    return np.array([places[prompt] for prompt in prompts]), len(places)


def _fit(
    x: Array, y: Array, weights: Float[np.ndarray, "resample pair"], ridge: float
) -> Float[np.ndarray, "resample 2"]:
    """Newton's method for (α, φ) in each resample; the problem is strictly concave."""
    beta = np.zeros((len(weights), 2))
    for _ in range(100):
        p = _sigmoid(beta[:, :1] + beta[:, 1:] * x)
        residual, curvature = weights * (y - p), weights * p * (1 - p)
        gradient = np.stack([residual.sum(-1), residual @ x], -1) - ridge * beta
        # The smallest constant keeps the system solvable where all x are 0 and there is no ridge.
        h00, h01, h11 = curvature.sum(-1) + ridge, curvature @ x, curvature @ (x * x) + ridge + 1e-12
        determinant = h00 * h11 - h01 * h01
        step = (
            np.stack([h11 * gradient[:, 0] - h01 * gradient[:, 1], h00 * gradient[:, 1] - h01 * gradient[:, 0]], -1)
            / determinant[:, None]
        )
        # Far from the optimum a full step may overshoot; two log-odds are enough for a turn.
        step *= np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(-1, keepdims=True), 1e-300))
        beta += step
        if np.abs(step).max() < 1e-10:
            break
    return beta


def _sigmoid(x: Array) -> Array:
    value: Array = 0.5 * (1 + np.tanh(0.5 * x))
    return value
