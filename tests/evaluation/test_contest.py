"""Two files against each other: lengths in one unit, whichever file they come from, and intervals over prompts."""

import json
from pathlib import Path
from typing import Any

import pytest

from p3o.evaluation.contest import read_file_contest, read_run_contest
from p3o.evaluation.judging import judge_contest
from p3o.feedback.judge import Verdict

PROMPTS = [f"Question {i}?" for i in range(40)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(words: list[int], *, tokens_a_word: float | None) -> list[dict[str, Any]]:
    """A response of so many words to each prompt; its length in tokens, if the file is to have it."""
    return [
        {"prompt": prompt, "response": " ".join(["word"] * n)}
        | ({} if tokens_a_word is None else {"length": round(n * tokens_a_word)})
        for prompt, n in zip(PROMPTS, words, strict=False)
    ]


class LongerWins:
    name = "longer"

    def compare(self, prompts: list[str], a: list[str], b: list[str], **_: object) -> list[Verdict]:
        signs = [(len(x) > len(y)) - (len(x) < len(y)) for x, y in zip(a, b, strict=True)]
        return [Verdict(float(sign)) for sign in signs]


def test_tokens_on_one_side_and_words_on_the_other_are_never_subtracted(tmp_path: Path) -> None:
    """Both sides write equally long; a judge of length alone must find the two equal, at any and at equal length."""
    words = [5 + i % 7 for i in range(40)]
    a = write(tmp_path / "ours.jsonl", rows(words, tokens_a_word=3.0))
    b = write(tmp_path / "theirs.jsonl", rows(words[::-1], tokens_a_word=None))
    contest = read_file_contest(a, b)
    assert contest.unit == "words"
    assert [contest.entries["ours"][n].length for n in range(40)] == words
    assert [contest.entries["theirs"][n].length for n in range(40)] == words[::-1]
    [judged] = judge_contest(contest, [("ours", "theirs")], LongerWins())
    assert judged.length_controlled is not None
    assert judged.length_controlled.win_rate == pytest.approx(0.5, abs=0.02)
    assert (judged.by_length[0].low, judged.by_length[-1].high) == (-4.0, 4.0)


def test_lengths_of_the_files_hold_where_every_response_has_one(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", rows([3, 4], tokens_a_word=2.0))
    b = write(tmp_path / "b.jsonl", rows([5, 6], tokens_a_word=2.0))
    contest = read_file_contest(a, b)
    assert contest.unit == "tokens"
    assert {name: [e.length for e in found.values()] for name, found in contest.entries.items()} == {
        "a": [6.0, 8.0],
        "b": [10.0, 12.0],
    }
    assert contest.first(1).unit == "tokens"


@pytest.mark.parametrize("length", [None, True, "12", -1, float("nan"), float("inf"), pytest.param(10**400, id="huge")])
def test_one_row_without_a_length_that_can_be_one_puts_all_into_words(tmp_path: Path, length: object) -> None:
    found = rows([3, 4, 5], tokens_a_word=2.0)
    a = write(tmp_path / "a.jsonl", [*found[:2], found[2] | {"length": length}])
    b = write(tmp_path / "b.jsonl", found)
    contest = read_file_contest(a, b)
    assert contest.unit == "words"
    assert [e.length for name in "ab" for e in contest.entries[name].values()] == [3.0, 4.0, 5.0] * 2


def test_a_run_whose_rows_lack_a_length_is_counted_in_words(tmp_path: Path) -> None:
    found = [
        row | {"policy": policy, "prompt_index": index}
        for policy in ("sft", "ppo")
        for index, row in enumerate(rows([3, 4], tokens_a_word=2.0))
    ]
    assert read_run_contest(write(tmp_path / "whole.jsonl", found)).unit == "tokens"
    del found[-1]["length"]
    contest = read_run_contest(write(tmp_path / "partly.jsonl", found))
    assert contest.unit == "words"
    assert [e.length for e in contest.entries["sft"].values()] == [3.0, 4.0]


def test_responses_to_repeated_prompts_are_no_news_at_equal_length_either(tmp_path: Path) -> None:
    """Every row four times: the intervals are those of the rows once, raw, at equal length and in each bin."""
    long, short = [9 - i % 5 for i in range(40)], [4 + (i * 7) % 6 for i in range(40)]
    told = []
    for times in (1, 4):
        a = write(tmp_path / "a.jsonl", rows(long, tokens_a_word=None) * times)
        b = write(tmp_path / "b.jsonl", rows(short, tokens_a_word=None) * times)
        [judged] = judge_contest(read_file_contest(a, b), [("a", "b")], LongerWins())
        assert judged.result is not None
        assert judged.length_controlled is not None
        assert len(judged.verdicts) == 40 * times
        results = [judged.result, judged.length_controlled, *(b.result for b in judged.by_length)]
        told.append([limit for result in results for limit in (result.low, result.high)])
    assert told[1] == pytest.approx(told[0], abs=0.03)


def test_of_the_first_prompts_only_those_that_one_has_not_answered_are_counted(tmp_path: Path) -> None:
    both = rows([3] * 40, tokens_a_word=None)
    contest = read_file_contest(write(tmp_path / "a.jsonl", both[:10]), write(tmp_path / "b.jsonl", both[1:]))
    assert contest.alone("a", "b") == 31
    assert contest.first(5).alone("a", "b") == 1
