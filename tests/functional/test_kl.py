"""KL estimators by hand and, over every response of a small problem, against the KL itself."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from p3o.functional.kl import (
    kl_policy_reference_full_vocabulary,
    kl_policy_reference_k1,
    kl_policy_reference_k2,
    kl_policy_reference_k3,
)

SAMPLED = [kl_policy_reference_k1, kl_policy_reference_k2, kl_policy_reference_k3]


def test_by_hand() -> None:
    """Token log-ratios 0.5 and −0.2, then padding."""
    policy = torch.tensor([[-1.0, -1.0, float("nan")]], dtype=torch.float64)
    reference = torch.tensor([[-1.5, -0.8, 3.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    assert kl_policy_reference_k1(policy, reference, mask).item() == pytest.approx(0.3)
    assert kl_policy_reference_k2(policy, reference, mask).item() == pytest.approx(0.045)
    expected = (math.exp(-0.5) - 1 + 0.5) + (math.exp(0.2) - 1 - 0.2)
    assert kl_policy_reference_k3(policy, reference, mask).item() == pytest.approx(expected)


@pytest.mark.parametrize("estimator", SAMPLED)
def test_no_gradient_from_padding(estimator) -> None:
    policy = torch.tensor([[-1.0, -1.0, float("nan")]], requires_grad=True)
    reference = torch.tensor([[-1.5, -0.8, 3.0]])
    estimator(policy, reference, torch.tensor([[True, True, False]])).sum().backward()
    assert policy.grad is not None
    assert policy.grad[0, 2] == 0
    assert policy.grad[0, :2].isfinite().all()


def test_full_vocabulary_by_hand() -> None:
    """Next-token distributions (¾, ¼) against (½, ½); the second position is padding."""
    policy = torch.tensor([[[math.log(3.0), 0.0], [9.0, -9.0]]], dtype=torch.float64)
    reference = torch.zeros(1, 2, 2, dtype=torch.float64)
    mask = torch.tensor([[True, False]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kl_policy_reference_full_vocabulary(policy, reference, mask).item() == pytest.approx(expected)
    hot = kl_policy_reference_full_vocabulary(policy, reference, mask, temperature=0.5).item()
    assert hot == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))


def all_responses(policy: Tensor, reference: Tensor) -> tuple[Tensor, ...]:
    """Every response of two tokens from next-token logits [first token + 1, vocab]: row 0 first, row 1 + y_1 after y_1."""
    vocab = policy.shape[-1]
    tokens = torch.tensor(list(itertools.product(range(vocab), repeat=2)))
    rows = torch.stack([torch.zeros(len(tokens), dtype=torch.long), 1 + tokens[:, 0]], -1)
    chosen = [
        torch.log_softmax(logits, -1)[rows].gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        for logits in (policy, reference)
    ]
    return *chosen, policy[rows], reference[rows]


def test_means_over_every_response_are_the_kl() -> None:
    """k1, token-wise k3 and the full-vocabulary estimator are unbiased; k2 is not, and less so the closer the policies are."""
    reference = torch.randn(4, 3, dtype=torch.float64)
    direction = torch.randn(4, 3, dtype=torch.float64)
    bias_of_k2 = {}
    for distance in (0.1, 1.0):
        policy_logprobs, reference_logprobs, policy_logits, reference_logits = all_responses(
            reference + distance * direction, reference
        )
        mask = torch.ones_like(policy_logprobs, dtype=torch.bool)
        probability = policy_logprobs.sum(-1).exp()
        kl = (probability * (policy_logprobs - reference_logprobs).sum(-1)).sum().item()
        assert probability.sum().item() == pytest.approx(1.0)
        assert kl > 1e-4
        for estimate in (
            kl_policy_reference_k1(policy_logprobs, reference_logprobs, mask),
            kl_policy_reference_k3(policy_logprobs, reference_logprobs, mask),
            kl_policy_reference_full_vocabulary(policy_logits, reference_logits, mask),
        ):
            assert (probability * estimate).sum().item() == pytest.approx(kl, rel=1e-11)
        k2 = (probability * kl_policy_reference_k2(policy_logprobs, reference_logprobs, mask)).sum().item()
        bias_of_k2[distance] = abs(k2 - kl) / kl
    assert bias_of_k2[0.1] < 0.1
    assert bias_of_k2[1.0] > 2 * bias_of_k2[0.1] > 0
