"""Late groups, by enumeration: with the ratio to the policy that sampled, the expected gradient is the one without any lag."""

from typing import Any

import pytest
import torch
from tests.exact.enumeration import (
    Enumeration,
    gradient,
    logprobs_of_tokens,
    random_rewards,
    random_table,
)
from torch import Tensor

from p3o.algorithms import make_algorithm

REFERENCE = random_table(1)
SAMPLER = REFERENCE + 0.5 * random_table(2)
LEARNER = SAMPLER + 0.5 * random_table(3)
REWARDS = random_rewards(4)

UNCLIPPED: list[tuple[str, dict[str, Any]]] = [
    ("reinforce", {"baseline": "none"}),
    ("ppg", {}),
    ("p3o_v1", {"epsilon": 1e9}),
    ("p3o_v2", {"epsilon": 1e9}),
    ("rloo", {"epsilon": None}),
]


def by(sampler: Tensor) -> Enumeration:
    """Every pair that this policy can sample, with its probability."""
    return Enumeration(sampler, REFERENCE, REWARDS, 2)


def relative_error(got: Tensor, truth: Tensor) -> float:
    return ((got - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize(("name", "settings"), UNCLIPPED)
def test_corrected_late_groups_have_the_expected_gradient_of_groups_in_time(
    name: str, settings: dict[str, Any]
) -> None:
    algorithm = make_algorithm(name, beta=0.0, **settings)
    in_time = by(LEARNER).expected_ascent(algorithm, LEARNER)
    assert relative_error(by(SAMPLER).expected_ascent(algorithm, LEARNER), in_time) < 1e-12


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_with_a_live_kl_the_penalty_is_that_of_the_step_that_trains(beta: float) -> None:
    """P3O-R with α = 1 is unbiased for E[r] − β KL whoever sampled; a penalty that was frozen at sampling is a lag behind."""
    live = make_algorithm("p3o_r", beta=beta, importance=1.0, epsilon=None)
    in_time = by(LEARNER).expected_ascent(live, LEARNER)
    assert relative_error(by(SAMPLER).expected_ascent(live, LEARNER), in_time) < 1e-12
    frozen = make_algorithm("p3o_v2", beta=beta, epsilon=1e9)
    error = relative_error(by(SAMPLER).expected_ascent(frozen, LEARNER), in_time)
    assert error < 1e-12 if beta == 0.0 else error > 0.01


@pytest.mark.parametrize(("name", "settings"), UNCLIPPED)
def test_negative_control_taken_for_groups_in_time_they_bias_the_gradient(name: str, settings: dict[str, Any]) -> None:
    """The learner's own log-probs in the place of the sampler's: ratio 1, and the wrong expectation."""
    algorithm, late = make_algorithm(name, beta=0.0, **settings), by(SAMPLER)
    taken = late.experience.replace(behaviour_logprobs=logprobs_of_tokens(LEARNER)[late.prompt, late.index])
    policy = taken.behaviour_logprobs.clone().requires_grad_()
    loss = algorithm.loss(policy, algorithm.prepare(taken)).loss
    slopes = -len(late.index) * torch.autograd.grad(loss, policy)[0] * late.probability[:, None, None]
    got = gradient(lambda table: (slopes * logprobs_of_tokens(table)[late.prompt, late.index]).sum(), LEARNER)
    assert relative_error(got, by(LEARNER).expected_ascent(algorithm, LEARNER)) > 0.1


def test_correcting_costs_variance() -> None:
    """ρ₁ρ₂ of a pair: the expectation is kept, the spread of one pair's gradient is not."""
    algorithm = make_algorithm("p3o_v2", beta=0.0, epsilon=1e9)
    assert by(SAMPLER).variance(algorithm, LEARNER) > 1.2 * by(LEARNER).variance(algorithm, LEARNER)
