"""What every algorithm in the table owes the training loop, whatever its equations."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from p3o.algorithms import ALGORITHMS, Algorithm, make_algorithm
from p3o.functional.advantages import reward_gaps
from p3o.functional.logprobs import sequence_logprobs
from p3o.types import Experience, LossOutput

ALL = sorted(ALGORITHMS)
ABSOLUTE = [name for name in ALL if not make_algorithm(name).accepts_comparisons]
# PPO and REINFORCE subtract nothing that knows the prompt: they are the negative control.
SHIFT_INVARIANT = [name for name in ALL if name not in ("ppo", "reinforce")]
GROUPS, TIME = 5, 6


def multiples_of_2_to_minus_10(*shape: int, limit: int) -> Tensor:
    return torch.randint(-limit * 1024, limit * 1024 + 1, shape).double() / 1024


def make_experience(responses: int = 4, *, dtype: torch.dtype = torch.float64) -> Experience:
    """Groups with responses of 1 to TIME tokens, off-policy enough for some clips."""
    lengths = torch.randint(1, TIME + 1, (GROUPS, responses, 1))
    rewards = multiples_of_2_to_minus_10(GROUPS, responses, limit=2)
    behaviour = -1.0 - torch.rand(GROUPS, responses, TIME, dtype=dtype)
    return Experience(
        response_mask=torch.arange(TIME) < lengths,
        behaviour_logprobs=behaviour,
        reference_logprobs=behaviour + 0.3 * torch.randn_like(behaviour),
        reward_gaps=reward_gaps(rewards),
        rewards=rewards,
        age=torch.zeros(GROUPS, dtype=torch.long),
        values=torch.randn_like(behaviour),
    )


def moved_policy(experience: Experience) -> tuple[Tensor, Tensor]:
    """Log-probs of a policy that has moved away from behaviour, and its critic's values."""
    behaviour = experience.behaviour_logprobs
    return behaviour + 0.3 * torch.randn_like(behaviour), torch.randn_like(behaviour)


def evaluate(
    algorithm: Algorithm, policy: Tensor, experience: Experience, values: Tensor
) -> tuple[LossOutput, Tensor, Tensor]:
    """Prepare, loss, backward: the output and the gradients by policy log-probs and by values."""
    policy, values = policy.clone().requires_grad_(), values.clone().requires_grad_()
    prepared = algorithm.prepare(experience)
    output = algorithm.loss(policy, prepared, values if algorithm.needs_critic else None)
    output.loss.backward()
    assert policy.grad is not None
    return output, policy.grad, values.grad if values.grad is not None else torch.zeros_like(values)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("responses", [2, 3, 5])
def test_loss_is_a_scalar_with_a_gradient_and_metrics_are_detached(name: str, responses: int) -> None:
    experience = make_experience(responses, dtype=torch.float32)
    output, by_policy, _ = evaluate(make_algorithm(name), *moved_and(experience))
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(output.loss)
    assert by_policy.abs().sum() > 0
    for metric in output.metrics.values():
        assert metric.shape == ()
        assert not metric.requires_grad
    assert {"ratio_mean", "ratio_mean_square", "ratio_max", "half_squared_log_ratio", "log_ratio_clamped"} <= set(
        output.metrics
    )


def moved_and(experience: Experience) -> tuple[Tensor, Experience, Tensor]:
    policy, values = moved_policy(experience)
    return policy, experience, values


@pytest.mark.parametrize("name", ALL)
def test_ratio_is_exactly_one_before_the_first_update(name: str) -> None:
    experience = make_experience(dtype=torch.float32)
    output, _, _ = evaluate(make_algorithm(name), experience.behaviour_logprobs, experience, torch.zeros(5, 4, 6))
    assert output.metrics["ratio_mean"] == 1.0
    assert output.metrics["ratio_max"] == 1.0
    assert output.metrics["half_squared_log_ratio"] == 0.0
    assert output.metrics.get("clip_fraction", torch.tensor(0.0)) == 0.0


