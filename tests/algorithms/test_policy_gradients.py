"""REINFORCE and RLOO: advantages and clips by hand, and how they are related to PPG."""

import pytest
import torch
from torch import Tensor

from p3o.algorithms import make_algorithm
from p3o.algorithms.p3o import pairwise_policy_gradient_loss
from p3o.algorithms.reinforce import reinforce_loss
from p3o.algorithms.rloo import rloo_loss
from p3o.functional.advantages import reward_gaps
from p3o.types import Experience


def one_token_responses(rewards: list[list[float]], log_ratio_to_reference: list[list[float]]) -> Experience:
    scores = torch.tensor(rewards, dtype=torch.float64)
    behaviour = torch.full((*scores.shape, 1), -2.0, dtype=torch.float64)
    return Experience(
        response_mask=torch.ones_like(behaviour, dtype=torch.bool),
        behaviour_logprobs=behaviour,
        reference_logprobs=behaviour - torch.tensor(log_ratio_to_reference, dtype=torch.float64).unsqueeze(-1),
        reward_gaps=reward_gaps(scores),
        rewards=scores,
        age=torch.zeros(len(rewards), dtype=torch.long),
    )


def advantages(name: str, experience: Experience, **settings: object) -> Tensor:
    prepared = make_algorithm(name, **settings).prepare(experience)
    assert prepared.advantages is not None
    return prepared.advantages


def test_reinforce_subtracts_the_mean_of_the_batch() -> None:
    """R = r − 0.5·k: 1, 2, 3 and 6 with mean 3."""
    experience = one_token_responses([[2.0, 2.0], [2.0, 6.0]], [[2.0, 0.0], [-2.0, 0.0]])
    assert advantages("reinforce", experience, beta=0.5).tolist() == [[-2.0, -1.0], [0.0, 3.0]]
    assert advantages("reinforce", experience, beta=0.5, baseline="none").tolist() == [[1.0, 2.0], [3.0, 6.0]]


def test_rloo_subtracts_the_mean_of_the_others() -> None:
    """R = r − 0.5·k: 1, 2 and 6; the others' means are 4, 3.5 and 1.5."""
    experience = one_token_responses([[2.0, 2.0, 6.0]], [[2.0, 0.0, 0.0]])
    assert advantages("rloo", experience, beta=0.5).tolist() == [[-3.0, -1.5, 4.5]]


# advantage, ratio, objective, derivative by log π_θ, with ε = 0.2.
CLIP_CASES = [
    (2.0, 1.5, 2.4, 0.0),
    (2.0, 0.5, 1.0, 1.0),
    (-2.0, 1.5, -3.0, -3.0),
    (-2.0, 0.5, -1.6, 0.0),
    (2.0, 1.1, 2.2, 2.2),
]


@pytest.mark.parametrize(("advantage", "ratio", "objective", "slope"), CLIP_CASES)
def test_rloo_clips_the_ratio_of_the_response(advantage: float, ratio: float, objective: float, slope: float) -> None:
    behaviour = torch.tensor([[-3.0, -4.0]], dtype=torch.float64)
    policy = (behaviour + torch.tensor([ratio, 1.0], dtype=torch.float64).log()).requires_grad_()
    output = rloo_loss(policy, behaviour, torch.tensor([[advantage, 0.0]], dtype=torch.float64), epsilon=0.2)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(-objective / 2)
    assert policy.grad is not None
    assert policy.grad[0].tolist() == pytest.approx([-slope / 2, 0.0])
    assert output.metrics["clip_fraction"].item() == (0.5 if slope == 0.0 else 0.0)


def test_reinforce_weighs_by_the_ratio_and_never_clips() -> None:
    behaviour = torch.tensor([[-3.0, -4.0]], dtype=torch.float64)
    policy = (behaviour + torch.tensor([3.0, 0.1], dtype=torch.float64).log()).requires_grad_()
    output = reinforce_loss(policy, behaviour, torch.tensor([[2.0, -1.0]], dtype=torch.float64))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(-(6.0 - 0.1) / 2)
    assert policy.grad is not None
    assert policy.grad[0].tolist() == pytest.approx([-3.0, 0.05])


@pytest.mark.parametrize("responses", [2, 3, 5])
def test_on_policy_rloo_is_ppg_for_any_number_of_responses(responses: int) -> None:
    """Σ_{i<j} (R_i − R_j)(∇_i − ∇_j) / K(K−1) = Σ_i A_i ∇_i / K."""
    behaviour = torch.randn(4, responses, 1, dtype=torch.float64)
    rewards = torch.randn(4, responses, dtype=torch.float64)
    reference = behaviour + torch.randn_like(behaviour)
    experience = Experience(
        response_mask=torch.ones_like(behaviour, dtype=torch.bool),
        behaviour_logprobs=behaviour,
        reference_logprobs=reference,
        reward_gaps=reward_gaps(rewards),
        rewards=rewards,
        age=torch.zeros(4, dtype=torch.long),
    )
    policy = behaviour.squeeze(-1).clone().requires_grad_()
    ppg = pairwise_policy_gradient_loss(
        policy, behaviour.squeeze(-1), reference.squeeze(-1), experience.reward_gaps, beta=0.2
    )
    rloo = rloo_loss(policy, behaviour.squeeze(-1), advantages("rloo", experience, beta=0.2), epsilon=0.2)
    torch.testing.assert_close(
        *(torch.autograd.grad(output.loss, policy)[0] for output in (rloo, ppg)), rtol=1e-12, atol=1e-14
    )
