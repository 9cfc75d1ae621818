"""RLOO: REINFORCE with a leave-one-out baseline (Kool et al., 2019; Ahmadian et al., arXiv:2402.14740).

    A_i = R_i − mean_{j≠i} R_j,   R_i = r(y_i|x) − β log( π_old(y_i|x) / π_ref(y_i|x) )
    maximise E_i min( ρ_i A_i , clip(ρ_i, 1−ε, 1+ε) A_i )

ρ_i is the importance ratio of the whole response. The clip is not in the papers, which make one update per sample; it is how
today's implementations reuse samples. Unclipped, the gradient is that of E[R] in expectation, off-policy as well, because the
baseline of y_i does not depend on y_i; at π_θ = π_old and K = 2 it is the gradient of PPG pair by pair.

A_i is computed as the mean reward difference of response i less β times its mean log-ratio difference, rewards first, so that a
shift of the reward on a prompt cancels exactly.
"""

from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from p3o.algorithms.base import (
    AlgorithmConfig,
    absolute_rewards,
    clamped_log_ratio,
    clipped_surrogate,
    ratio_metrics,
)
from p3o.functional.advantages import leave_one_out_advantages
from p3o.functional.logprobs import sequence_logprobs
from p3o.types import Experience, LossOutput


def rloo_loss(
    policy_logprobs: Float[Tensor, "group response"],
    behaviour_logprobs: Float[Tensor, "group response"],
    advantages: Float[Tensor, "group response"],
    *,
    epsilon: float | None,
) -> LossOutput:
    """− E_i min( ρ_i A_i , clip(ρ_i, 1−ε, 1+ε) A_i ); log-probs are sums over the response, ``epsilon=None`` does not clip."""
    log_ratio, clamped = clamped_log_ratio(policy_logprobs, behaviour_logprobs)
    surrogate, cut = clipped_surrogate(log_ratio.exp(), advantages, epsilon)
    return LossOutput(loss=-surrogate.mean(), metrics=ratio_metrics(log_ratio, clamped) | {"clip_fraction": cut.mean()})


class RLOOConfig(AlgorithmConfig):
    """Settings of RLOO."""

    epsilon: float | None = Field(0.2, gt=0, description="Clip range of a response's ratio; null: no clip.")


class RLOO:
    """Leave-one-out REINFORCE on whole groups."""

    needs_critic: ClassVar[bool] = False
    accepts_comparisons: ClassVar[bool] = False
    averages_over: ClassVar[Literal["groups", "tokens"]] = "groups"
    prepares_from_logprobs: ClassVar[bool] = True

    def __init__(self, config: RLOOConfig) -> None:
        self.config = config

    def prepare(self, experience: Experience) -> Experience:
        """Advantages of whole responses.

        Raises:
            ValueError: without absolute rewards, or with fewer than two responses per prompt.
        """
        mask = experience.response_mask
        log_ratio_to_reference = sequence_logprobs(experience.behaviour_logprobs, mask) - sequence_logprobs(
            experience.reference_logprobs, mask
        )
        rewards = leave_one_out_advantages(absolute_rewards(experience, "RLOO"))
        advantages = rewards - self.config.beta * leave_one_out_advantages(log_ratio_to_reference)
        return experience.replace(advantages=advantages.to(log_ratio_to_reference.dtype))

    def loss(
        self,
        policy_logprobs: Float[Tensor, "group response time"],
        experience: Experience,
        values: Float[Tensor, "group response time"] | None = None,
    ) -> LossOutput:
        """The surrogate averaged over the minibatch's responses."""
        assert experience.advantages is not None  # prepare wrote them
        mask = experience.response_mask
        return rloo_loss(
            sequence_logprobs(policy_logprobs, mask),
            sequence_logprobs(experience.behaviour_logprobs, mask),
            experience.advantages,
            epsilon=self.config.epsilon,
        )
