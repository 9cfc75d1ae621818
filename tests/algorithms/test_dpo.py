"""Online DPO: value and gradient against the closed form, ties, more than two responses."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from p3o.algorithms.dpo import dpo_loss
from p3o.functional.advantages import reward_gaps

BETA = 0.3


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def draw(groups: int, responses: int) -> tuple[Tensor, Tensor, Tensor]:
    policy = torch.randn(groups, responses, dtype=torch.float64)
    return policy, policy + 2 * torch.randn_like(policy), torch.randn_like(policy)


@pytest.mark.parametrize("responses", [2, 4])
def test_value_and_gradient_are_the_closed_form(responses: int) -> None:
    """∇ = −β σ(−β m) (∇ log π(y_w) − ∇ log π(y_l)), m the margin of log-ratios, arXiv:2305.18290 Section 4."""
    policy, reference, rewards = draw(5, responses)
    leaf = policy.clone().requires_grad_()
    output = dpo_loss(leaf, reference, reward_gaps(rewards), beta=BETA)
    output.loss.backward()
    value, slope, right = 0.0, torch.zeros_like(policy), 0
    pairs = list(itertools.combinations(range(responses), 2))
    for g in range(5):
        for i, j in pairs:
            winner, loser = (i, j) if rewards[g, i] > rewards[g, j] else (j, i)
            margin = BETA * ((policy - reference)[g, winner] - (policy - reference)[g, loser]).item()
            value -= math.log(sigmoid(margin)) / (5 * len(pairs))
            slope[g, winner] -= BETA * sigmoid(-margin) / (5 * len(pairs))
            slope[g, loser] += BETA * sigmoid(-margin) / (5 * len(pairs))
            right += margin > 0
    assert output.loss.item() == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(leaf.grad, slope, rtol=1e-12, atol=1e-14)
    assert output.metrics["implicit_reward_accuracy"].item() == pytest.approx(right / (5 * len(pairs)))


def test_only_the_sign_of_the_gap_counts() -> None:
    policy, reference, rewards = draw(6, 3)
    small = dpo_loss(policy, reference, reward_gaps(rewards), beta=BETA)
    large = dpo_loss(policy, reference, reward_gaps(100 * rewards), beta=BETA)
    opposite = dpo_loss(policy, reference, reward_gaps(-rewards), beta=BETA)
    assert torch.equal(small.loss, large.loss)
    assert (opposite.loss - small.loss).abs() > 1e-3


def test_a_tie_adds_nothing() -> None:
    policy, reference, _ = draw(1, 3)
    rewards = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    leaf = policy.clone().requires_grad_()
    output = dpo_loss(leaf, reference, reward_gaps(rewards), beta=BETA)
    output.loss.backward()
    ratio = (policy - reference)[0]
    margins = [BETA * (ratio[i] - ratio[2]).item() for i in (0, 1)]
    assert output.loss.item() == pytest.approx(-sum(math.log(sigmoid(m)) for m in margins) / 3)
    everything_tied = dpo_loss(policy, reference, torch.zeros(1, 3, 3, dtype=torch.float64), beta=BETA)
    assert everything_tied.loss.item() == 0.0


def test_the_accuracy_of_a_policy_that_has_not_moved_is_one_half() -> None:
    """At the first update every margin is 0; a pair that the reward does not tell apart is no mistake either."""
    policy, _, rewards = draw(4, 3)
    unmoved = dpo_loss(policy, policy, reward_gaps(rewards), beta=BETA)
    assert unmoved.metrics["implicit_reward_accuracy"].item() == 0.5
    tied = dpo_loss(policy, torch.zeros_like(policy), reward_gaps(torch.zeros_like(rewards)), beta=BETA)
    assert tied.metrics["implicit_reward_accuracy"].item() == 0.5
