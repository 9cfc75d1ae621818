"""REBEL: regression to relative rewards (Gao et al., arXiv:2404.16767).

    minimise ( 1/η [ log π_θ(y_1)/π_old(y_1) − log π_θ(y_2)/π_old(y_2) ] − (R_1 − R_2) )²
    R_i = r(y_i|x) − β log( π_old(y_i|x) / π_ref(y_i|x) )

A policy that fits every pair exactly is π_old · exp(η R) / Z: one step of mirror descent, whose fixed point is the Gibbs policy
π_ref · exp(r/β) / Z. Only differences enter, so a shift of the reward on a prompt changes nothing. With K > 2 all pairs count,
as in P3O; K = 2 is the paper's. There is no importance ratio in the loss, hence nothing to clip.
"""

from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from p3o.algorithms.base import AlgorithmConfig, clamped_log_ratio, mean_over_pairs, penalised_gaps, ratio_metrics
from p3o.functional.logprobs import sequence_logprobs
from p3o.types import Experience, LossOutput


def rebel_loss(
    policy_logprobs: Float[Tensor, "group response"],
    behaviour_logprobs: Float[Tensor, "group response"],
    reference_logprobs: Float[Tensor, "group response"],
    reward_gaps: Float[Tensor, "group response response"],
    *,
    eta: float,
    beta: float,
) -> LossOutput:
    """( (ℓ_i − ℓ_j)/η − (R_i − R_j) )² with ℓ_i = log π_θ(y_i|x) − log π_old(y_i|x), mean over all pairs of a group.

    arXiv:2404.16767, Algorithm 1. Log-probs are sums over the response.

    Raises:
        ValueError: if the groups have fewer than two responses.
    """
    log_ratio = policy_logprobs - behaviour_logprobs
    gaps = penalised_gaps(reward_gaps, (behaviour_logprobs - reference_logprobs).detach(), beta)
    residual = (log_ratio.unsqueeze(-1) - log_ratio.unsqueeze(-2)) / eta - gaps
    clamped_for_log, clamped = clamped_log_ratio(policy_logprobs.detach(), behaviour_logprobs)
    return LossOutput(loss=mean_over_pairs(residual**2), metrics=ratio_metrics(clamped_for_log, clamped))


class REBELConfig(AlgorithmConfig):
    """Settings of REBEL."""

    eta: float = Field(1.0, gt=0, description="Step size of the mirror descent, η; the regression scales by 1/η.")


class REBEL:
    """Regression of log-ratio differences on reward differences."""

    needs_critic: ClassVar[bool] = False
    accepts_comparisons: ClassVar[bool] = True
    averages_over: ClassVar[Literal["groups", "tokens"]] = "groups"
    prepares_from_logprobs: ClassVar[bool] = False

    def __init__(self, config: REBELConfig) -> None:
        self.config = config

    def prepare(self, experience: Experience) -> Experience:
        """Nothing to prepare: the gaps are the regression targets."""
        return experience

    def loss(
        self,
        policy_logprobs: Float[Tensor, "group response time"],
        experience: Experience,
        values: Float[Tensor, "group response time"] | None = None,
    ) -> LossOutput:
        """The squared error averaged over the minibatch's pairs."""
        mask = experience.response_mask
        return rebel_loss(
            sequence_logprobs(policy_logprobs, mask),
            sequence_logprobs(experience.behaviour_logprobs, mask),
            sequence_logprobs(experience.reference_logprobs, mask),
            experience.reward_gaps,
            eta=self.config.eta,
            beta=self.config.beta,
        )
