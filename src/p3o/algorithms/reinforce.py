"""REINFORCE: the vanilla policy gradient (VPG) on whole responses, the method that PPG of the P3O paper starts from.

    maximise E_i ρ_i A_i,   A_i = R_i − b,   R_i = r(y_i|x) − β log( π_old(y_i|x) / π_ref(y_i|x) )

ρ_i is the importance ratio of the whole response, so the gradient E ρ_i A_i ∇ log π_θ(y_i|x) stays right off-policy; nothing is
clipped. b is the mean of R over the sampled batch or 0. One number for all prompts: a shift of the reward that differs from
prompt to prompt goes straight into the variance, which is why this baseline is here.
"""

from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from p3o.algorithms.base import AlgorithmConfig, absolute_rewards, clamped_log_ratio, ratio_metrics
from p3o.functional.advantages import kl_penalised_reward
from p3o.functional.logprobs import sequence_logprobs
from p3o.types import Experience, LossOutput


def reinforce_loss(
    policy_logprobs: Float[Tensor, "group response"],
    behaviour_logprobs: Float[Tensor, "group response"],
    advantages: Float[Tensor, "group response"],
) -> LossOutput:
    """− E_i ρ_i A_i; log-probs are sums over the response, advantages carry no gradient."""
    log_ratio, clamped = clamped_log_ratio(policy_logprobs, behaviour_logprobs)
    return LossOutput(loss=-(log_ratio.exp() * advantages).mean(), metrics=ratio_metrics(log_ratio, clamped))


class ReinforceConfig(AlgorithmConfig):
    """Settings of REINFORCE."""

    baseline: Literal["batch_mean", "none"] = Field(
        "batch_mean",
        description="Baseline subtracted from every KL-penalised reward: the batch mean, or nothing.",
    )


class Reinforce:
    """The vanilla policy gradient with importance ratios of whole responses."""

    needs_critic: ClassVar[bool] = False
    accepts_comparisons: ClassVar[bool] = False
    averages_over: ClassVar[Literal["groups", "tokens"]] = "groups"
    prepares_from_logprobs: ClassVar[bool] = True

    def __init__(self, config: ReinforceConfig) -> None:
        self.config = config

    def prepare(self, experience: Experience) -> Experience:
        """Advantages of whole responses; the baseline is that of the batch as it was sampled, not of a minibatch.

        Raises:
            ValueError: without absolute rewards.
        """
        mask = experience.response_mask
        rewards = kl_penalised_reward(
            absolute_rewards(experience, "REINFORCE"),
            sequence_logprobs(experience.behaviour_logprobs, mask),
            sequence_logprobs(experience.reference_logprobs, mask),
            beta=self.config.beta,
        )
        advantages = rewards - rewards.mean() if self.config.baseline == "batch_mean" else rewards
        return experience.replace(advantages=advantages.to(experience.behaviour_logprobs.dtype))

    def loss(
        self,
        policy_logprobs: Float[Tensor, "group response time"],
        experience: Experience,
        values: Float[Tensor, "group response time"] | None = None,
    ) -> LossOutput:
        """The surrogate averaged over the minibatch's responses."""
        assert experience.advantages is not None  # prepare wrote them
        mask = experience.response_mask
        return reinforce_loss(
            sequence_logprobs(policy_logprobs, mask),
            sequence_logprobs(experience.behaviour_logprobs, mask),
            experience.advantages,
        )
