"""P3O: Pairwise Proximal Policy Optimization (Wu et al., arXiv:2310.00212, Section 4).

Notation, for one prompt x with responses y_1 … y_K sampled independently from π_old:

    ρ_i = π_θ(y_i|x) / π_old(y_i|x)          importance ratio of the whole response
    R_i = r(y_i|x) − β log( π_old(y_i|x) / π_ref(y_i|x) )
    sg(·) stops the gradient

Only the differences R_i − R_j enter, so a shift of the reward on a prompt changes nothing: the functions take
``reward_gaps`` and could not see an absolute reward if they wanted to.

Departures from the paper:

- K > 2 responses (its future work): the mean of the pair objective over all K(K−1)/2 pairs; K = 2 is the paper's.
- Log-ratios are clamped to ±20 before exp, and the clamps are counted.
- V1's partner weight ρ_j is not clipped, as in the paper; its maximum is logged because it has no bound.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from p3o.algorithms.base import (
    AlgorithmConfig,
    clamped_log_ratio,
    mean_over_pairs,
    penalised_gaps,
    ratio_metrics,
)
from p3o.functional.logprobs import sequence_logprobs
from p3o.types import Experience, LossOutput


def pairwise_policy_gradient_loss(
    policy_logprobs: Float[Tensor, "group response"],
    behaviour_logprobs: Float[Tensor, "group response"],
    reference_logprobs: Float[Tensor, "group response"],
    reward_gaps: Float[Tensor, "group response response"],
    *,
    beta: float,
) -> LossOutput:
    """PPG with importance sampling: minimise − ½ · sg( (R_1 − R_2) ρ_1 ρ_2 ) · log( π_θ(y_1|x) / π_θ(y_2|x) ).

    arXiv:2310.00212, Theorem 1. Its expected gradient is that of E[R], whichever π_old sampled the pair; on-policy and with
    K = 2 it is the leave-one-out (RLOO) gradient. Log-probs are sums over the response.

    Args:
        policy_logprobs: log π_θ(y_i|x), with its graph.
        behaviour_logprobs: log π_old(y_i|x).
        reference_logprobs: log π_ref(y_i|x).
        reward_gaps: r(y_i) − r(y_j) at [g, i, j].
        beta: weight of the KL penalty.

    Raises:
        ValueError: if the groups have fewer than two responses.
    """
    log_ratio, clamped = clamped_log_ratio(policy_logprobs, behaviour_logprobs)
    gaps = penalised_gaps(reward_gaps, (behaviour_logprobs - reference_logprobs).detach(), beta)
    ratio = log_ratio.detach().exp()
    weight = gaps * ratio.unsqueeze(-1) * ratio.unsqueeze(-2)
    pair_log_ratio = policy_logprobs.unsqueeze(-1) - policy_logprobs.unsqueeze(-2)
    return LossOutput(loss=-mean_over_pairs(0.5 * weight * pair_log_ratio), metrics=ratio_metrics(log_ratio, clamped))


def p3o_separate_clip_loss(
    policy_logprobs: Float[Tensor, "group response"],
    behaviour_logprobs: Float[Tensor, "group response"],
    reference_logprobs: Float[Tensor, "group response"],
    reward_gaps: Float[Tensor, "group response response"],
    *,
    epsilon: float,
    beta: float,
) -> LossOutput:
    """arXiv:2310.00212, Section 4.2, P3O-V1: each response clipped by itself.

        w_ij = sg( (R_i − R_j) ρ_j )
        maximise ½ Σ_{(i,j) ∈ {(1,2),(2,1)}} min( w_ij ρ_i , w_ij clip(ρ_i, 1−ε, 1+ε) )

    Arguments and errors as in :func:`pairwise_policy_gradient_loss`; ``epsilon`` is the clip range of a response's ratio.
    """
    log_ratio, clamped = clamped_log_ratio(policy_logprobs, behaviour_logprobs)
    gaps = penalised_gaps(reward_gaps, (behaviour_logprobs - reference_logprobs).detach(), beta)
    ratio = log_ratio.exp()
    weight = gaps * ratio.detach().unsqueeze(-2)
    unclipped = weight * ratio.unsqueeze(-1)
    clipped = weight * ratio.clamp(1.0 - epsilon, 1.0 + epsilon).unsqueeze(-1)
    ordered = 0.5 * torch.minimum(unclipped, clipped)
    # A pair counts once with both of its orders, (i, j) and (j, i).
    loss = -mean_over_pairs(ordered + ordered.transpose(-2, -1))
    cut = (clipped < unclipped).detach().to(ratio.dtype)
    return LossOutput(
        loss=loss,
        metrics=ratio_metrics(log_ratio, clamped)
        | {
            "clip_fraction": mean_over_pairs(0.5 * (cut + cut.transpose(-2, -1))),
            "partner_weight_max": ratio.detach().max(),
        },
    )


def p3o_joint_clip_loss(
    policy_logprobs: Float[Tensor, "group response"],
    behaviour_logprobs: Float[Tensor, "group response"],
    reference_logprobs: Float[Tensor, "group response"],
    reward_gaps: Float[Tensor, "group response response"],
    *,
    epsilon: float,
    beta: float,
) -> LossOutput:
    """arXiv:2310.00212, Section 4.2, P3O-V2: the pair clipped together.

        ℓ = log( ρ_1 / ρ_2 ),   w = sg( (R_1 − R_2) ρ_1 ρ_2 )
        maximise ½ min( w ℓ , w clip(ℓ, −ε, +ε) )

    Arguments and errors as in :func:`pairwise_policy_gradient_loss`; ``epsilon`` is the clip range of ℓ.
    """
    log_ratio, clamped = clamped_log_ratio(policy_logprobs, behaviour_logprobs)
    gaps = penalised_gaps(reward_gaps, (behaviour_logprobs - reference_logprobs).detach(), beta)
    ratio = log_ratio.detach().exp()
    weight = gaps * ratio.unsqueeze(-1) * ratio.unsqueeze(-2)
    pair_log_ratio = log_ratio.unsqueeze(-1) - log_ratio.unsqueeze(-2)
    unclipped = weight * pair_log_ratio
    clipped = weight * pair_log_ratio.clamp(-epsilon, epsilon)
    loss = -mean_over_pairs(0.5 * torch.minimum(unclipped, clipped))
    cut = (clipped < unclipped).detach().to(ratio.dtype)
    return LossOutput(
        loss=loss,
        metrics=ratio_metrics(log_ratio, clamped) | {"clip_fraction": mean_over_pairs(cut)},
    )


class PPGConfig(AlgorithmConfig):
    """Settings of PPG: β alone."""


class P3OConfig(AlgorithmConfig):
    """Settings of P3O."""

    epsilon: float = Field(0.2, gt=0, description="Clip range: of ρ (V1) or of log ρ_1/ρ_2 (V2).")


PAIR_LOSSES: dict[str, Callable[..., LossOutput]] = {
    "none": pairwise_policy_gradient_loss,
    "separate": p3o_separate_clip_loss,
    "joint": p3o_joint_clip_loss,
}


class P3O:
    """P3O-V1 (``clip="separate"``), P3O-V2 (``clip="joint"``) or, unclipped, PPG (``clip="none"``) on whole groups."""

    needs_critic: ClassVar[bool] = False
    accepts_comparisons: ClassVar[bool] = True
    averages_over: ClassVar[Literal["groups", "tokens"]] = "groups"
    prepares_from_logprobs: ClassVar[bool] = False

    def __init__(self, config: PPGConfig | P3OConfig, clip: Literal["none", "separate", "joint"]) -> None:
        self.config = config
        self._loss = PAIR_LOSSES[clip]

    def prepare(self, experience: Experience) -> Experience:
        """Nothing to prepare: the gaps are all that P3O needs."""
        return experience

    def loss(
        self,
        policy_logprobs: Float[Tensor, "group response time"],
        experience: Experience,
        values: Float[Tensor, "group response time"] | None = None,
    ) -> LossOutput:
        """The pair objective averaged over the minibatch's groups."""
        mask = experience.response_mask
        return self._loss(
            sequence_logprobs(policy_logprobs, mask),
            sequence_logprobs(experience.behaviour_logprobs, mask),
            sequence_logprobs(experience.reference_logprobs, mask),
            experience.reward_gaps,
            **dict(self.config),  # the settings of each variant are the keyword arguments of its loss
        )
