"""What samples of one policy are worth to another: importance weights of whole groups.

A server's kernels differ from the learner's, so the policy μ that it samples from is not quite π_old as the learner computes
it:

    w(y_1 … y_K) = Π_k π_old(y_k|x) / μ(y_k|x)

is the one weight that makes E_μ[w · L] = E_π_old[L] for any loss L of a whole group, pairwise ones included. Its variance
grows with K and length, hence min(w, C); what C cuts off is the bias. Groups beyond a bound are dropped whole, for there the
two disagree about what was sampled.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from p3o.functional.logprobs import sequence_logprobs

_SAFE = 20.0
"""|log w| is clamped here before exp."""


@dataclass(frozen=True)
class Correction:
    """What is done about the mismatch of a group.

    Attributes:
        kind: ``truncate`` weighs it by min(w, limit), ``drop`` keeps it unweighted; both drop it where |log w| is beyond the
            bound. ``none`` only measures.
        limit: C.
        bound: nats.
    """

    kind: Literal["truncate", "drop", "none"]
    limit: float = 2.0
    bound: float = 3.0


@dataclass(frozen=True)
class Mismatch:
    """The mismatch of a batch of groups.

    Attributes:
        weights: of each group; None where groups are not weighed.
        keep: the groups to learn from.
        metrics: numbers for the log.
    """

    weights: Float[Tensor, " group"] | None
    keep: Bool[Tensor, " group"]
    metrics: dict[str, float]


def mismatch(
    learner: Float[Tensor, "group response time"],
    sampler: Float[Tensor, "group response time"],
    mask: Bool[Tensor, "group response time"],
    correction: Correction,
) -> Mismatch:
    """Compare the learner's log-probs of what was sampled with the sampler's own.

    The metrics are over the groups whose differences are finite; ``mismatch_nonfinite`` counts the others, if there are any.
    """
    response = sequence_logprobs(learner, mask) - sequence_logprobs(sampler, mask)
    group = response.sum(-1)
    sound = group.isfinite()
    compared = mask & sound[:, None, None]
    token = torch.where(compared, (learner - sampler).abs(), 0.0)
    # Of a group that cannot be compared nothing is known: where it is not dropped it counts as any other.
    weights = torch.where(sound, group.clamp(-_SAFE, _SAFE).exp(), 1.0)
    everything = torch.ones_like(sound)
    keep = everything if correction.kind == "none" else sound & (group.abs() <= correction.bound)
    truncated = weights > correction.limit
    ratios = torch.where(sound.unsqueeze(-1), response.clamp(-_SAFE, _SAFE).exp(), 0.0)
    metrics = {
        "mismatch_mean": (token.sum() / compared.sum().clamp(min=1)).item(),
        "mismatch_max": token.max().item(),
        "mismatch_ratio": (ratios.sum() / (sound.sum() * response.shape[-1]).clamp(min=1)).item(),
        "mismatch_weight_max": weights.max().item(),
        "mismatch_dropped": int((~keep).sum()),
    }
    if not bool(sound.all()):
        metrics["mismatch_nonfinite"] = int((~sound).sum())
    if correction.kind == "truncate":
        metrics["mismatch_truncated"] = int((truncated & keep).sum())
        return Mismatch(weights.clamp(max=correction.limit), keep, metrics)
    return Mismatch(None, keep, metrics)


def weighed(
    logprobs: Float[Tensor, "group response time"], weights: Float[Tensor, " group"]
) -> Float[Tensor, "group response time"]:
    """The same values, with the gradient of each group multiplied by its weight.

    A group's terms of any loss reach the parameters through its own log-probs (and values) alone, so this multiplies these
    terms by the weight, whatever the algorithm.
    """
    fixed = logprobs.detach()
    return fixed + weights.to(logprobs.dtype)[:, None, None] * (logprobs - fixed)
