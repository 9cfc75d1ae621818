"""GRPO: Group Relative Policy Optimization (Shao et al., DeepSeekMath, arXiv:2402.03300).

    A_i = ( r_i − mean_j r_j ) / std_j r_j,   the same for every token of response i
    maximise E_i 1/|y_i| Σ_t [ min( ρ_it A_i , clip(ρ_it, 1−ε, 1+ε) A_i ) − β k3_it ]
    k3_it = π_ref/π_θ − log( π_ref/π_θ ) − 1   of token t

The ratios are those of single tokens, and the KL penalty is a term of the loss, not part of the reward: β weighs a mean over
tokens here, where the other algorithms' β weighs the sum over the response. Differentiating k3 of sampled tokens, as the paper
does, gives on-policy the gradient of KL(π_ref ‖ π_θ) and not that of KL(π_θ ‖ π_ref), whose value k3 estimates.

Choices that the paper leaves open: std is the sample standard deviation (divisor K − 1) plus 1e-4, as in TRL. Dr. GRPO (Liu et
al., arXiv:2503.20783) drops the division by std, ``divide_by_std=False`` here, because it weighs prompts by how little their
rewards differ; it also drops 1/|y_i|, which stays.
"""

from typing import ClassVar, Literal

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
from p3o.functional.advantages import reward_gaps
from p3o.functional.logprobs import sequence_logprobs
from p3o.functional.masked import masked_mean, masked_sum
from p3o.types import Experience, LossOutput

STD_FLOOR = 1e-4
"""Added to the standard deviation, so that a group of equal rewards has advantages of 0."""


def group_centred_advantages(rewards: Float[Tensor, "group response"]) -> Float[Tensor, "group response"]:
    """r_i − mean_j r_j, as the mean of the gaps r_i − r_j: a shift of the reward on a prompt cancels exactly.

    Raises:
        ValueError: with fewer than two responses in a group.
    """
    if rewards.shape[-1] < 2:
        raise ValueError(f"group advantages need at least 2 responses per prompt, got {rewards.shape[-1]}")
    return reward_gaps(rewards).mean(-1)


def group_normalised_advantages(rewards: Float[Tensor, "group response"]) -> Float[Tensor, "group response"]:
    """( r_i − mean_j r_j ) / ( std_j r_j + 1e-4 ), arXiv:2402.03300, Section 4.1.2; errors as for the centred ones."""
    centred = group_centred_advantages(rewards)
    variance = (centred**2).sum(-1, keepdim=True) / (rewards.shape[-1] - 1)
    return centred / (variance.sqrt() + STD_FLOOR)


def grpo_loss(
    policy_logprobs: Float[Tensor, "group response time"],
    behaviour_logprobs: Float[Tensor, "group response time"],
    reference_logprobs: Float[Tensor, "group response time"],
    advantages: Float[Tensor, "group response"],
    response_mask: Bool[Tensor, "group response time"],
    *,
    epsilon: float,
    beta: float,
) -> LossOutput:
    """− E_i 1/|y_i| Σ_t [ min( ρ_it A_i , clip(ρ_it, 1−ε, 1+ε) A_i ) − β k3_it ]; log-probs are those of tokens.

    arXiv:2402.03300, Eq. 3, with k3 (its Eq. 4).

    Metrics: ``clip_fraction``, the share of tokens cut; ``token_kl_k3``, the mean of k3 over tokens; ``log_ratio_clamped``
    counts tokens, and so does ``reference_log_ratio_clamped``, of π_ref/π_θ.
    """
    policy, behaviour, reference = (
        logprobs.masked_fill(~response_mask, 0.0)
        for logprobs in (policy_logprobs, behaviour_logprobs, reference_logprobs)
    )
    log_ratio, clamped = clamped_log_ratio(policy, behaviour)
    surrogate, cut = clipped_surrogate(log_ratio.exp(), advantages.unsqueeze(-1), epsilon)
    reference_log_ratio, reference_clamped = clamped_log_ratio(reference, policy)
    k3 = reference_log_ratio.exp() - reference_log_ratio - 1.0
    tokens = response_mask.sum(-1).clamp(min=1)
    return LossOutput(
        loss=-(masked_sum(surrogate - beta * k3, response_mask) / tokens).mean(),
        metrics={
            "clip_fraction": masked_mean(cut, response_mask),
            "token_kl_k3": masked_mean(k3.detach(), response_mask),
            "log_ratio_clamped": clamped,
            "reference_log_ratio_clamped": reference_clamped,
        },
    )


class GRPOConfig(AlgorithmConfig):
    """Settings of GRPO."""

    epsilon: float = Field(0.2, gt=0, description="Clip range of a token's ratio.")
    divide_by_std: bool = Field(True, description="Divide advantages by the group's standard deviation.")


class GRPO:
    """Token-level clipped ratios with advantages relative to the group."""

    needs_critic: ClassVar[bool] = False
    accepts_comparisons: ClassVar[bool] = False
    averages_over: ClassVar[Literal["groups", "tokens"]] = "groups"
    prepares_from_logprobs: ClassVar[bool] = False

    def __init__(self, config: GRPOConfig) -> None:
        self.config = config

    def prepare(self, experience: Experience) -> Experience:
        """Advantages of whole responses.

        Raises:
            ValueError: without absolute rewards, or with fewer than two responses per prompt.
        """
        rewards = absolute_rewards(experience, "GRPO")
        estimate = group_normalised_advantages if self.config.divide_by_std else group_centred_advantages
        return experience.replace(advantages=estimate(rewards).to(experience.behaviour_logprobs.dtype))

    def loss(
        self,
        policy_logprobs: Float[Tensor, "group response time"],
        experience: Experience,
        values: Float[Tensor, "group response time"] | None = None,
    ) -> LossOutput:
        """The loss averaged over the minibatch's responses."""
        assert experience.advantages is not None  # prepare wrote them
        mask = experience.response_mask
        output = grpo_loss(
            policy_logprobs,
            experience.behaviour_logprobs,
            experience.reference_logprobs,
            experience.advantages,
            mask,
            epsilon=self.config.epsilon,
            beta=self.config.beta,
        )
        sequence_log_ratio, _ = clamped_log_ratio(
            sequence_logprobs(policy_logprobs.detach(), mask), sequence_logprobs(experience.behaviour_logprobs, mask)
        )
        metrics = ratio_metrics(sequence_log_ratio, output.metrics["log_ratio_clamped"])
        return LossOutput(loss=output.loss, metrics=metrics | dict(output.metrics))
