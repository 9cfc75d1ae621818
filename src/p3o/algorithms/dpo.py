"""Online DPO: the DPO loss (Rafailov et al., arXiv:2305.18290) on pairs sampled from the current policy.

The reward ranks the responses of a prompt (Guo et al., arXiv:2402.04792, with a reward model in the place of their LLM
annotator); only the sign of each gap is used. With K > 2 all pairs count, as in P3O; a tie counts for nothing.
"""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from p3o.algorithms.base import AlgorithmConfig, clamped_log_ratio, mean_over_pairs, ratio_metrics
from p3o.functional.logprobs import sequence_logprobs
from p3o.types import Experience, LossOutput


def dpo_loss(
    policy_logprobs: Float[Tensor, "group response"],
    reference_logprobs: Float[Tensor, "group response"],
    reward_gaps: Float[Tensor, "group response response"],
    *,
    beta: float,
) -> LossOutput:
    """− log σ( β [ log π_θ(y_w)/π_ref(y_w) − log π_θ(y_l)/π_ref(y_l) ] ), y_w the response with the higher reward.

    arXiv:2305.18290, Eq. 7. Log-probs are sums over the response. Mean over all pairs of a group; pairs with a gap of 0 have no
    winner and add 0. Metric: ``implicit_reward_accuracy``, the share of pairs that the margin ranks as the reward does, ties ½.

    Raises:
        ValueError: if the groups have fewer than two responses.
    """
    log_ratio = policy_logprobs - reference_logprobs
    margin = beta * (log_ratio.unsqueeze(-1) - log_ratio.unsqueeze(-2))
    winner = torch.sign(reward_gaps).to(margin.dtype)
    loss = mean_over_pairs(-logsigmoid(winner * margin) * winner.abs())
    # A margin of 0, as on the first update, and a reward that ties count one half: neither is a mistake.
    agreement = 0.5 * (1.0 + torch.sign((winner * margin).detach()))
    return LossOutput(
        loss=loss,
        metrics={"implicit_reward_accuracy": mean_over_pairs(agreement)},
    )


class DPOConfig(AlgorithmConfig):
    """Settings of online DPO: β alone."""


class OnlineDPO:
    """DPO on the groups that the current policy sampled, ranked by the reward."""

    needs_critic: ClassVar[bool] = False
    accepts_comparisons: ClassVar[bool] = True
    averages_over: ClassVar[Literal["groups", "tokens"]] = "groups"
    prepares_from_logprobs: ClassVar[bool] = False

    def __init__(self, config: DPOConfig) -> None:
        self.config = config

    def prepare(self, experience: Experience) -> Experience:
        """Nothing to prepare: the sign of each gap is the label."""
        return experience

    def loss(
        self,
        policy_logprobs: Float[Tensor, "group response time"],
        experience: Experience,
        values: Float[Tensor, "group response time"] | None = None,
    ) -> LossOutput:
        """The DPO loss averaged over the minibatch's pairs."""
        mask = experience.response_mask
        policy = sequence_logprobs(policy_logprobs, mask)
        output = dpo_loss(
            policy,
            sequence_logprobs(experience.reference_logprobs, mask),
            experience.reward_gaps,
            beta=self.config.beta,
        )
        log_ratio, clamped = clamped_log_ratio(policy.detach(), sequence_logprobs(experience.behaviour_logprobs, mask))
        return LossOutput(loss=output.loss, metrics=ratio_metrics(log_ratio, clamped) | dict(output.metrics))
