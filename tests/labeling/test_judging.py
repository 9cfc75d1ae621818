"""A judge labels like anybody else, goes on where it stopped, and cannot say what is no preference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from tests.labeling.conftest import pairs

from p3o.errors import P3OError
from p3o.feedback.judge.scores import FunctionJudge
from p3o.labeling.exchange import export_labels
from p3o.labeling.judging import Judge, count_waiting, label_with_judge, prompt_text
from p3o.labeling.records import holding_records
from p3o.labeling.store import Store


@dataclass
class Verdict:
    preference: float


class Listed:
    """A judge that says what it is told to, and remembers what it was asked."""

    def __init__(self, preferences: Sequence[float]) -> None:
        self.preferences = list(preferences)
        self.asked: list[str] = []

    def compare(self, prompts: Sequence[str], responses_a: Sequence[str], responses_b: Sequence[str]) -> list[Verdict]:
        self.asked += prompts
        return [Verdict(self.preferences.pop(0)) for _ in prompts if self.preferences]


def test_verdicts_become_labels(store: Store) -> None:
    store.add_items(pairs(4))
    judge = Listed([0.8, -0.2, 0.1, 0.0])
    advanced: list[int] = []
    assert isinstance(judge, Judge)
    assert label_with_judge(store, judge, name="j", batch_size=3, tie_margin=0.1, advance=advanced.append) == 4
    assert advanced == [3, 1]
    records = holding_records(store)
    assert [(r.event.choice, r.event.preference) for r in records] == [
        ("a", 0.8),
        ("b", -0.2),
        ("tie", 0.1),
        ("tie", 0.0),
    ]
    assert {(r.annotator.role, r.event.seconds) for r in records} == {("judge", None)}
    assert len(export_labels(store).preferences) == 2
    assert store.verify()["labels"] == 4


def test_a_judge_that_was_stopped_goes_on_where_it_was(store: Store) -> None:
    store.add_items(pairs(5))
    with pytest.raises(P3OError, match="returned 1 verdicts for 2 pairs"):
        label_with_judge(store, Listed([1, 1, 1]), name="j", batch_size=2)
    assert count_waiting(store, "j") == 3
    second = Listed([1, 1, 1])
    assert label_with_judge(store, second, name="j") == 3
    assert second.asked == ["prompt 2", "prompt 3", "prompt 4"]
    assert label_with_judge(store, Listed([]), name="j") == 0


@pytest.mark.parametrize("wrong", [1.5, -2.0, math.nan, math.inf])
def test_a_verdict_out_of_range_is_told_and_kept_out(store: Store, wrong: float) -> None:
    store.add_items(pairs(2))
    with pytest.raises(P3OError, match=r"judge j: preference .* it must be in \[-1, 1\]"):
        label_with_judge(store, Listed([1.0, wrong]), name="j")
    assert holding_records(store) == []


def test_a_person_is_no_judge(store: Store) -> None:
    store.add_annotator("ada")
    with pytest.raises(P3OError, match="an annotator has this name"):
        label_with_judge(store, Listed([]), name="ada")


def test_a_function_is_a_judge_that_is_asked_in_both_orders(store: Store) -> None:
    """It always likes the first side best, unless one answer is good: asked in both orders, the bias cancels."""

    def biased(prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
        return [0.5 + 0.5 * x.startswith("good") - 0.5 * y.startswith("good") for x, y in zip(a, b, strict=True)]

    store.add_items(pairs(2))
    label_with_judge(store, FunctionJudge(biased, name="biased", contradictions="average"), name="biased")
    assert [r.event.preference for r in holding_records(store)] == [0.5, 0.5]


def test_a_conversation_is_one_text_for_a_judge() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert prompt_text(chat) == "System: Be brief.\n\nUser: Hi"
    assert prompt_text("Hi") == "Hi"
