"""PPO for language models (Schulman et al., arXiv:1707.06347; Ouyang et al., arXiv:2203.02155).

Token by token, with a critic: the reward of token t is −β (log π_old − log π_ref)(y_t), plus r(y|x) at the last response
token; advantages by GAE; the policy ratio and the critic's change are clipped. This is the baseline of the P3O paper, so
it gets what is known to help it: whitened advantages, a critic that can be warmed up before the policy moves, and
the same stop on the size of an update as every other algorithm here.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from p3o.algorithms.base import (
    AlgorithmConfig,
    absolute_rewards,
    clamped_log_ratio,
    clipped_surrogate,
    ratio_metrics,
)
from p3o.functional.advantages import generalised_advantage_estimate
from p3o.functional.logprobs import sequence_logprobs
from p3o.functional.masked import masked_mean, masked_whiten
from p3o.types import Experience, LossOutput


def ppo_policy_loss(
    policy_logprobs: Float[Tensor, "*batch time"],
    behaviour_logprobs: Float[Tensor, "*batch time"],
    advantages: Float[Tensor, "*batch time"],
    response_mask: Bool[Tensor, "*batch time"],
    *,
    epsilon: float,
) -> LossOutput:
    """− E_t min( ρ_t A_t , clip(ρ_t, 1−ε, 1+ε) A_t ), the clipped surrogate as a mean over response tokens."""
    log_ratio, clamped = clamped_log_ratio(
        policy_logprobs.masked_fill(~response_mask, 0.0), behaviour_logprobs.masked_fill(~response_mask, 0.0)
    )
    surrogate, cut = clipped_surrogate(log_ratio.exp(), advantages, epsilon)
    return LossOutput(
        loss=-masked_mean(surrogate, response_mask),
        metrics={"clip_fraction": masked_mean(cut, response_mask), "log_ratio_clamped": clamped},
    )


def ppo_value_loss(
    values: Float[Tensor, "*batch time"],
    behaviour_values: Float[Tensor, "*batch time"],
    returns: Float[Tensor, "*batch time"],
    response_mask: Bool[Tensor, "*batch time"],
    *,
    epsilon: float | None,
) -> LossOutput:
    """½ E_t max( (V − G)² , (V_clip − G)² ), V_clip = V_old + clip(V − V_old, −ε, ε); ``epsilon=None`` does not clip.

    Metrics: the moments of which the explained variance is made, in float64: E G and E G² nearly cancel.
    """
    values, behaviour_values, returns = (
        tensor.masked_fill(~response_mask, 0.0) for tensor in (values, behaviour_values, returns)
    )
    error = (values - returns) ** 2
    if epsilon is not None:
        near = behaviour_values + (values - behaviour_values).clamp(-epsilon, epsilon)
        error = torch.maximum(error, (near - returns) ** 2)
    targets, unexplained = returns.double(), values.detach().double() - returns.double()
    return LossOutput(
        loss=0.5 * masked_mean(error, response_mask),
        metrics={
            "value_error_mean_square": masked_mean(unexplained**2, response_mask),
            "return_mean": masked_mean(targets, response_mask),
            "return_mean_square": masked_mean(targets**2, response_mask),
        },
    )


class PPOConfig(AlgorithmConfig):
    """Settings of PPO."""

    epsilon: float = Field(0.2, gt=0, description="Clip range of a token's ratio.")
    value_epsilon: float | None = Field(0.2, gt=0, description="Clip range of the critic's change; null: no clip.")
    value_coefficient: float = Field(0.5, ge=0, description="Weight of the critic's loss.")
    gamma: float = Field(1.0, ge=0, le=1, description="Discount per token.")
    lam: float = Field(0.95, ge=0, le=1, description="λ of GAE.")
    whiten_advantages: bool = Field(True, description="Normalise advantages to mean 0 and variance 1 per batch.")


class PPO:
    """PPO with a critic, token-level advantages and a per-token KL penalty in the reward."""

    needs_critic: ClassVar[bool] = True
    accepts_comparisons: ClassVar[bool] = False
    averages_over: ClassVar[Literal["groups", "tokens"]] = "tokens"
    prepares_from_logprobs: ClassVar[bool] = True

    def __init__(self, config: PPOConfig) -> None:
        self.config = config

    def prepare(self, experience: Experience) -> Experience:
        """Per-token rewards, then GAE with the critic's values at sampling time.

        Raises:
            ValueError: without absolute rewards or values there is nothing to estimate advantages from.
        """
        response_rewards = absolute_rewards(experience, "PPO")
        if experience.values is None:
            raise ValueError("PPO needs a critic's values at sampling time")
        mask = experience.response_mask
        token_kl = experience.behaviour_logprobs - experience.reference_logprobs
        rewards = -self.config.beta * token_kl
        last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
        rewards = rewards + last * response_rewards.to(rewards.dtype).unsqueeze(-1)
        advantages, returns = generalised_advantage_estimate(
            rewards, experience.values, mask, gamma=self.config.gamma, lam=self.config.lam
        )
        if self.config.whiten_advantages:
            advantages = masked_whiten(advantages, mask)
        return experience.replace(advantages=advantages, returns=returns)

    def loss(
        self,
        policy_logprobs: Float[Tensor, "group response time"],
        experience: Experience,
        values: Float[Tensor, "group response time"] | None = None,
    ) -> LossOutput:
        """Policy loss plus ``value_coefficient`` times the critic's."""
        assert values is not None and experience.values is not None  # the loop reads needs_critic
        assert experience.advantages is not None and experience.returns is not None
        mask = experience.response_mask
        policy = ppo_policy_loss(
            policy_logprobs, experience.behaviour_logprobs, experience.advantages, mask, epsilon=self.config.epsilon
        )
        value = ppo_value_loss(values, experience.values, experience.returns, mask, epsilon=self.config.value_epsilon)
        sequence_log_ratio, _ = clamped_log_ratio(
            sequence_logprobs(policy_logprobs.detach(), mask), sequence_logprobs(experience.behaviour_logprobs, mask)
        )
        return LossOutput(
            loss=policy.loss + self.config.value_coefficient * value.loss,
            metrics=ratio_metrics(sequence_log_ratio, policy.metrics["log_ratio_clamped"])
            | {
                "clip_fraction": policy.metrics["clip_fraction"],
                "policy_loss": policy.loss.detach(),
                "value_loss": value.loss.detach(),
                **value.metrics,
            },
        )
