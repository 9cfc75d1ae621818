"""What the evaluation makes of responses without a reward."""

import math
from dataclasses import replace

import pytest

from p3o.evaluation.policy import PolicyEvaluation
from p3o.stages.evaluate import compare

NAN = float("nan")


def evaluated(rewards: list[float]) -> PolicyEvaluation:
    n = len(rewards)
    return PolicyEvaluation(["text"] * n, rewards, None, [0.5] * n, [0.5] * n, [3] * n, [True] * n)


def test_a_prompt_with_an_unscored_response_is_in_no_comparison() -> None:
    policies = {"a": evaluated([1.0, NAN, 3.0, 5.0]), "b": evaluated([0.0, 1.0, NAN, 6.0])}
    (row,) = compare(policies)
    assert (row["wins"], row["ties"], row["losses"]) == (1, 0, 1)
    assert compare({"a": evaluated([1.0, NAN]), "b": evaluated([NAN, 1.0])}) == []


@pytest.mark.parametrize("finite", [0, 1])
def test_a_figure_of_fewer_than_two_responses_is_left_out(finite: int) -> None:
    gold = [2.0] * finite + [NAN] * (3 - finite)
    summary = replace(evaluated([1.0, 3.0, 5.0]), gold=gold).summary()
    assert {"gold", "gold_se"}.isdisjoint(summary)
    assert (summary["prompts"], summary["reward"]) == (3, 3.0)


def test_the_means_are_of_the_scored_and_the_others_are_counted() -> None:
    summary = evaluated([1.0, NAN, 3.0, 5.0]).summary()
    assert (summary["prompts"], summary["unscored"], summary["reward"], summary["kl"]) == (4, 1, 3.0, 0.5)
    assert math.isclose(summary["reward_se"], 2 / math.sqrt(3))
    assert ["reward" in row for row in evaluated([1.0, NAN]).rows()] == [True, False]
    assert "unscored" not in evaluated([1.0, 2.0]).summary()
