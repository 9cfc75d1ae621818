"""A weighted sum of rewards, by hand."""

from collections.abc import Sequence

import pytest

from p3o.errors import P3OError
from p3o.feedback.combined import CombinedReward, WeightedReward

PROMPTS, RESPONSES = ["x", "x", "y"], ["a", "bbb", "cc"]


def length(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [float(len(response)) for response in responses]


def is_a(prompts: Sequence[str], responses: Sequence[str]) -> list[int]:
    return [int(response == "a") for response in responses]


def test_the_sum_is_weighted() -> None:
    reward = CombinedReward({"length": WeightedReward(length, -0.5), "a": WeightedReward(is_a, 10)})
    assert reward(PROMPTS, RESPONSES) == [9.5, -1.5, -1.0]


def test_means_are_of_each_part_before_its_weight_since_last_taken() -> None:
    reward = CombinedReward({"length": WeightedReward(length, -0.5), "a": WeightedReward(is_a)})
    assert reward.take_means() == {}
    reward(PROMPTS, RESPONSES)
    reward(["x"], ["dddddd"])
    assert reward.take_means() == {"reward_length": 3.0, "reward_a": 0.25}
    assert reward.take_means() == {}
    reward(["x"], ["a"])
    assert reward.take_means() == {"reward_length": 1.0, "reward_a": 1.0}


def test_a_part_that_miscounts_is_named() -> None:
    reward = CombinedReward({"short": WeightedReward(lambda prompts, responses: [1.0])})
    with pytest.raises(P3OError, match=r"reward 'short': 1 rewards for 3 responses"):
        reward(PROMPTS, RESPONSES)


@pytest.mark.parametrize("parts", [{}, {"length": WeightedReward(length, 0.0)}])
def test_a_sum_of_nothing_is_refused(parts: dict[str, WeightedReward]) -> None:
    with pytest.raises(P3OError, match=r"a weighted sum needs at least one reward"):
        CombinedReward(parts)
