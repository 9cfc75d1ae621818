"""Sampled from another policy than π_old and weighed by min(w, C): the expected gradient over every group there can be."""

from typing import Any

import pytest
import torch
from tests.exact.enumeration import (
    Enumeration,
    gradient,
    logprobs_of_responses,
    logprobs_of_tokens,
    random_rewards,
    random_table,
)
from torch import Tensor

from p3o.algorithms import make_algorithm
from p3o.functional.mismatch import Correction, mismatch, weighed

REFERENCE = random_table(1)
BEHAVIOUR = REFERENCE + 0.5 * random_table(2)
MOVED = BEHAVIOUR + 0.3 * random_table(3)
SERVER = BEHAVIOUR + 0.2 * random_table(5)
"""What really samples: far more off than any engine is."""

REWARDS = random_rewards(4)
ALGORITHMS: list[tuple[str, dict[str, Any]]] = [
    ("ppg", {}),
    ("p3o_v1", {}),
    ("p3o_v2", {}),
    ("p3o_r", {}),
    ("rloo", {}),
    ("grpo", {}),
    ("rebel", {}),
    ("online_dpo", {}),
    ("reinforce", {"baseline": "none"}),
    ("ppo", {"whiten_advantages": False}),
]


def corrected_ascent(name: str, settings: dict[str, Any], responses: int, correction: Correction) -> Tensor:
    """E over the server's groups of the ascent direction as the trainer computes it."""
    algorithm = make_algorithm(name, **settings)
    exact = Enumeration(BEHAVIOUR, REFERENCE, REWARDS, responses)
    theirs = logprobs_of_tokens(SERVER)[exact.prompt, exact.index]
    found = mismatch(exact.experience.behaviour_logprobs, theirs, exact.experience.response_mask, correction)
    policy = logprobs_of_tokens(MOVED)[exact.prompt, exact.index].detach().requires_grad_()
    scaled = policy if found.weights is None else weighed(policy, found.weights)
    assert torch.equal(scaled, policy)
    values = torch.zeros_like(policy) if algorithm.needs_critic else None
    loss = algorithm.loss(scaled, algorithm.prepare(exact.experience), values).loss
    share = exact.experience.response_mask.sum() / responses if algorithm.needs_critic else len(exact.index)
    slopes = -share * torch.autograd.grad(loss, policy)[0]
    probability = logprobs_of_responses(SERVER)[exact.prompt, exact.index].sum(-1).exp() / len(REWARDS)
    weight = slopes * (probability * found.keep)[:, None, None]
    return gradient(lambda leaf: (weight * logprobs_of_tokens(leaf)[exact.prompt, exact.index]).sum(), MOVED)


def wanted(name: str, settings: dict[str, Any], responses: int) -> Tensor:
    return Enumeration(BEHAVIOUR, REFERENCE, REWARDS, responses).expected_ascent(
        make_algorithm(name, **settings), MOVED
    )


def relative_error(got: Tensor, truth: Tensor) -> float:
    return ((got - truth).norm() / truth.norm()).item()


UNBOUNDED = Correction("truncate", limit=1e9, bound=1e9)


@pytest.mark.parametrize("responses", [2, 3])
@pytest.mark.parametrize(("name", "settings"), ALGORITHMS)
def test_untruncated_the_gradient_is_that_of_samples_of_the_learner(
    name: str, settings: dict[str, Any], responses: int
) -> None:
    truth = wanted(name, settings, responses)
    assert relative_error(corrected_ascent(name, settings, responses, UNBOUNDED), truth) < 1e-12
    # The server is far from the learner: without weights the same test would fail.
    assert relative_error(corrected_ascent(name, settings, responses, Correction("none")), truth) > 0.02


@pytest.mark.parametrize("limit", [1.0, 1.5, 2.0])
def test_truncated_the_bias_is_the_probability_that_was_cut_off(limit: float) -> None:
    """E_μ[min(w, C) L] = Σ min(π_old, C μ) L, computed here without a weight."""
    exact = Enumeration(BEHAVIOUR, REFERENCE, REWARDS, 2)
    theirs = logprobs_of_responses(SERVER)[exact.prompt, exact.index].sum(-1).exp() / len(REWARDS)
    slopes = (
        exact.slopes(make_algorithm("p3o_v2"), MOVED) * torch.minimum(exact.probability, limit * theirs)[:, None, None]
    )
    truth = gradient(lambda leaf: (slopes * logprobs_of_tokens(leaf)[exact.prompt, exact.index]).sum(), MOVED)
    got = corrected_ascent("p3o_v2", {}, 2, Correction("truncate", limit=limit, bound=1e9))
    assert relative_error(got, truth) < 1e-12


def test_the_bias_shrinks_with_the_limit() -> None:
    truth = wanted("p3o_v2", {}, 2)
    errors = [
        relative_error(corrected_ascent("p3o_v2", {}, 2, Correction("truncate", limit=limit, bound=1e9)), truth)
        for limit in (1.0, 1.5, 2.0, 4.0)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]
