"""PPO: clip cases and value clipping by hand, rewards and advantages as ``prepare`` writes them."""

import pytest
import torch

from p3o.algorithms import make_algorithm
from p3o.algorithms.ppo import ppo_policy_loss, ppo_value_loss
from p3o.functional.advantages import reward_gaps
from p3o.types import Experience

# advantage, ratio, objective, derivative by log π_θ, with ε = 0.2.
POLICY_CASES = [
    (2.0, 1.5, 2.4, 0.0),
    (2.0, 1.1, 2.2, 2.2),
    (2.0, 0.5, 1.0, 1.0),
    (-2.0, 1.5, -3.0, -3.0),
    (-2.0, 0.9, -1.8, -1.8),
    (-2.0, 0.5, -1.6, 0.0),
]


@pytest.mark.parametrize(("advantage", "ratio", "objective", "slope"), POLICY_CASES)
def test_policy_clip_by_hand(advantage: float, ratio: float, objective: float, slope: float) -> None:
    behaviour = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    policy = (behaviour + torch.tensor([ratio, 1.0], dtype=torch.float64).log()).requires_grad_()
    advantages = torch.tensor([[advantage, 0.0]], dtype=torch.float64)
    output = ppo_policy_loss(policy, behaviour, advantages, torch.ones(1, 2, dtype=torch.bool), epsilon=0.2)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(-objective / 2)  # the mean over two tokens, the other one at 0
    assert policy.grad is not None
    assert policy.grad[0].tolist() == pytest.approx([-slope / 2, 0.0])
    assert output.metrics["clip_fraction"].item() == (0.5 if slope == 0.0 else 0.0)


# value, value at sampling, return, epsilon, ½·error, derivative by value.
VALUE_CASES = [
    (1.1, 1.0, 3.0, 0.2, 0.5 * 1.9**2, -1.9),  # within the range
    (2.0, 1.0, 3.0, 0.2, 0.5 * 1.8**2, 0.0),  # moved past 1.2 towards the return: held at 1.2
    (0.5, 1.0, 3.0, 0.2, 0.5 * 2.5**2, -2.5),  # moved away: the larger, unclipped error counts
    (0.0, 1.0, -3.0, 0.2, 0.5 * 3.8**2, 0.0),  # towards the return from the other side: held at 0.8
    (2.0, 1.0, 3.0, None, 0.5 * 1.0**2, -1.0),
]


@pytest.mark.parametrize(("value", "old", "target", "epsilon", "loss", "slope"), VALUE_CASES)
def test_value_clip_by_hand(value, old, target, epsilon, loss, slope) -> None:
    values = torch.tensor([[value, 9.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False]])
    behaviour, returns = torch.tensor([[old, 5.0]]).double(), torch.tensor([[target, -7.0]]).double()
    output = ppo_value_loss(values, behaviour, returns, mask, epsilon=epsilon)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss)
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([slope, 0.0])


def test_moments_of_the_explained_variance_by_hand() -> None:
    """Returns 1 and 3, errors of ½ and ½; what is masked does not count."""
    returns = torch.tensor([[1.0, 3.0, 100.0]])
    values = torch.tensor([[1.5, 2.5, -50.0]])
    mask = torch.tensor([[True, True, False]])
    output = ppo_value_loss(values, values, returns, mask, epsilon=None)
    moments = {"value_error_mean_square": 0.25, "return_mean": 2.0, "return_mean_square": 5.0}
    assert {name: value.item() for name, value in output.metrics.items()} == pytest.approx(moments)


def two_responses() -> Experience:
    """Lengths 2 and 3; k_t = log π_old − log π_ref is 0.1 at every first token and 0.2 at every second, 0.4 at the third."""
    behaviour = torch.full((1, 2, 3), -1.0, dtype=torch.float64)
    rewards = torch.tensor([[5.0, -1.0]], dtype=torch.float64)
    return Experience(
        response_mask=torch.tensor([[[True, True, False], [True, True, True]]]),
        behaviour_logprobs=behaviour,
        reference_logprobs=behaviour - torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64),
        reward_gaps=reward_gaps(rewards),
        rewards=rewards,
        age=torch.zeros(1, dtype=torch.long),
        values=torch.zeros(1, 2, 3, dtype=torch.float64),
    )


def test_reward_stands_at_the_last_token_and_the_kl_penalty_at_each() -> None:
    """With V = 0 and λ = 0 the advantage of a token is its own reward; β = 0.5."""
    prepared = make_algorithm("ppo", beta=0.5, lam=0.0, whiten_advantages=False).prepare(two_responses())
    assert prepared.advantages is not None
    assert prepared.returns is not None
    assert prepared.advantages[0, 0].tolist() == pytest.approx([-0.05, 5.0 - 0.1, 0.0])
    assert prepared.advantages[0, 1].tolist() == pytest.approx([-0.05, -0.1, -1.0 - 0.2])
    torch.testing.assert_close(prepared.returns, prepared.advantages)


def test_advantages_are_whitened_over_response_tokens_but_returns_are_not() -> None:
    plain = make_algorithm("ppo", whiten_advantages=False).prepare(two_responses())
    white = make_algorithm("ppo", whiten_advantages=True).prepare(two_responses())
    assert white.advantages is not None
    assert white.returns is not None
    assert plain.advantages is not None
    chosen = white.advantages[white.response_mask]
    assert chosen.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert (chosen**2).mean().item() == pytest.approx(1.0, rel=1e-6)
    assert torch.equal(white.returns, plain.returns)
    unscaled = plain.advantages[plain.response_mask]
    torch.testing.assert_close(chosen, (unscaled - unscaled.mean()) / unscaled.std(correction=0))


def test_loss_adds_the_critics_with_its_coefficient() -> None:
    algorithm = make_algorithm("ppo", value_coefficient=0.25)
    prepared = algorithm.prepare(two_responses())
    values = torch.ones(1, 2, 3, dtype=torch.float64)
    output = algorithm.loss(prepared.behaviour_logprobs + 0.05, prepared, values)
    expected = output.metrics["policy_loss"] + 0.25 * output.metrics["value_loss"]
    assert output.loss.item() == pytest.approx(expected.item())
    assert output.metrics["value_loss"] > 0


def test_a_missing_critic_is_refused() -> None:
    with pytest.raises(ValueError, match="critic"):
        make_algorithm("ppo").prepare(two_responses().replace(values=None))
