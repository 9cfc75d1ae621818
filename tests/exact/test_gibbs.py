"""The known optimum π* ∝ π_ref · exp(r/β): a fixed point of the relative algorithms, and a limit that nothing passes."""

import math

import pytest
import torch
from tests.exact.enumeration import (
    Enumeration,
    expected_reward,
    gibbs_logprobs,
    gradient,
    kl,
    logprobs_of_responses,
    random_rewards,
    random_table,
    table_of,
)
from torch import Tensor

from p3o.algorithms import make_algorithm
from p3o.algorithms.dpo import dpo_loss

BETA = 0.5
REFERENCE = random_table(21)
REWARDS = random_rewards(22)
GIBBS = table_of(gibbs_logprobs(REFERENCE, REWARDS, BETA))


def test_a_table_can_be_the_gibbs_policy() -> None:
    torch.testing.assert_close(
        logprobs_of_responses(GIBBS), gibbs_logprobs(REFERENCE, REWARDS, BETA), rtol=1e-12, atol=1e-12
    )
    at_optimum = gradient(lambda t: expected_reward(t, REWARDS) - BETA * kl(t, REFERENCE), GIBBS)
    assert at_optimum.abs().max() < 1e-13
    assert kl(GIBBS, REFERENCE) > 0.3


@pytest.mark.parametrize("name", ["ppg", "p3o_v1", "p3o_v2", "rloo", "rebel"])
def test_at_the_gibbs_policy_every_single_pair_is_at_rest(name: str) -> None:
    """R_i − R_j = 0 for each pair, so there is no noise left, not only no mean."""
    algorithm = make_algorithm(name, beta=BETA)
    at_gibbs = Enumeration(GIBBS, REFERENCE, REWARDS, 2).ascents(algorithm, GIBBS)
    elsewhere = Enumeration(REFERENCE, REFERENCE, REWARDS, 2).ascents(algorithm, REFERENCE)
    assert at_gibbs.abs().max() < 1e-12
    assert elsewhere.abs().max() > 0.1


def test_dpo_with_bradley_terry_labels_rests_at_the_gibbs_policy() -> None:
    """Labels drawn from σ(r_1 − r_2): the population gradient of DPO's loss, by every response, is 0 there."""
    pairs = Enumeration(REFERENCE, REFERENCE, REWARDS, 2)
    at = (pairs.prompt, pairs.index)
    reference = logprobs_of_responses(REFERENCE)
    first_wins = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64).expand(len(pairs.index), 2, 2)
    # Every pair stands in both orders, so that "the first wins" with its probability covers both labels.
    rewards = REWARDS[at]
    probability = torch.sigmoid(rewards[:, :1] - rewards[:, 1:])

    def population_slope(policy: Tensor) -> Tensor:
        per_pair = gradient(lambda leaf: dpo_loss(leaf, reference[at], first_wins, beta=BETA).loss, policy[at])
        return torch.zeros_like(policy).index_put(at, probability * per_pair * len(pairs.index), accumulate=True)

    assert population_slope(gibbs_logprobs(REFERENCE, REWARDS, BETA)).abs().max() < 1e-13
    assert population_slope(reference).abs().max() > 0.1


def gibbs_reward_at(limit: float) -> float:
    """The largest mean reward of any policy whose mean KL is at most ``limit``: that of the Gibbs policy of the right β."""
    reference = logprobs_of_responses(REFERENCE)
    low, high = 1e-3, 1e6  # KL falls as β grows; 60 halvings of the logarithm use up float64
    for _ in range(60):
        middle = math.sqrt(low * high)
        policy = torch.log_softmax(reference + REWARDS / middle, -1)
        spent = (policy.exp() * (policy - reference)).sum(-1).mean().item()
        low, high = (middle, high) if spent > limit else (low, middle)
    return (torch.softmax(reference + REWARDS / high, -1) * REWARDS).sum(-1).mean().item()


def test_frontier_is_right_where_it_is_known() -> None:
    assert gibbs_reward_at(kl(GIBBS, REFERENCE).item()) == pytest.approx(expected_reward(GIBBS, REWARDS).item())
    assert gibbs_reward_at(1e-9) == pytest.approx(expected_reward(REFERENCE, REWARDS).item(), abs=1e-3)


@pytest.mark.parametrize("distance", [0.1, 1.0, 3.0])
def test_no_random_policy_is_above_the_frontier(distance: float) -> None:
    for seed in range(20):
        table = GIBBS + distance * random_table(100 + seed)
        assert expected_reward(table, REWARDS).item() <= gibbs_reward_at(kl(table, REFERENCE).item()) + 1e-12


@pytest.mark.parametrize(
    ("name", "efficiency"),
    [
        *((name, 0.99) for name in ("p3o_v1", "p3o_v2", "ppg", "rloo", "rebel", "reinforce")),
        ("ppo", 0.99),
        ("online_dpo", 0.95),
        ("grpo", 0.9),
    ],
)
def test_no_algorithm_passes_the_frontier_and_each_comes_near(name: str, efficiency: float) -> None:
    """Adam on exact expected gradients, four updates on every sample; efficiency: reward gained over Gibbs' at equal KL."""
    algorithm = make_algorithm(name, beta=BETA)
    table = REFERENCE.clone()
    optimiser = torch.optim.Adam([table], lr=0.1)
    start, best = expected_reward(REFERENCE, REWARDS).item(), 0.0
    for _ in range(12):
        whole = Enumeration(table.clone(), REFERENCE, REWARDS, 2)
        for _ in range(4):
            table.grad = -whole.expected_ascent(algorithm, table)
            optimiser.step()
        reward, limit = expected_reward(table, REWARDS).item(), gibbs_reward_at(kl(table, REFERENCE).item())
        assert reward <= limit + 1e-12
        best = max(best, (reward - start) / (limit - start))
    assert best > efficiency
