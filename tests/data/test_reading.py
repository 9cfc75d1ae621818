"""Bad rows stop or are counted; never is one dropped without a word."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p3o.data.reading import Lengths, Limits, TextRow, drop_too_long, read_examples
from p3o.data.rows import RowReport, write_row_reports
from p3o.data.sources import SourceConfig
from p3o.errors import P3OError

Write = Callable[..., Path]
BAD_ROWS: dict[str, Any] = {
    "malformed": "{",
    "missing column": {"prompt": "a"},
    "empty": {"prompt": "a", "chosen": " ", "rejected": "c"},
    "not text": {"prompt": "a", "chosen": 3, "rejected": "c"},
    "equal answers": {"prompt": "a", "chosen": "b", "rejected": "b"},
    "bad message": {"prompt": [{"role": "human", "content": "a"}], "chosen": "b", "rejected": "c"},
    "no shared prompt": {"chosen": "b", "rejected": "c"},
}
GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_empty_not_text_or_equal_rows_stop_with_their_line(write: Write, reason: str) -> None:
    path = write(GOOD, BAD_ROWS[reason], GOOD)
    with pytest.raises(P3OError) as caught:
        read_examples(SourceConfig(path=str(path)), "preferences", "stop")
    assert str(caught.value).startswith(f"{path}:2: ")


def test_or_are_skipped_and_counted_by_reason_with_their_line(write: Write, tmp_path: Path) -> None:
    path = write(GOOD, *BAD_ROWS.values(), GOOD, BAD_ROWS["empty"])
    examples, report = read_examples(SourceConfig(path=str(path)), "preferences", "skip", shown=3)
    assert [placed.place for placed in examples] == [f"{path}:1", f"{path}:9"]
    assert (report.read, report.kept) == (10, 2)
    assert dict(report.dropped) == dict.fromkeys(BAD_ROWS, 1) | {"empty": 2}
    assert report.summary().startswith(f"preferences: 2 of 10 rows of {path}; dropped 2 empty, 1 ")
    assert [line.partition(": ")[0] for line in report.first] == [f"{path}:{number}" for number in (2, 3, 4)]
    write_row_reports(tmp_path / "data.json", [report])
    assert '"read": 10' in (tmp_path / "data.json").read_text()


def test_all_rows_dropped_is_an_error_with_the_first(write: Write) -> None:
    path = write(BAD_ROWS["empty"], BAD_ROWS["empty"])
    _, report = read_examples(SourceConfig(path=str(path)), "preferences", "skip")
    with pytest.raises(
        P3OError, match=r"all 2 rows were dropped \(2 empty\); the first one: .*rows\.jsonl:1: 'chosen' is only"
    ):
        report.refuse_if_empty()


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (Limits(prompt=9), "p:2: the prompt has 10 tokens, more than data.max_prompt_tokens 9"),
        (
            Limits(completion=4),
            "p:2: an answer has 5 tokens (end of sequence included), more than data.max_completion_tokens 4",
        ),
        (Limits(context=14), "p:2: a row of 10 + 5 tokens exceeds the model's limit of 14"),
    ],
)
def test_rows_too_long_stop_or_are_counted(limits: Limits, told: str) -> None:
    rows = [TextRow(f"p:{number}", "text", ("a", "b")) for number in (1, 2)]
    lengths = [Lengths(9, (4, 4)), Lengths(10, (3, 5))]
    with pytest.raises(P3OError) as caught:
        drop_too_long(rows, lengths, limits, RowReport("p", "preferences", "stop", read=2))
    assert str(caught.value).startswith(told)
    report = RowReport("p", "preferences", "skip", read=2)
    assert drop_too_long(rows, lengths, limits, report) == rows[:1]
    assert dict(report.dropped) == {"too long": 1}


def test_a_prompt_longer_than_the_context_less_the_response_is_told() -> None:
    row, limits = TextRow("p:1", "text", ()), Limits(context=20, room=11)
    report = RowReport("p", "prompts", read=1)
    assert drop_too_long([row], [Lengths(9, ())], limits, report) == [row]
    with pytest.raises(
        P3OError, match=r"p:1: a prompt of 10 tokens and rl\.training\.max_new_tokens 11 exceed the model's limit"
    ):
        drop_too_long([row], [Lengths(10, ())], limits, report)


def test_within_the_limits_nothing_is_dropped() -> None:
    rows = [TextRow("p:1", "text", ("a",))]
    limits = Limits(prompt=10, completion=5, context=15, room=100)
    assert drop_too_long(rows, [Lengths(10, (5,))], limits, RowReport("p", "demonstrations", read=1)) == rows
