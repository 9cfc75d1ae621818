"""P3O-R's claims on one prompt with a handful of responses, where every expectation is a finite sum (float64)."""

import pytest
import torch
from torch import Tensor

from p3o.algorithms import make_algorithm
from p3o.algorithms.p3o import p3o_joint_clip_loss
from p3o.algorithms.p3o_residual import p3o_residual_loss
from p3o.functional.advantages import reward_gaps
from p3o.types import Experience

BETA = 0.3
OUTCOMES = 6


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, and logits of a reference and of a behaviour policy that is far from both reference and optimum."""
    generator = torch.Generator().manual_seed(11)
    rewards, reference, behaviour = (torch.randn(OUTCOMES, generator=generator, dtype=torch.float64) for _ in range(3))
    return rewards, reference, 2.0 * behaviour


def loss_of(
    logits: Tensor, behaviour: Tensor, reference: Tensor, rewards: Tensor, chosen: Tensor, **settings: object
) -> Tensor:
    """The loss on groups of responses with these indices, ``[group, response]``."""
    policy, old, ref = (torch.log_softmax(x, -1)[chosen] for x in (logits, behaviour, reference))
    arguments: dict[str, object] = {"beta": BETA, "epsilon": None, "importance": 0.0, **settings}
    return p3o_residual_loss(policy, old, ref, reward_gaps(rewards[chosen]), **arguments).loss  # type: ignore[arg-type]


def gradient(logits: Tensor, *rest: Tensor, **settings: object) -> Tensor:
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(loss_of(leaf, *rest, **settings), leaf)[0]


ALL_PAIRS = torch.cartesian_prod(torch.arange(OUTCOMES), torch.arange(OUTCOMES))


@pytest.mark.parametrize("settings", [{}, {"importance": 1.0}, {"importance": 0.5, "epsilon": 0.2}])
@pytest.mark.parametrize("pair", ALL_PAIRS[::5].tolist())
def test_every_single_pair_has_zero_gradient_at_the_gibbs_policy(
    problem: tuple[Tensor, Tensor, Tensor], pair: list[int], settings: dict[str, float]
) -> None:
    rewards, reference, behaviour = problem
    gibbs = torch.log_softmax(reference, -1) + rewards / BETA
    assert gradient(gibbs, behaviour, reference, rewards, torch.tensor([pair]), **settings).abs().max() < 1e-13


def test_v2_with_a_frozen_kl_is_not_at_rest_there(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    """The negative control: on stale pairs the paper's gap is biased by β times the distance travelled."""
    rewards, reference, behaviour = problem
    gibbs = (torch.log_softmax(reference, -1) + rewards / BETA).requires_grad_()
    chosen = torch.tensor([[0, 1, 2, 3]])
    policy, old, ref = (torch.log_softmax(x, -1)[chosen] for x in (gibbs, behaviour, reference))
    loss = p3o_joint_clip_loss(policy, old, ref, reward_gaps(rewards[chosen]), epsilon=1e9, beta=BETA).loss
    assert torch.autograd.grad(loss, gibbs)[0].abs().max() > 1e-3


