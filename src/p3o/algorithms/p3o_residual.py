"""P3O-R: pairwise policy optimisation on the residual of the optimality condition, made for replay.

The optimum of E[r] − β KL(π ‖ π_ref) is the Gibbs policy π* ∝ π_ref exp(r/β). Taking logarithms and the difference of two
responses of one prompt removes its normaliser, so a policy is optimal exactly if for every pair

    e_ij = (r_i − r_j) − β (k_i − k_j) = 0,        k_i = log( π_θ(y_i|x) / π_ref(y_i|x) )  at the current θ.

P3O weighs the pair by the same expression with k frozen when the pair was sampled, log(π_old/π_ref): right on the first
update and wrong by β times the distance travelled since. P3O-R takes it live:

    ℓ_i = log( π_θ(y_i|x) / π_old(y_i|x) ),   z = ℓ_i − ℓ_j,   w = sg( e_ij (ρ_i ρ_j)^α )
    maximise ½ min( w z , w clip(z, −ε, +ε) ),  mean over all pairs of a group

What follows, each with its test (docs/p3o_residual.md has the proofs):

- e_ij does not depend on who sampled the pair. Every pair's gradient is zero at π*, for any behaviour policy: stale
  groups add no bias to the fixed point, and each group may be replayed with its own π_old.
- Unclipped and with α = 0 the gradient is that of the squared residual e²/(4β): a regression with a zero-noise optimum.
- At θ = θ_old it is P3O-V2, whatever α; with α = 1 its expected gradient is that of the objective itself, off-policy too.
- Only reward gaps enter: a per-prompt shift changes nothing.

There is no clip unless one is asked for. A range for the whole response silences nearly all stale pairs of long ones; with
``clip_per="token"`` a pair may move by ε times the mean length of its responses.

α trades bias for variance away from the optimum: α = 1 weighs pairs as the current policy would sample them (unbiased,
but ρ_i ρ_j is the square of an importance weight); α = 0 weighs them as they were sampled. Both have the same fixed point
wherever the policy class contains π*.
"""

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


def p3o_residual_loss(
    policy_logprobs: Float[Tensor, "group response"],
    behaviour_logprobs: Float[Tensor, "group response"],
    reference_logprobs: Float[Tensor, "group response"],
    reward_gaps: Float[Tensor, "group response response"],
    *,
    beta: float,
    epsilon: float | Float[Tensor, "group response response"] | None,
    importance: float,
) -> LossOutput:
    """− ½ min( w z , w clip(z, −ε, +ε) ), w = sg( e_ij (ρ_i ρ_j)^α ), mean over the pairs of each group.

    Args:
        policy_logprobs: log π_θ(y_i|x), with its graph; sums over the response, as are the next two.
        behaviour_logprobs: log π_old(y_i|x) of the policy that sampled this group, however long ago.
        reference_logprobs: log π_ref(y_i|x).
        reward_gaps: r(y_i) − r(y_j) at [g, i, j].
        beta: weight of the KL penalty.
        epsilon: clip range of z, for all pairs or for each; None does not clip.
        importance: α.

    Metrics beside the ratios: ``residual_mean_square``, of e_ij in units of the reward (0 at the optimum), and
    ``clip_fraction``.

    Raises:
        ValueError: if the groups have fewer than two responses.
    """
    log_ratio, clamped = clamped_log_ratio(policy_logprobs, behaviour_logprobs)
    residual = penalised_gaps(reward_gaps, (policy_logprobs - reference_logprobs).detach(), beta)
    log_weight = importance * log_ratio.detach()
    weight = residual * (log_weight.unsqueeze(-1) + log_weight.unsqueeze(-2)).exp()
    pair_log_ratio = log_ratio.unsqueeze(-1) - log_ratio.unsqueeze(-2)
    objective = weight * pair_log_ratio
    cut = torch.zeros_like(objective)
    if epsilon is not None:
        limit = torch.as_tensor(epsilon, dtype=pair_log_ratio.dtype, device=pair_log_ratio.device)
        clipped = weight * pair_log_ratio.clamp(-limit, limit)
        cut = (clipped < objective).detach().to(objective.dtype)
        objective = torch.minimum(objective, clipped)
    return LossOutput(
        loss=-mean_over_pairs(0.5 * objective),
        metrics=ratio_metrics(log_ratio, clamped)
        | {"clip_fraction": mean_over_pairs(cut), "residual_mean_square": mean_over_pairs(residual**2)},
    )


class P3OResidualConfig(AlgorithmConfig):
    """Settings of P3O-R."""

    epsilon: float | None = Field(None, gt=0, description="Clip range of log ρ_i/ρ_j; null: no clip.")
    clip_per: Literal["response", "token"] = Field(
        "response", description="Unit of ε: the clip range of a pair is ε, or ε times the mean length of its responses."
    )
    importance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="α: 0 weights pairs as they were sampled, 1 as the current policy would sample them.",
    )


class P3OResidual:
    """P3O-R on whole groups, fresh or replayed."""

    needs_critic: ClassVar[bool] = False
    accepts_comparisons: ClassVar[bool] = True
    averages_over: ClassVar[Literal["groups", "tokens"]] = "groups"
    prepares_from_logprobs: ClassVar[bool] = False

    def __init__(self, config: P3OResidualConfig) -> None:
        self.config = config

    def prepare(self, experience: Experience) -> Experience:
        """Nothing to prepare: the residual is taken at every update."""
        return experience

    def loss(
        self,
        policy_logprobs: Float[Tensor, "group response time"],
        experience: Experience,
        values: Float[Tensor, "group response time"] | None = None,
    ) -> LossOutput:
        """The residual objective averaged over the minibatch's groups."""
        mask = experience.response_mask
        return p3o_residual_loss(
            sequence_logprobs(policy_logprobs, mask),
            sequence_logprobs(experience.behaviour_logprobs, mask),
            sequence_logprobs(experience.reference_logprobs, mask),
            experience.reward_gaps,
            beta=self.config.beta,
            epsilon=self._clip_range(experience),
            importance=self.config.importance,
        )

    def _clip_range(self, experience: Experience) -> float | Float[Tensor, "group response response"] | None:
        if self.config.epsilon is None or self.config.clip_per == "response":
            return self.config.epsilon
        lengths = experience.response_mask.sum(-1).to(experience.behaviour_logprobs.dtype)
        return 0.5 * self.config.epsilon * (lengths.unsqueeze(-1) + lengths.unsqueeze(-2))
