"""The replay buffer: whole groups, each with its own behaviour policy, ages, padding and fair minibatches."""

import pytest
import torch

from p3o.functional.advantages import reward_gaps
from p3o.training.replay import ReplayBuffer, concatenate, fresh_groups, stratified_minibatches
from p3o.types import Experience


def experience(groups: int, time: int, *, fill: float = 0.0, scored: bool = True) -> Experience:
    rewards = torch.arange(groups * 2, dtype=torch.float64).reshape(groups, 2) + fill
    return Experience(
        response_mask=torch.ones(groups, 2, time, dtype=torch.bool),
        behaviour_logprobs=torch.full((groups, 2, time), fill),
        reference_logprobs=torch.full((groups, 2, time), -fill),
        reward_gaps=reward_gaps(rewards),
        rewards=rewards if scored else None,
        age=torch.zeros(groups, dtype=torch.long),
    )


def test_batches_age_keep_their_behaviour_policy_and_the_oldest_leaves() -> None:
    buffer: ReplayBuffer[str] = ReplayBuffer(2)
    for step in range(4):
        buffer.add(experience(3, 5, fill=float(step)), [f"{step}.{i}" for i in range(3)])
    held = buffer.experience()
    assert held.age.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert held.behaviour_logprobs[:, 0, 0].tolist() == [3, 3, 3, 2, 2, 2, 1, 1, 1]
    assert buffer.rows() == ["3.0", "3.1", "3.2", "2.0", "2.1", "2.2", "1.0", "1.1", "1.2"]
    assert fresh_groups(held).tolist() == [True] * 3 + [False] * 6
    assert len(buffer) == 9


def test_groups_that_come_late_go_on_ageing_from_there() -> None:
    buffer: ReplayBuffer[int] = ReplayBuffer(1)
    for row, lag in enumerate([0, 1, 2, 2]):
        late = experience(1, 3)
        buffer.add(late.replace(age=late.age + lag), [row])
        assert buffer.experience().age.tolist()[0] == lag
    assert buffer.experience().age.tolist() == [2, 3]
    assert not fresh_groups(buffer.experience()).any()


def test_capacity_zero_is_the_fresh_batch_alone() -> None:
    buffer: ReplayBuffer[int] = ReplayBuffer(0)
    buffer.add(experience(2, 3, fill=1.0), [0, 1])
    buffer.add(experience(2, 3, fill=2.0), [2, 3])
    assert buffer.rows() == [2, 3]
    assert buffer.experience().age.tolist() == [0, 0]


def test_restoring_from_batches_equals_the_original() -> None:
    buffer: ReplayBuffer[int] = ReplayBuffer(3)
    for step in range(3):
        buffer.add(experience(2, 3 + step, fill=float(step)), [2 * step, 2 * step + 1])
    restored: ReplayBuffer[int] = ReplayBuffer(3)
    for batch, rows in buffer.batches():
        restored.put_back(batch, rows)
    assert restored.rows() == buffer.rows()
    for name, tensor in vars(buffer.experience()).items():
        other = getattr(restored.experience(), name)
        assert tensor is other is None or torch.equal(tensor, other)


def test_shorter_batches_are_padded_with_masked_positions() -> None:
    joined = concatenate([experience(1, 2, fill=1.0), experience(1, 4, fill=2.0)])
    assert joined.response_mask[0, 0].tolist() == [True, True, False, False]
    assert joined.behaviour_logprobs[0, 0].tolist() == [1, 1, 0, 0]
    assert joined.response_mask[1].all()


def test_comparisons_beside_scores_are_comparisons_only() -> None:
    joined = concatenate([experience(1, 2), experience(1, 2, scored=False)])
    assert joined.rewards is None
    assert joined.reward_gaps.shape == (2, 2, 2)


def test_prepared_fields_do_not_survive_into_the_buffer() -> None:
    stale = experience(1, 2)
    tokens = torch.ones(1, 2, 2)
    buffer: ReplayBuffer[int] = ReplayBuffer(1)
    buffer.add(stale.replace(values=tokens, advantages=tokens, returns=tokens, start_logprobs=tokens), [0])
    held = buffer.experience()
    assert held.values is None
    assert held.advantages is None
    assert held.returns is None
    assert held.start_logprobs is None


@pytest.mark.parametrize("minibatches", [1, 2, 3, 4])
def test_minibatches_hold_every_group_once_and_equal_shares_of_each_age(minibatches: int) -> None:
    age = torch.tensor([0] * 8 + [1] * 8 + [2] * 5)
    parts = stratified_minibatches(age, minibatches, torch.Generator().manual_seed(1))
    assert sorted(torch.cat(parts).tolist()) == list(range(21))
    for value in (0, 1, 2):
        counts = [int((age[part] == value).sum()) for part in parts]
        assert max(counts) - min(counts) <= 1


def test_minibatches_repeat_with_the_seed_and_differ_without() -> None:
    age = torch.zeros(16, dtype=torch.long)
    first = stratified_minibatches(age, 2, torch.Generator().manual_seed(5))
    again = stratified_minibatches(age, 2, torch.Generator().manual_seed(5))
    other = stratified_minibatches(age, 2, torch.Generator().manual_seed(6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_errors_say_what_is_wrong() -> None:
    buffer: ReplayBuffer[int] = ReplayBuffer(1)
    with pytest.raises(ValueError, match="add a batch first"):
        buffer.experience()
    with pytest.raises(ValueError, match="as many rows"):
        buffer.add(experience(2, 2), [0])
    with pytest.raises(ValueError, match="lower minibatches"):
        stratified_minibatches(torch.zeros(2, dtype=torch.long), 3, torch.Generator())
    with pytest.raises(ValueError, match="at least 0"):
        ReplayBuffer(-1)
