"""What an algorithm is to the training loop, and what the sequence-level losses share.

The loop knows no algorithm. Once per step it hands the sampled groups to ``prepare`` (advantages, targets of a critic);
then, for every minibatch, it hands the policy's fresh log-probs to ``loss``. A new algorithm is one file with its
equations, its frozen config and these two methods, one line in ``ALGORITHMS`` and one test against an oracle.
"""

import copy
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from p3o.types import Experience, LossOutput

LOG_RATIO_LIMIT = 20.0
"""|log π_θ/π_old| of a response is clamped to this before exp: e^20 is far beyond any ratio worth trusting, and
sums over long responses overflow float32 at 88."""


class AlgorithmConfig(BaseModel):
    """Settings that every algorithm has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta: float = Field(0.1, ge=0, description="Weight of KL(policy ‖ reference) in the objective, β.")


@runtime_checkable
class Algorithm(Protocol):
    """One way to turn sampled groups into a loss."""

    needs_critic: ClassVar[bool]
    """Whether ``loss`` wants fresh values of a critic for every response token."""

    accepts_comparisons: ClassVar[bool]
    """Whether reward gaps suffice. Otherwise the feedback must be a score per response."""

    averages_over: ClassVar[Literal["groups", "tokens"]]
    """What the loss is a mean over: how the parts of a minibatch that is split for memory are weighted."""

    prepares_from_logprobs: ClassVar[bool]
    """Whether ``prepare`` reads log-probs. If not, and a batch gets one update only, log π_old is taken from that update's own
    pass and not computed before."""

    @property
    def config(self) -> AlgorithmConfig:
        """The frozen settings."""
        ...

    def prepare(self, experience: Experience) -> Experience:
        """Once per sampled batch, before its first update."""
        ...

    def loss(
        self,
        policy_logprobs: Float[Tensor, "group response time"],
        experience: Experience,
        values: Float[Tensor, "group response time"] | None = None,
    ) -> LossOutput:
        """The loss of a minibatch of groups. ``policy_logprobs`` carry the graph, the experience never does."""
        ...


def with_beta(algorithm: Algorithm, beta: float) -> Algorithm:
    """The same algorithm at another β, for a controller that steers the KL towards a target."""
    twin = copy.copy(algorithm)
    twin.config = algorithm.config.model_copy(update={"beta": beta})  # type: ignore[misc]
    return twin


def absolute_rewards(experience: Experience, algorithm: str) -> Float[Tensor, "group response"]:
    """The score of each response.

    Raises:
        ValueError: if the feedback was comparisons only, which ``algorithm`` cannot learn from.
    """
    if experience.rewards is None:
        raise ValueError(f"{algorithm} needs a reward for every response and cannot learn from comparisons alone")
    return experience.rewards


def clamped_log_ratio(
    policy_logprobs: Float[Tensor, "*batch"], behaviour_logprobs: Float[Tensor, "*batch"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, ""]]:
    """log ρ = log π_θ − log π_old of responses or tokens, clamped to ±LOG_RATIO_LIMIT, and how many were clamped."""
    log_ratio = policy_logprobs - behaviour_logprobs
    clamped = (log_ratio.detach().abs() > LOG_RATIO_LIMIT).sum().to(log_ratio.dtype)
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT), clamped


def half_squared_log_ratio(
    policy_logprobs: Float[Tensor, "group response"], behaviour_logprobs: Float[Tensor, "group response"]
) -> Float[Tensor, ""]:
    """Mean of ½·(log π_θ/π_old)² per response: the distance that ``kl_stop`` limits, second order of the KL."""
    return 0.5 * ((policy_logprobs - behaviour_logprobs).detach() ** 2).mean()


RESPONSE_MEANS = ("ratio_mean", "ratio_mean_square", "half_squared_log_ratio")
"""Metrics that are means over responses, whatever the loss is a mean over."""


def ratio_metrics(log_ratio: Float[Tensor, "group response"], clamped: Float[Tensor, ""]) -> dict[str, Tensor]:
    """The log's view of the importance ratios ρ of whole responses: mean, mean square and maximum of ρ, mean ½·(log ρ)²,
    number of clamps. From the mean and the mean square ``effective_sample_share`` follows."""
    ratio = log_ratio.detach().exp()
    return {
        "ratio_mean": ratio.mean(),
        "ratio_mean_square": (ratio**2).mean(),
        "ratio_max": ratio.max(),
        "half_squared_log_ratio": 0.5 * (log_ratio.detach() ** 2).mean(),
        "log_ratio_clamped": clamped,
    }


def clipped_surrogate(
    ratio: Float[Tensor, "*batch"], advantages: Float[Tensor, "#*batch"], epsilon: float | None
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """min( ρ A , clip(ρ, 1−ε, 1+ε) A ), arXiv:1707.06347, Eq. 7, and 1 where the clip cut; ``epsilon=None`` does not clip."""
    unclipped = ratio * advantages
    if epsilon is None:
        return unclipped, torch.zeros_like(unclipped)
    clipped = ratio.clamp(1.0 - epsilon, 1.0 + epsilon) * advantages
    return torch.minimum(unclipped, clipped), (clipped < unclipped).to(ratio.dtype)


def penalised_gaps(
    reward_gaps: Float[Tensor, "group response response"],
    sequence_log_ratio_to_reference: Float[Tensor, "group response"],
    beta: float,
) -> Float[Tensor, "group response response"]:
    """R_i − R_j = (r_i − r_j) − β (k_i − k_j): reward differences first, so that a per-prompt shift cannot enter.

    The gaps arrive in float64 where rewards are (exact differences) and leave in the dtype of the log-probs.
    """
    k = sequence_log_ratio_to_reference
    return reward_gaps.to(k.dtype) - beta * (k.unsqueeze(-1) - k.unsqueeze(-2))


def mean_over_pairs(pair_terms: Float[Tensor, "group response response"]) -> Float[Tensor, ""]:
    """Mean over groups of the sum over unordered pairs i < j, divided by their number K(K−1)/2.

    Raises:
        ValueError: if the groups have fewer than two responses.
    """
    responses = pair_terms.shape[-1]
    if responses < 2:
        raise ValueError(f"a pairwise loss needs at least 2 responses per prompt, got {responses}")
    upper = torch.triu(torch.ones_like(pair_terms[0], dtype=torch.bool), diagonal=1)
    return pair_terms.masked_fill(~upper, 0.0).sum((-2, -1)).mean() / (responses * (responses - 1) / 2)