@pytest.mark.parametrize("name", ALL)
def test_padding_may_hold_anything(name: str) -> None:
    """NaN, infinities and huge numbers in padding change neither the loss nor any gradient by a bit."""
    algorithm, experience = make_algorithm(name), make_experience()
    policy, values = moved_policy(experience)
    padding = ~experience.response_mask
    assert padding.any()
    clean = evaluate(algorithm, policy, experience, values)
    for garbage in (float("nan"), float("inf"), -1e30, 1e30):
        assert experience.values is not None
        dirty = experience.replace(
            behaviour_logprobs=experience.behaviour_logprobs.masked_fill(padding, garbage),
            reference_logprobs=experience.reference_logprobs.masked_fill(padding, garbage),
            values=experience.values.masked_fill(padding, garbage),
        )
        got = evaluate(algorithm, policy.masked_fill(padding, garbage), dirty, values.masked_fill(padding, garbage))
        assert torch.equal(got[0].loss, clean[0].loss)
        for metric, value in clean[0].metrics.items():
            assert torch.equal(got[0].metrics[metric], value), metric
        for by_dirty, by_clean in zip(got[1:], clean[1:], strict=True):
            assert torch.equal(by_dirty, by_clean)
            assert by_dirty[padding].eq(0).all()


@pytest.mark.parametrize("name", ALL)
def test_more_padding_changes_nothing(name: str) -> None:
    algorithm, experience = make_algorithm(name), make_experience()
    policy, values = moved_policy(experience)

    def pad(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, 3), value=0)

    assert experience.values is not None
    longer = experience.replace(
        response_mask=pad(experience.response_mask),
        behaviour_logprobs=pad(experience.behaviour_logprobs),
        reference_logprobs=pad(experience.reference_logprobs),
        values=pad(experience.values),
    )
    short = evaluate(algorithm, policy, experience, values)
    long = evaluate(algorithm, pad(policy), longer, pad(values))
    torch.testing.assert_close(long[0].loss, short[0].loss, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(long[1], pad(short[1]), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ALL)
def test_order_of_groups_and_of_responses_does_not_matter(name: str) -> None:
    algorithm, experience = make_algorithm(name), make_experience()
    policy, values = moved_policy(experience)
    groups, responses = torch.randperm(GROUPS), torch.randperm(4)
    assert not torch.equal(responses, torch.arange(4))

    def permute(tensor: Tensor) -> Tensor:
        return tensor[groups][:, responses]

    assert experience.values is not None
    assert experience.rewards is not None
    permuted = experience.replace(
        response_mask=permute(experience.response_mask),
        behaviour_logprobs=permute(experience.behaviour_logprobs),
        reference_logprobs=permute(experience.reference_logprobs),
        reward_gaps=permute(experience.reward_gaps)[:, :, responses],
        rewards=permute(experience.rewards),
        values=permute(experience.values),
    )
    output, by_policy, by_values = evaluate(algorithm, policy, experience, values)
    got, got_by_policy, got_by_values = evaluate(algorithm, permute(policy), permuted, permute(values))
    torch.testing.assert_close(got.loss, output.loss, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(got_by_policy, permute(by_policy), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(got_by_values, permute(by_values), rtol=1e-12, atol=1e-14)
    for metric, value in output.metrics.items():
        torch.testing.assert_close(got.metrics[metric], value, rtol=1e-12, atol=1e-14)


def shifted(experience: Experience, size: int) -> Experience:
    assert experience.rewards is not None
    rewards = experience.rewards + multiples_of_2_to_minus_10(GROUPS, 1, limit=size)
    return experience.replace(rewards=rewards, reward_gaps=reward_gaps(rewards))


@pytest.mark.parametrize("name", SHIFT_INVARIANT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 1000])
def test_a_shift_of_the_reward_on_each_prompt_changes_no_bit(name: str, dtype: torch.dtype, size: int) -> None:
    algorithm, experience = make_algorithm(name), make_experience(dtype=dtype)
    policy, values = moved_policy(experience)
    before, before_gradient, _ = evaluate(algorithm, policy, experience, values)
    after, after_gradient, _ = evaluate(algorithm, policy, shifted(experience, size), values)
    assert torch.equal(before.loss, after.loss)
    assert torch.equal(before_gradient, after_gradient)


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_a_shift_of_the_reward_changes_the_negative_controls(name: str) -> None:
    algorithm, experience = make_algorithm(name), make_experience()
    policy, values = moved_policy(experience)
    _, before, _ = evaluate(algorithm, policy, experience, values)
    _, after, _ = evaluate(algorithm, policy, shifted(experience, 10), values)
    assert (after - before).norm() > 0.5 * before.norm()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("distance", [21.0, 500.0])
def test_absurd_ratios_are_clamped_counted_and_stay_finite(name: str, distance: float) -> None:
    """One response's first token is ``distance`` nats likelier than when sampled, another's as much less likely."""
    algorithm, experience = make_algorithm(name), make_experience(dtype=torch.float32)
    policy = experience.behaviour_logprobs.clone()
    policy[0, 0, 0] += distance
    policy[1, 1, 0] -= distance
    output, by_policy, _ = evaluate(algorithm, policy, experience, torch.zeros_like(policy))
    assert output.metrics["log_ratio_clamped"] == 2
    assert torch.isfinite(output.loss)
    assert torch.isfinite(by_policy).all()
    for metric, value in output.metrics.items():
        assert torch.isfinite(value), metric


@pytest.mark.parametrize("name", ALL)
def test_comparisons_suffice_or_are_refused(name: str) -> None:
    algorithm, experience = make_algorithm(name), make_experience()
    policy, values = moved_policy(experience)
    comparisons = experience.replace(rewards=None)
    if name in ABSOLUTE:
        with pytest.raises(ValueError, match="cannot learn from comparisons alone"):
            algorithm.prepare(comparisons)
    else:
        with_rewards, _, _ = evaluate(algorithm, policy, experience, values)
        without, _, _ = evaluate(algorithm, policy, comparisons, values)
        assert torch.equal(without.loss, with_rewards.loss)


def test_who_accepts_comparisons_and_who_needs_a_critic() -> None:
    assert set(ABSOLUTE) == {"grpo", "ppo", "reinforce", "rloo"}
    assert [name for name in ALL if make_algorithm(name).needs_critic] == ["ppo"]


@pytest.mark.parametrize("name", sorted(set(ALL) - {"ppo", "reinforce"}))
def test_a_single_response_per_prompt_is_refused(name: str) -> None:
    experience = make_experience(1)
    policy, values = moved_policy(experience)
    with pytest.raises(ValueError, match="at least 2 responses per prompt"):
        evaluate(make_algorithm(name), policy, experience, values)


@pytest.mark.parametrize("name", ALL)
def test_a_minibatch_sees_its_own_groups_only(name: str) -> None:
    """The mean of the losses of two equal minibatches is the loss of both (PPO weighs by tokens, so equal masks)."""
    algorithm, experience = make_algorithm(name), make_experience()
    mask = torch.ones_like(experience.response_mask)
    prepared = algorithm.prepare(experience.replace(response_mask=mask))
    policy, values = moved_policy(experience)

    def loss(groups: list[int]) -> Tensor:
        index = torch.tensor(groups)
        critic = values[index] if algorithm.needs_critic else None
        return algorithm.loss(policy[index], prepared.select(index), critic).loss

    torch.testing.assert_close(loss([0, 1, 2, 3]), (loss([2, 0]) + loss([3, 1])) / 2, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ALL)
def test_settings_are_frozen_and_checked(name: str) -> None:
    config = make_algorithm(name, beta=0.25).config
    assert config.beta == 0.25
    with pytest.raises(ValidationError, match="frozen"):
        config.beta = 0.5  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        make_algorithm(name, temperature=1.0)
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        make_algorithm(name, beta=-0.1)


@pytest.mark.parametrize("name", ALL)
def test_sequence_metrics_are_those_of_whole_responses(name: str) -> None:
    experience = make_experience()
    policy, values = moved_policy(experience)
    output, _, _ = evaluate(make_algorithm(name), policy, experience, values)
    log_ratio = sequence_logprobs(policy - experience.behaviour_logprobs, experience.response_mask)
    assert output.metrics["ratio_max"].item() == pytest.approx(log_ratio.max().exp().item())
    assert output.metrics["ratio_mean_square"].item() == pytest.approx(log_ratio.exp().square().mean().item())
    assert output.metrics["half_squared_log_ratio"].item() == pytest.approx((log_ratio**2).mean().item() / 2)
