"""From rewards to what a policy gradient weighs: gaps, KL-penalised rewards, leave-one-out and GAE advantages."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def reward_gaps(rewards: Float[Tensor, "group response"]) -> Float[Tensor, "group response response"]:
    """gaps[g, i, j] = r(y_i|x_g) − r(y_j|x_g): all that a relative algorithm sees of the rewards.

    Equivalent rewards (arXiv:2310.00212, Definition 1), r and r + δ(x), have the same gaps.
    Subtracting first makes a per-prompt shift vanish in floating point exactly whenever r + shift is exact, which
    float64 rewards give for any float32 reward and a shift on a coarse grid.
    """
    return rewards.unsqueeze(-1) - rewards.unsqueeze(-2)


def kl_penalised_reward(
    rewards: Float[Tensor, "*batch"],
    behaviour_logprobs: Float[Tensor, "*batch"],
    reference_logprobs: Float[Tensor, "*batch"],
    *,
    beta: float,
) -> Float[Tensor, "*batch"]:
    """R(y) = r(y|x) − β · log( π_old(y|x) / π_ref(y|x) ), arXiv:2310.00212, Eq. 2; log-probs are sequence sums."""
    return rewards - beta * (behaviour_logprobs - reference_logprobs)


def leave_one_out_advantages(rewards: Float[Tensor, "group response"]) -> Float[Tensor, "group response"]:
    """A_i = R_i − mean_{j≠i} R_j (arXiv:2402.14740, RLOO), the mean of the reward gaps of response i.

    Raises:
        ValueError: with fewer than two responses in a group there is nothing left to compare with.
    """
    responses = rewards.shape[-1]
    if responses < 2:
        raise ValueError(f"leave-one-out needs at least 2 responses per prompt, got {responses}")
    return reward_gaps(rewards).sum(-1) / (responses - 1)


class AdvantageEstimate(NamedTuple):
    """Advantages and the returns (advantage + value) that the critic regresses on."""

    advantages: Float[Tensor, "*batch time"]
    returns: Float[Tensor, "*batch time"]


def generalised_advantage_estimate(
    rewards: Float[Tensor, "*batch time"],
    values: Float[Tensor, "*batch time"],
    response_mask: Bool[Tensor, "*batch time"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> AdvantageEstimate:
    """GAE (Schulman et al., arXiv:1506.02438, Eq. 16): A_t = Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V_{t+1} − V_t.

    ``values[t]`` is the value of the state in which token t is chosen; the value after the last response token is 0.
    Responses are padded on the right; rewards and values of padding are ignored.
    """
    rewards = rewards.masked_fill(~response_mask, 0.0)
    values = values.masked_fill(~response_mask, 0.0)
    next_values = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], dim=-1)
    deltas = rewards + gamma * next_values - values
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[..., 0])
    for t in range(deltas.shape[-1] - 1, -1, -1):
        running = deltas[..., t] + gamma * lam * running
        advantages[..., t] = running
    advantages = advantages.masked_fill(~response_mask, 0.0)
    return AdvantageEstimate(advantages, (advantages + values).masked_fill(~response_mask, 0.0))
