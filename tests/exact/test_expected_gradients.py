"""Expected gradients over every group that can be sampled: which algorithms are unbiased, by how much the others are not."""

from typing import Any

import pytest
import torch
from tests.exact.enumeration import (
    Enumeration,
    expected_reward,
    gradient,
    kl,
    logprobs_of_responses,
    logprobs_of_tokens,
    random_rewards,
    random_table,
)
from torch import Tensor

from p3o.algorithms import make_algorithm

BETA = 0.3
REFERENCE = random_table(1)
BEHAVIOUR = REFERENCE + 0.5 * random_table(2)
MOVED = BEHAVIOUR + 0.5 * random_table(3)
REWARDS = random_rewards(4)
SHIFTS = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)


def objective(table: Tensor) -> Tensor:
    """E[r] − β KL(policy ‖ reference)."""
    return expected_reward(table, REWARDS) - BETA * kl(table, REFERENCE)


def objective_with_frozen_penalty(table: Tensor) -> Tensor:
    """E_π[R] with R = r − β log π_old/π_ref, whose penalty was fixed when the responses were sampled."""
    log_ratio = logprobs_of_responses(BEHAVIOUR) - logprobs_of_responses(REFERENCE)
    return expected_reward(table, REWARDS - BETA * log_ratio)


def enumeration(responses: int, shift: float = 0.0) -> Enumeration:
    return Enumeration(BEHAVIOUR, REFERENCE, REWARDS + shift * SHIFTS, responses)


def relative_error(got: Tensor, truth: Tensor) -> float:
    return ((got - truth).norm() / truth.norm()).item()


UNBIASED_ON_POLICY: list[tuple[str, dict[str, Any]]] = [
    ("reinforce", {"baseline": "none"}),
    ("ppg", {}),
    ("p3o_v1", {"epsilon": 0.2}),
    ("p3o_v2", {"epsilon": 0.2}),
    ("rloo", {"epsilon": 0.2}),
    ("ppo", {"lam": 1.0, "whiten_advantages": False}),
]
UNBIASED_OFF_POLICY: list[tuple[str, dict[str, Any]]] = [
    ("reinforce", {"baseline": "none"}),
    ("ppg", {}),
    ("p3o_v1", {"epsilon": 1e9}),
    ("p3o_v2", {"epsilon": 1e9}),
    ("rloo", {"epsilon": None}),
]


@pytest.mark.parametrize("responses", [2, 3])
@pytest.mark.parametrize(("name", "settings"), UNBIASED_ON_POLICY)
def test_on_policy_the_gradient_is_that_of_the_objective(name: str, settings: dict[str, Any], responses: int) -> None:
    algorithm = make_algorithm(name, beta=BETA, **settings)
    got = enumeration(responses).expected_ascent(algorithm, BEHAVIOUR)
    assert relative_error(got, gradient(objective, BEHAVIOUR)) < 1e-12


@pytest.mark.parametrize("responses", [2, 3])
@pytest.mark.parametrize(("name", "settings"), UNBIASED_OFF_POLICY)
def test_off_policy_and_unclipped_the_gradient_is_that_of_the_frozen_objective(
    name: str, settings: dict[str, Any], responses: int
) -> None:
    algorithm = make_algorithm(name, beta=BETA, **settings)
    truth = gradient(objective_with_frozen_penalty, MOVED)
    got = enumeration(responses).expected_ascent(algorithm, MOVED)
    assert relative_error(got, truth) < 1e-12
    # Off-policy is far from on-policy here: the same test at the wrong place would fail.
    assert relative_error(gradient(objective_with_frozen_penalty, BEHAVIOUR), truth) > 0.1


# Measured with K = 2: length of the expected ascent direction over that of the true gradient, and the cosine between them.
BIASED_ON_POLICY: list[tuple[str, dict[str, Any], float, float]] = [
    ("ppo", {"whiten_advantages": False}, 0.948276, 0.999171),  # λ = 0.95 and a critic that knows nothing
    ("online_dpo", {}, 0.157543, 0.982758),  # the sign of the gap alone
    ("grpo", {"divide_by_std": False}, 0.299522, 0.886359),  # 1/|y|; β weighs tokens; the own reward in the mean
    ("grpo", {}, 0.261110, 0.797324),  # and the division by std
]
BIASED_OFF_POLICY: list[tuple[str, dict[str, Any], float, float]] = [
    ("p3o_v1", {"epsilon": 0.2}, 0.984736, 0.946216),
    ("p3o_v2", {"epsilon": 0.2}, 0.868556, 0.971358),
    ("rloo", {"epsilon": 0.2}, 0.988323, 0.949317),
    ("ppo", {"lam": 1.0, "whiten_advantages": False}, 0.928272, 0.957175),  # token ratios, clipped
    ("rebel", {}, 4.394378, 0.965300),
    ("online_dpo", {}, 0.154903, 0.954611),
    ("grpo", {}, 0.294838, 0.689135),
]


