"""GRPO: advantages and the token-level loss, written out with loops."""

import math

import pytest
import torch

from p3o.algorithms import make_algorithm
from p3o.algorithms.grpo import group_centred_advantages, group_normalised_advantages, grpo_loss
from p3o.functional.advantages import reward_gaps
from p3o.types import Experience


def test_advantages_by_hand() -> None:
    """Rewards 1, 2, 6: mean 3, sample standard deviation √7; equal rewards have none."""
    rewards = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]], dtype=torch.float64)
    assert group_centred_advantages(rewards).tolist() == [[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]
    scale = math.sqrt(7.0) + 1e-4
    normalised = group_normalised_advantages(rewards)
    assert normalised[0].tolist() == pytest.approx([-2 / scale, -1 / scale, 3 / scale])
    assert normalised[1].tolist() == [0.0, 0.0, 0.0]


def test_loss_is_the_papers_sum_over_tokens() -> None:
    shape, epsilon, beta = (3, 2, 4), 0.2, 0.3
    old = -1.0 - torch.rand(shape, dtype=torch.float64)
    policy = old + 0.4 * torch.randn_like(old)
    reference = old + 0.4 * torch.randn_like(old)
    advantages = torch.randn(shape[:2], dtype=torch.float64)
    lengths = torch.tensor([[1, 4], [2, 3], [4, 4]])
    total, cut, kl = 0.0, 0, 0.0
    for g in range(3):
        for i in range(2):
            length, a = int(lengths[g, i]), advantages[g, i].item()
            for t in range(length):
                ratio = math.exp(policy[g, i, t] - old[g, i, t])
                clipped = min(max(ratio, 1 - epsilon), 1 + epsilon)
                inverse = math.exp(reference[g, i, t] - policy[g, i, t])
                k3 = inverse - math.log(inverse) - 1
                total += (min(ratio * a, clipped * a) - beta * k3) / length
                cut += clipped * a < ratio * a
                kl += k3
    output = grpo_loss(
        policy, old, reference, advantages, torch.arange(4) < lengths.unsqueeze(-1), epsilon=epsilon, beta=beta
    )
    assert output.loss.item() == pytest.approx(-total / 6, rel=1e-12)
    assert 0 < cut < lengths.sum()
    assert output.metrics["clip_fraction"].item() == pytest.approx(cut / lengths.sum().item())
    assert output.metrics["token_kl_k3"].item() == pytest.approx(kl / lengths.sum().item())


def test_gradient_of_the_kl_term_points_back_to_the_reference() -> None:
    """With advantages of 0 the gradient of one token is β (1 − π_ref/π_θ)."""
    old = torch.tensor([[[-1.0], [-1.0]]], dtype=torch.float64)
    reference = old + torch.tensor([[[0.5], [-0.5]]], dtype=torch.float64)
    policy = old.clone().requires_grad_()
    mask = torch.ones_like(old, dtype=torch.bool)
    advantages = torch.zeros(1, 2, dtype=torch.float64)
    grpo_loss(policy, old, reference, advantages, mask, epsilon=0.2, beta=0.3).loss.backward()
    assert policy.grad is not None
    assert policy.grad.flatten().tolist() == pytest.approx(
        [0.3 / 2 * (1 - math.exp(0.5)), 0.3 / 2 * (1 - math.exp(-0.5))]
    )


def test_expected_gradient_of_the_kl_term_is_that_of_the_reverse_divergence() -> None:
    """Over every response of one token: E_π ∇k3 = ∇ KL(π_ref ‖ π_θ), not ∇ KL(π_θ ‖ π_ref)."""
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.randn(5, dtype=torch.float64), -1)
    policy = torch.log_softmax(logits, -1)
    twice = policy.view(5, 1, 1).expand(5, 2, 1)  # each token as a group of two equal responses
    loss = grpo_loss(
        twice,
        twice.detach(),
        reference.view(5, 1, 1).expand(5, 2, 1),
        torch.zeros(5, 2, dtype=torch.float64),
        torch.ones(5, 2, 1, dtype=torch.bool),
        epsilon=0.2,
        beta=0.3,
    ).loss
    per_token = 5 * torch.autograd.grad(loss, policy, retain_graph=True)[0]
    (got,) = torch.autograd.grad((policy.exp().detach() * per_token * policy).sum(), logits, retain_graph=True)
    (backward,) = torch.autograd.grad(-(reference.exp() * policy).sum(), logits, retain_graph=True)
    (forward,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits)
    torch.testing.assert_close(got, 0.3 * backward, rtol=1e-12, atol=1e-15)
    assert (backward - forward).norm() > 0.2 * forward.norm()


@pytest.mark.parametrize("divide_by_std", [True, False])
def test_setting_chooses_the_advantages(divide_by_std: bool) -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64)
    logprobs = torch.zeros(1, 3, 2, dtype=torch.float64)
    experience = Experience(
        response_mask=torch.ones(1, 3, 2, dtype=torch.bool),
        behaviour_logprobs=logprobs,
        reference_logprobs=logprobs,
        reward_gaps=reward_gaps(rewards),
        rewards=rewards,
        age=torch.zeros(1, dtype=torch.long),
    )
    prepared = make_algorithm("grpo", divide_by_std=divide_by_std).prepare(experience)
    assert prepared.advantages is not None
    assert prepared.advantages[0, 2].item() == pytest.approx(3.0 / (math.sqrt(7.0) + 1e-4) if divide_by_std else 3.0)


def test_a_clamped_ratio_to_the_reference_is_counted() -> None:
    """The first token is 30 nats likelier under the reference: k3 is taken at e^20 and not at e^30, and told."""
    policy = torch.tensor([[[-31.0, -1.0], [-1.0, -1.0]]])
    reference = torch.tensor([[[-1.0, -1.5], [-1.0, -1.0]]])
    mask = torch.tensor([[[True, True], [True, False]]])
    output = grpo_loss(policy, policy, reference, torch.zeros(1, 2), mask, epsilon=0.2, beta=1.0)
    assert output.metrics["reference_log_ratio_clamped"] == 1
    assert output.metrics["log_ratio_clamped"] == 0
    k3 = [math.exp(20) - 21, math.exp(-0.5) - 0.5, 0.0]
    assert output.loss.item() == pytest.approx(((k3[0] + k3[1]) / 2 + k3[2]) / 2, rel=1e-5)
