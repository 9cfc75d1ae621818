"""The Bradley–Terry loss against its closed form."""

import math

import pytest
import torch

from p3o.functional.preference import bradley_terry_loss


def test_value_gradient_and_metrics_by_hand() -> None:
    chosen = torch.tensor([1.0, 0.0, 2.0, -1.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.0, 3.0, 2.0, -3.0], dtype=torch.float64, requires_grad=True)
    output = bradley_terry_loss(chosen, rejected)
    output.loss.backward()
    gaps = [1.0, -3.0, 0.0, 2.0]
    assert output.loss.item() == pytest.approx(sum(math.log(1 + math.exp(-gap)) for gap in gaps) / 4, rel=1e-14)
    slopes = [-1 / (1 + math.exp(gap)) / 4 for gap in gaps]
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx(slopes, rel=1e-14)
    assert rejected.grad.tolist() == pytest.approx([-slope for slope in slopes], rel=1e-14)
    assert output.metrics["accuracy"].item() == 2.5 / 4
    assert output.metrics["margin"].item() == 0.0
    assert not output.metrics["margin"].requires_grad


def test_a_shift_of_both_rewards_changes_no_bit() -> None:
    chosen, rejected = torch.randint(-2048, 2048, (2, 20)) / 1024
    shift = torch.randint(-2048, 2048, (20,)) / 4
    assert torch.equal(
        bradley_terry_loss(chosen, rejected).loss, bradley_terry_loss(chosen + shift, rejected + shift).loss
    )


def test_huge_gaps_stay_finite() -> None:
    output = bradley_terry_loss(torch.tensor([-1e4]), torch.tensor([1e4]))
    assert output.loss.item() == 2e4


def test_expected_loss_is_least_at_the_rewards_that_labelled() -> None:
    """With labels drawn from σ(gap), the population gradient is 0 at that gap and nowhere beside it."""
    true_gap = 0.8
    probability = 1 / (1 + math.exp(-true_gap))

    def slope(gap: float) -> float:
        reward = torch.tensor([gap], dtype=torch.float64, requires_grad=True)
        other = torch.zeros(1, dtype=torch.float64)
        loss = probability * bradley_terry_loss(reward, other).loss
        loss = loss + (1 - probability) * bradley_terry_loss(other, reward).loss
        return torch.autograd.grad(loss, reward)[0].item()

    assert slope(true_gap) == pytest.approx(0.0, abs=1e-15)
    assert slope(true_gap + 0.1) > 0.01
    assert slope(true_gap - 0.1) < -0.01