@pytest.mark.parametrize(
    ("table", "truth", "name", "settings", "length", "cosine"),
    [(BEHAVIOUR, objective, *row) for row in BIASED_ON_POLICY]
    + [(MOVED, objective_with_frozen_penalty, *row) for row in BIASED_OFF_POLICY],
)
def test_the_bias_of_the_others_is_as_measured(table, truth, name, settings, length, cosine) -> None:
    got = enumeration(2).expected_ascent(make_algorithm(name, beta=BETA, **settings), table).flatten()
    true = gradient(truth, table).flatten()
    assert (got.norm() / true.norm()).item() == pytest.approx(length, abs=2e-6)
    assert (got.dot(true) / (got.norm() * true.norm())).item() == pytest.approx(cosine, abs=2e-6)


@pytest.mark.parametrize("eta", [0.5, 2.0])
def test_rebel_on_policy_is_unbiased_up_to_its_scale(eta: float) -> None:
    got = enumeration(2).expected_ascent(make_algorithm("rebel", beta=BETA, eta=eta), BEHAVIOUR)
    assert relative_error(got, 4.0 / eta * gradient(objective, BEHAVIOUR)) < 1e-12


def test_the_batch_mean_baseline_shrinks_the_gradient_by_one_over_the_batch() -> None:
    """A batch of one group of K responses: the own reward in the mean costs the factor 1 − 1/K, here ½."""
    whole, algorithm = enumeration(2), make_algorithm("reinforce", beta=BETA)
    weight = torch.zeros_like(whole.experience.behaviour_logprobs)
    for group in range(len(weight)):
        batch = whole.experience.select(torch.tensor([group]))
        policy = batch.behaviour_logprobs.clone().requires_grad_()
        loss = algorithm.loss(policy, algorithm.prepare(batch)).loss
        weight[group] = -whole.probability[group] * torch.autograd.grad(loss, policy)[0][0]
    got = gradient(lambda table: (weight * logprobs_of_tokens(table)[whole.prompt, whole.index]).sum(), BEHAVIOUR)
    assert relative_error(got, 0.5 * gradient(objective, BEHAVIOUR)) < 1e-12


RELATIVE = ["ppg", "p3o_v1", "p3o_v2", "rloo", "grpo", "rebel", "online_dpo"]


@pytest.mark.parametrize("name", RELATIVE)
@pytest.mark.parametrize("shift", [1.0, 100.0])
def test_a_shift_of_the_reward_changes_no_bit_of_the_expected_gradient(name: str, shift: float) -> None:
    algorithm = make_algorithm(name, beta=BETA)
    assert torch.equal(
        enumeration(2, shift).expected_ascent(algorithm, MOVED), enumeration(2).expected_ascent(algorithm, MOVED)
    )


def test_negative_control_a_shift_biases_ppo_and_drowns_it_in_variance() -> None:
    """A critic that knows nothing, λ = 0.95: GAE discounts the shift with the rest of the reward."""
    algorithm = make_algorithm("ppo", beta=BETA, whiten_advantages=False)
    truth = gradient(objective, BEHAVIOUR)
    error = {s: relative_error(enumeration(2, s).expected_ascent(algorithm, BEHAVIOUR), truth) for s in (0, 10, 100)}
    variance = {s: enumeration(2, s).variance(algorithm, BEHAVIOUR) for s in (0, 10, 100)}
    assert error[0] < 0.1
    assert error[10] > 0.25
    assert error[100] > 3.0
    assert variance[10] > 50 * variance[0]
    assert variance[100] > 5000 * variance[0]


def test_negative_control_unbiased_is_not_enough() -> None:
    """REINFORCE and PPO with λ = 1 keep the expected gradient under a shift, but not its variance; PPG keeps both."""
    truth = gradient(objective, BEHAVIOUR)
    for name, settings in [("reinforce", {"baseline": "none"}), ("ppo", {"lam": 1.0, "whiten_advantages": False})]:
        algorithm = make_algorithm(name, beta=BETA, **settings)
        assert relative_error(enumeration(2, 100.0).expected_ascent(algorithm, BEHAVIOUR), truth) < 1e-11
        assert enumeration(2, 100.0).variance(algorithm, BEHAVIOUR) > 5000 * enumeration(2).variance(
            algorithm, BEHAVIOUR
        )
    ppg = make_algorithm("ppg", beta=BETA)
    assert enumeration(2, 100.0).variance(ppg, BEHAVIOUR) == enumeration(2).variance(ppg, BEHAVIOUR)


def test_more_responses_lower_the_variance_of_the_pairwise_gradient() -> None:
    """Per group; on-policy PPG with K responses is leave-one-out, whose variance falls faster than 1/K."""
    algorithm = make_algorithm("ppg", beta=BETA)
    variance = {k: enumeration(k).variance(algorithm, BEHAVIOUR) for k in (2, 3)}
    assert variance[3] < 2 / 3 * variance[2]