def test_descent_on_a_fixed_stale_batch_reaches_the_gibbs_policy(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    rewards, reference, behaviour = problem
    chosen = torch.tensor([[0, 1, 2], [2, 3, 3], [4, 5, 0]])  # connects all responses; from no policy in particular
    logits = reference.clone()
    for _ in range(4000):
        logits = logits - 0.5 / BETA * gradient(logits, behaviour, reference, rewards, chosen)
    reached = torch.softmax(logits, -1)
    assert torch.allclose(reached, torch.softmax(torch.log_softmax(reference, -1) + rewards / BETA, -1), atol=1e-9)


def test_unweighted_gradient_is_that_of_the_squared_residual(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    rewards, reference, behaviour = problem
    logits = (0.7 * behaviour + 0.3).requires_grad_()
    k = torch.log_softmax(logits, -1) - torch.log_softmax(reference, -1)
    residual = (rewards[1] - rewards[4]) - BETA * (k[1] - k[4])
    expected = torch.autograd.grad(residual**2 / (4 * BETA), logits)[0]
    actual = gradient(logits.detach(), behaviour, reference, rewards, torch.tensor([[1, 4]]))
    assert torch.allclose(actual, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("importance", [0.0, 0.5, 1.0])
def test_on_policy_it_is_p3o_v2(problem: tuple[Tensor, Tensor, Tensor], importance: float) -> None:
    rewards, reference, behaviour = problem
    chosen = torch.tensor([[0, 2, 5, 1], [3, 3, 4, 0]])
    leaf = behaviour.clone().requires_grad_()
    policy, old, ref = (torch.log_softmax(x, -1)[chosen] for x in (leaf, behaviour, reference))
    v2 = p3o_joint_clip_loss(policy, old, ref, reward_gaps(rewards[chosen]), epsilon=0.2, beta=BETA).loss
    ours = gradient(behaviour, behaviour, reference, rewards, chosen, importance=importance, epsilon=0.2)
    assert torch.allclose(ours, torch.autograd.grad(v2, leaf)[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("importance", "unbiased"), [(1.0, True), (0.0, False)])
def test_expected_gradient_off_policy(
    problem: tuple[Tensor, Tensor, Tensor], importance: float, unbiased: bool
) -> None:
    """With α = 1 it is the objective's own gradient, whoever sampled; with α = 0 only its zero is the same."""
    rewards, reference, behaviour = problem
    logits = (0.5 * reference - 0.2 * behaviour).requires_grad_()
    logprobs, old = torch.log_softmax(logits, -1), torch.softmax(behaviour, -1)
    objective = (logprobs.exp() * (rewards - BETA * (logprobs - torch.log_softmax(reference, -1)))).sum()
    exact = torch.autograd.grad(objective, logits)[0]
    each = torch.stack(
        [
            gradient(logits.detach(), behaviour, reference, rewards, pair[None], importance=importance)
            for pair in ALL_PAIRS
        ]
    )
    expected = -((old[ALL_PAIRS[:, 0]] * old[ALL_PAIRS[:, 1]]).unsqueeze(-1) * each).sum(0)
    assert torch.allclose(expected, exact, atol=1e-12) == unbiased


def experience(rewards: Tensor, shape: tuple[int, int, int]) -> Experience:
    generator = torch.Generator().manual_seed(3)
    return Experience(
        response_mask=torch.rand(shape, generator=generator) < 0.8,
        behaviour_logprobs=-torch.rand(shape, generator=generator),
        reference_logprobs=-torch.rand(shape, generator=generator),
        reward_gaps=reward_gaps(rewards),
        rewards=rewards,
        age=torch.tensor([0, 3]),
    )


def test_a_shift_of_a_prompts_rewards_changes_no_bit() -> None:
    generator = torch.Generator().manual_seed(5)
    rewards = torch.randint(-3000, 3000, (2, 4), generator=generator).double() / 1024
    shift = torch.tensor([[100.5], [-7.25]], dtype=torch.float64)
    policy = (-torch.rand(2, 4, 5, generator=generator)).requires_grad_()
    algorithm = make_algorithm("p3o_r", beta=0.1)
    plain = torch.autograd.grad(algorithm.loss(policy, experience(rewards, (2, 4, 5))).loss, policy)[0]
    shifted = torch.autograd.grad(algorithm.loss(policy, experience(rewards + shift, (2, 4, 5))).loss, policy)[0]
    assert torch.equal(plain, shifted)
    assert plain.abs().sum() > 0


def pair_gradient(distance: float, lengths: tuple[int, int], **settings: object) -> Tensor:
    """Of one pair whose better response has moved up by ``distance``, with respect to the policy's log-probs."""
    mask = torch.arange(6) < torch.tensor([lengths]).unsqueeze(-1)
    old = -torch.ones(1, 2, 6, dtype=torch.float64)
    better = Experience(
        response_mask=mask,
        behaviour_logprobs=old,
        reference_logprobs=old,
        reward_gaps=reward_gaps(torch.tensor([[9.0, 0.0]], dtype=torch.float64)),
        rewards=None,
        age=torch.zeros(1, dtype=torch.long),
    )
    policy = old.clone()
    policy[0, 0, 0] += distance
    policy.requires_grad_()
    return torch.autograd.grad(make_algorithm("p3o_r", beta=0.1, **settings).loss(policy, better).loss, policy)[0]


def test_a_clip_per_token_lets_a_pair_move_by_epsilon_times_its_mean_length() -> None:
    """Lengths 2 and 4 at ε = .07: up to .21; a clip per response at ε = .07 stops both."""
    assert pair_gradient(0.205, (2, 4), epsilon=0.07, clip_per="token").abs().sum() > 1
    assert pair_gradient(0.215, (2, 4), epsilon=0.07, clip_per="token").abs().sum() == 0
    assert pair_gradient(0.065, (2, 4), epsilon=0.07).abs().sum() > 1
    assert pair_gradient(0.075, (2, 4), epsilon=0.07).abs().sum() == 0
    assert pair_gradient(0.39, (6, 6), epsilon=0.07, clip_per="token").abs().sum() > 1


def test_without_an_epsilon_no_pair_is_left_alone() -> None:
    assert pair_gradient(5.0, (2, 4)).abs().sum() > 1


def test_inside_its_range_a_clip_changes_nothing() -> None:
    clipped = pair_gradient(0.2, (2, 4), epsilon=0.07, clip_per="token")
    assert torch.equal(clipped, pair_gradient(0.2, (2, 4), epsilon=None))


def test_comparisons_suffice_and_single_responses_do_not() -> None:
    rewards = torch.tensor([[1.0, 0.0], [0.5, 2.0]], dtype=torch.float64)
    algorithm = make_algorithm("p3o_r")
    policy = -torch.ones(2, 2, 3)
    scored = experience(rewards, (2, 2, 3))
    assert algorithm.loss(policy, scored.replace(rewards=None)).loss == algorithm.loss(policy, scored).loss
    with pytest.raises(ValueError, match="at least 2 responses"):
        algorithm.loss(policy[:, :1], experience(rewards[:, :1], (2, 1, 3)))
