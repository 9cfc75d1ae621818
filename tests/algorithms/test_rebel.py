"""REBEL: the regression written out, its exact solution, and its gradient at π_old."""

import itertools

import pytest
import torch

from p3o.algorithms.p3o import pairwise_policy_gradient_loss
from p3o.algorithms.rebel import rebel_loss
from p3o.functional.advantages import reward_gaps


@pytest.mark.parametrize("responses", [2, 4])
def test_loss_is_the_squared_error_over_pairs(responses: int) -> None:
    policy, old, ref, rewards = torch.randn(4, 3, responses, dtype=torch.float64)
    eta, beta, total = 2.0, 0.3, 0.0
    pairs = list(itertools.combinations(range(responses), 2))
    for g in range(3):
        for i, j in pairs:
            predicted = ((policy - old)[g, i] - (policy - old)[g, j]) / eta
            target = rewards[g, i] - rewards[g, j] - beta * ((old - ref)[g, i] - (old - ref)[g, j])
            total += (predicted - target).item() ** 2
    loss = rebel_loss(policy, old, ref, reward_gaps(rewards), eta=eta, beta=beta).loss
    assert loss.item() == pytest.approx(total / 3 / len(pairs), rel=1e-12)


def test_mirror_descent_step_solves_it_exactly() -> None:
    """log π = log π_old + η R − log Z for any Z(x) leaves no error."""
    old, ref, rewards = torch.randn(3, 5, 4, dtype=torch.float64)
    eta, beta = 0.7, 0.2
    solution = old + eta * (rewards - beta * (old - ref)) - torch.randn(5, 1, dtype=torch.float64)
    assert rebel_loss(solution, old, ref, reward_gaps(rewards), eta=eta, beta=beta).loss.item() < 1e-28
    assert rebel_loss(old, old, ref, reward_gaps(rewards), eta=eta, beta=beta).loss.item() > 0.1


def test_gradient_at_the_behaviour_policy_is_ppg_times_four_over_eta() -> None:
    old, ref, rewards = torch.randn(3, 5, 3, dtype=torch.float64)
    policy = old.clone().requires_grad_()
    gaps = reward_gaps(rewards)
    rebel = torch.autograd.grad(rebel_loss(policy, old, ref, gaps, eta=0.5, beta=0.2).loss, policy)[0]
    ppg = torch.autograd.grad(pairwise_policy_gradient_loss(policy, old, ref, gaps, beta=0.2).loss, policy)[0]
    torch.testing.assert_close(rebel, 8.0 * ppg, rtol=1e-12, atol=1e-14)
