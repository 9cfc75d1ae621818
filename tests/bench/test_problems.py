"""The benchmark's problems are exact: enumeration against sampling, factorisation against enumeration, nothing above Gibbs."""

from itertools import product

import pytest
import torch

from p3o.bench.bandit import ShiftedBandit
from p3o.bench.factorised import Factorised
from p3o.bench.problems import Problem, choose, exact_point
from p3o.bench.sequence import EnumerableSequence
from p3o.functional.masked import masked_sum

SEEDS = [3, 4]


def problems() -> list[Problem]:
    return [ShiftedBandit(SEEDS, 10.0), EnumerableSequence(SEEDS), Factorised(SEEDS, 6)]


@pytest.mark.parametrize("which", range(3))
def test_training_begins_at_the_reference_and_the_critic_at_zero(which: int) -> None:
    problem = problems()[which]
    prompts = problem.prompts(5)
    rollout = problem.sample(problem.initial_policy(), prompts, 2)
    inputs = problem.encode(prompts, rollout.tokens)
    assert problem.evaluate(problem.initial_policy()).kl.abs().max() < 1e-6
    assert torch.equal(
        problem.values(problem.initial_critic(), inputs, rollout.tokens), torch.zeros(rollout.tokens.shape)
    )


@pytest.mark.parametrize("which", range(3))
def test_nothing_lies_above_the_gibbs_policys_objective(which: int) -> None:
    problem = problems()[which]
    best = problem.gibbs(0.4)
    start = problem.initial_policy()
    for scale in (0.0, 0.1, 1.0):
        point = problem.evaluate(start + scale * torch.randn(start.shape))
        assert (point.reward - 0.4 * point.kl <= best.reward - 0.4 * best.kl + 1e-9).all()
        assert (point.kl >= -1e-6).all()


def test_bandit_shifts_move_rewards_and_nothing_else() -> None:
    plain, shifted = ShiftedBandit(SEEDS, 0.0), ShiftedBandit(SEEDS, 100.0)
    prompts = plain.prompts(20)
    assert torch.equal(prompts, shifted.prompts(20))
    ours = plain.sample(plain.initial_policy(), prompts, 4)
    assert torch.equal(ours.tokens, shifted.sample(shifted.initial_policy(), prompts, 4).tokens)
    gap = shifted.rewards(prompts, ours) - plain.rewards(prompts, ours)
    assert torch.equal(gap, gap[..., :1].expand_as(gap))
    assert gap.std() > 50
    assert torch.equal(plain.gibbs(0.2).kl, shifted.gibbs(0.2).kl)


def test_factorised_points_equal_enumeration() -> None:
    problem = Factorised(SEEDS, 3)
    policy = problem.initial_policy() + 0.5 * torch.randn(len(SEEDS), 3 * 3 * 4)
    outcomes = torch.tensor(list(product(range(4), repeat=3)))
    prompts = problem._evaluation_prompts.float()
    tokens = outcomes.expand(len(SEEDS), prompts.shape[1], -1, -1)
    logprobs, reference = (
        problem.logprobs(weights, prompts, tokens).double().sum(-1) for weights in (policy, problem.initial_policy())
    )
    table = problem._token_rewards(problem._effects, problem._evaluation_prompts)
    rewards = table.gather(-1, tokens.transpose(2, 3)).sum(2)
    enumerated, exact = exact_point(logprobs, reference, rewards), problem.evaluate(policy)
    assert torch.allclose(enumerated.reward, exact.reward, atol=1e-5)
    assert torch.allclose(enumerated.kl, exact.kl, atol=1e-5)


def test_factorised_reward_has_unit_variance_under_the_reference() -> None:
    problem = Factorised(SEEDS, 20)
    variance = problem._variance(problem._token_rewards(problem._effects, problem._evaluation_prompts)).mean(-1)
    assert torch.allclose(variance, torch.ones(2, dtype=torch.float64))


def test_factorised_critic_can_be_the_true_value_function() -> None:
    problem = Factorised([3], 5)
    prompts = problem.prompts(4)
    rollout = problem.sample(problem.initial_policy(), prompts, 2)
    weights = torch.cat([problem._effects, torch.zeros(1, 5, 3, 1)], -1)
    weights[..., -1] = problem._offset[:, None]  # φ(x)·b at every position
    values = problem.values(weights.float().flatten(1), prompts, rollout.tokens)
    last = problem._token_rewards(problem._effects, prompts.double())[:, :, -1].gather(-1, rollout.tokens[..., -1])
    assert torch.allclose(values[..., -1] + last, problem.rewards(prompts, rollout), atol=2e-3)


def test_sequence_responses_are_all_enumerated() -> None:
    problem = EnumerableSequence(SEEDS)
    assert problem._responses.shape == (364, 5)
    assert len({tuple(row) for row in problem._responses.tolist()}) == 364
    assert torch.allclose(problem._reference_logprobs.exp().sum(-1), torch.ones(2, 24, dtype=torch.float64))


def test_sequence_enumeration_agrees_with_the_log_probs_of_training() -> None:
    problem = EnumerableSequence(SEEDS)
    policy = problem.initial_policy() + 0.3 * torch.randn(problem.initial_policy().shape)
    tokens = problem._responses.expand(2, 24, -1, -1)
    each = problem.logprobs(policy, problem.encode(problem._held_out, tokens), tokens)
    sums = masked_sum(each, problem._response_mask.expand(2, 24, -1, -1))
    assert torch.allclose(sums.double(), problem._response_logprobs(policy), atol=1e-4)


def test_sequence_samples_end_where_the_mask_ends_and_follow_the_enumerated_probabilities() -> None:
    problem = EnumerableSequence([3])
    rollout = problem.sample(problem.initial_policy(), problem._held_out[:, :1], 4000)
    ended = (rollout.tokens == 0).int().cumsum(-1).roll(1, -1)
    ended[..., 0] = 0
    assert torch.equal(rollout.response_mask, ended == 0)
    length_one = (rollout.response_mask.sum(-1) == 1).float().mean()
    expected = problem._reference_logprobs[0, 0, 0].exp()
    assert abs(length_one - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5 + 1e-3


def test_sequence_held_out_prompts_are_never_trained_on() -> None:
    problem = EnumerableSequence(SEEDS)
    for train, held_out in zip(problem._train.tolist(), problem._held_out.tolist(), strict=True):
        assert not {tuple(prompt) for prompt in train} & {tuple(prompt) for prompt in held_out}


def test_inverse_cdf_sampling() -> None:
    probabilities = torch.tensor([0.2, 0.0, 0.8]).expand(4, 3)
    assert choose(probabilities, torch.tensor([0.0, 0.1, 0.3, 0.9999999])).tolist() == [0, 0, 2, 2]
