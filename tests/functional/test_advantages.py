"""GAE against the definition's double sum, and the others by hand."""

import pytest
import torch

from p3o.functional.advantages import (
    generalised_advantage_estimate,
    kl_penalised_reward,
    leave_one_out_advantages,
    reward_gaps,
)


def test_gaps_are_row_minus_column() -> None:
    gaps = reward_gaps(torch.tensor([[1.0, 4.0, -2.0]]))
    assert gaps.tolist() == [[[0.0, -3.0, 3.0], [3.0, 0.0, 6.0], [-3.0, -6.0, 0.0]]]


def test_gaps_of_shifted_rewards_are_the_same_bits() -> None:
    rewards = torch.randint(-2048, 2048, (50, 4)) / 1024
    shift = torch.randint(-(2**20), 2**20, (50, 1)) / 1024
    assert torch.equal(reward_gaps(rewards), reward_gaps(rewards + shift))


def test_kl_penalised_reward_by_hand() -> None:
    got = kl_penalised_reward(torch.tensor(2.0), torch.tensor(-3.0), torch.tensor(-5.0), beta=0.25)
    assert got.item() == 1.5


def test_leave_one_out_by_hand() -> None:
    got = leave_one_out_advantages(torch.tensor([[1.0, 2.0, 6.0]]))
    assert got.tolist() == [[-3.0, -1.5, 4.5]]
    with pytest.raises(ValueError, match="at least 2 responses"):
        leave_one_out_advantages(torch.tensor([[1.0]]))


def test_gae_by_hand() -> None:
    """γ = ½, λ = ½; δ = 1 + ½·2 − 4 = −2, then 3 − 2 = 1; A_2 = 1, A_1 = −2 + ¼·1."""
    estimate = generalised_advantage_estimate(
        torch.tensor([[1.0, 3.0, 9.0]]),
        torch.tensor([[4.0, 2.0, 9.0]]),
        torch.tensor([[True, True, False]]),
        gamma=0.5,
        lam=0.5,
    )
    assert estimate.advantages.tolist() == [[-1.75, 1.0, 0.0]]
    assert estimate.returns.tolist() == [[2.25, 3.0, 0.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (1.0, 0.0)])
def test_gae_is_the_double_sum_of_its_definition(gamma: float, lam: float) -> None:
    """A_t = Σ_k (γλ)^k δ_{t+k} over what is left of the response, row by row; padding is garbage."""
    rows, time = 7, 6
    rewards, values = torch.randn(2, rows, time, dtype=torch.float64)
    lengths = torch.arange(rows)  # the first response is empty, the last one full
    mask = torch.arange(time) < lengths.unsqueeze(-1)
    expected = torch.zeros(rows, time, dtype=torch.float64)
    for row in range(rows):
        length = int(lengths[row])
        for t in range(length):
            for k in range(length - t):
                following = values[row, t + k + 1] if t + k + 1 < length else 0.0
                delta = rewards[row, t + k] + gamma * following - values[row, t + k]
                expected[row, t] += (gamma * lam) ** k * delta
    nan = float("nan")
    got = generalised_advantage_estimate(
        rewards.masked_fill(~mask, nan), values.masked_fill(~mask, nan), mask, gamma=gamma, lam=lam
    )
    torch.testing.assert_close(got.advantages, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(got.returns, (expected + values).masked_fill(~mask, 0.0), rtol=1e-12, atol=1e-13)


def test_gae_with_lambda_one_is_return_minus_value() -> None:
    rewards, values = torch.randn(2, 4, 5, dtype=torch.float64)
    got = generalised_advantage_estimate(rewards, values, torch.ones(4, 5, dtype=torch.bool), lam=1.0)
    rewards_to_go = torch.stack([rewards[:, t:].sum(-1) for t in range(5)], -1)
    torch.testing.assert_close(got.advantages, rewards_to_go - values)
    torch.testing.assert_close(got.returns, rewards_to_go)
