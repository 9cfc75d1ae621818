"""The KL–reward frontier: what reward a method buys for how far it moves from the SFT model.

A policy is a point (KL(policy ‖ SFT) in nats per response, mean reward). Two summaries of the points of one method:

- ``fit_frontier``: reward − reward_at_sft ≈ a·√KL + b·KL. On enumerable problems the exact optimum is of this form to
  R² ≥ .9997. It summarises; it does not extrapolate.
- ``concave_hull``: the best reward within a KL budget. Choosing between two policies by a coin, once per response, gives
  at least every point on the line between them, because KL is convex, so the hull is reachable and not a smoothing.

Both start at the SFT point: the points of the smallest KL, their rewards averaged (every run of a comparison evaluates the
SFT model once more at its step 0).
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

Points = Float[np.ndarray, " point"]


@dataclass(frozen=True)
class FrontierFit:
    """reward(KL) = reward_at_sft + a·√KL + b·KL.

    Attributes:
        a: reward per √nat, the gain of the first steps.
        b: reward per nat; negative where the method pays for going further.
        r_squared: 1 − Σ residual² / Σ (reward − mean reward)², over the points of the fit; can be negative, since the
            curve is held at the SFT point; NaN where all rewards are equal.
        reward_at_sft: the intercept, given and not fitted.
    """

    a: float
    b: float
    r_squared: float
    reward_at_sft: float

    def predict(self, kl: ArrayLike) -> Points:
        """The curve at these KLs, in nats per response."""
        kl = np.asarray(kl, dtype=np.float64)
        curve: Points = self.reward_at_sft + self.a * np.sqrt(kl) + self.b * kl
        return curve


def fit_frontier(kl: ArrayLike, reward: ArrayLike, *, reward_at_sft: float | None = None) -> FrontierFit:
    """Least squares of reward − reward_at_sft on √KL and KL, without a free intercept.

    The intercept is known: at KL = 0 the policy *is* the SFT model. So it is taken as ``reward_at_sft`` where that was
    measured, and otherwise as the SFT point of the data; it is never a third parameter, which noise near KL = 0 would bend.

    Args:
        kl: KL(policy ‖ SFT) of each point, nats per response. Estimates slightly below 0 count as 0.
        reward: mean reward of each point.
        reward_at_sft: mean reward of the SFT model.

    Raises:
        ValueError: unequal lengths, values that are not finite, or fewer than two different KLs above 0.
    """
    kl, reward = _points(kl, reward)
    if reward_at_sft is None:
        reward_at_sft = float(reward[kl == kl.min()].mean())
    if np.unique(kl[kl > 0]).size < 2:
        raise ValueError("a frontier fit needs points at two different KLs above 0")
    design = np.stack([np.sqrt(kl), kl], axis=-1)
    coefficients, *_ = np.linalg.lstsq(design, reward - reward_at_sft, rcond=None)
    residual = reward - reward_at_sft - design @ coefficients
    unexplained, total = float(residual @ residual), float(((reward - reward.mean()) ** 2).sum())
    r_squared = 1.0 - unexplained / total if total > 0 else math.nan
    return FrontierFit(float(coefficients[0]), float(coefficients[1]), r_squared, reward_at_sft)


def concave_hull(kl: ArrayLike, reward: ArrayLike) -> tuple[Points, Points]:
    """Vertices of the upper concave hull, from the SFT point to the highest reward; both coordinates increase.

    It ends at the highest reward: a larger KL budget may be left unspent. Being a maximum over noisy points it is
    slightly optimistic, the more so the more points there are: compare methods at equal numbers of points.

    Raises:
        ValueError: unequal lengths, no points, or values that are not finite.
    """
    kl, reward = _points(kl, reward)
    hull = [(float(kl.min()), float(reward[kl == kl.min()].mean()))]
    for x, y in sorted(zip(kl.tolist(), reward.tolist(), strict=True)):
        if x == hull[0][0]:
            continue
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (x1 - x0) * (y - y0) < (y1 - y0) * (x - x0):
                break  # the last vertex lies above the line from the one before it to this point
            hull.pop()
        hull.append((x, y))
    vertices = np.asarray(hull)[: int(np.argmax(np.asarray(hull)[:, 1])) + 1]
    return vertices[:, 0], vertices[:, 1]


def reward_at_kl(kl: ArrayLike, reward: ArrayLike, at: ArrayLike) -> Points:
    """The best reward within each KL budget of ``at``: interpolation on the concave hull of the points.

    Beyond the hull's end the reward stays what it was there; below the smallest KL of the points it is NaN.

    Raises:
        ValueError: as ``concave_hull``.
    """
    hull_kl, hull_reward = concave_hull(kl, reward)
    best: Points = np.interp(np.asarray(at, dtype=np.float64), hull_kl, hull_reward, left=np.nan)
    return best


def _points(kl: ArrayLike, reward: ArrayLike) -> tuple[Points, Points]:
    """The checked coordinates in float64, KL not below 0."""
    kl, reward = np.asarray(kl, dtype=np.float64), np.asarray(reward, dtype=np.float64)
    if kl.ndim != 1 or kl.shape != reward.shape or kl.size == 0:
        raise ValueError(f"kl and reward must be two equally long lists, got shapes {kl.shape} and {reward.shape}")
    if not (np.isfinite(kl).all() and np.isfinite(reward).all()):
        raise ValueError("kl and reward must be finite")
    return np.maximum(kl, 0.0), reward
