"""Transcripts of Anthropic/hh-rlhf: the schema is the data set's (columns chosen and rejected), the rows are ours."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p3o.data.formats import Example
from p3o.data.hh import hh, shared_prompt
from p3o.data.reading import read_examples
from p3o.data.rows import BadRowError
from p3o.data.sources import SourceConfig


def transcript(*turns: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))


GOOD = {
    "chosen": transcript("What is a skink?", "A lizard.", "Is it slow?", "No, quick."),
    "rejected": transcript("What is a skink?", "A lizard.", "Is it slow?", "Yes."),
}


def test_split_at_the_last_turn_boundary_shared_by_chosen_and_rejected() -> None:
    assert hh(GOOD) == {
        "prompt": transcript("What is a skink?", "A lizard.", "Is it slow?") + "\n\nAssistant:",
        "chosen": " No, quick.",
        "rejected": " Yes.",
    }


def test_answers_that_begin_alike_are_not_cut_in_the_middle() -> None:
    row = hh({"chosen": transcript("Hi", "I think so."), "rejected": transcript("Hi", "I think not.")})
    assert row["prompt"] == "\n\nHuman: Hi\n\nAssistant:"
    assert (row["chosen"], row["rejected"]) == (" I think so.", " I think not.")


@pytest.mark.parametrize("longer", ["chosen", "rejected"])
def test_splitting_at_the_last_assistant_would_give_an_empty_answer(longer: str) -> None:
    """DPO repo #86: the prompt of the longer transcript, cut at its own last "Assistant:", swallows the whole shorter one."""
    long, short = transcript("Hi", "Hello.", "Bye?", "Yes."), transcript("Hi", "Hello.")
    naive = long[: long.rfind("\n\nAssistant:") + len("\n\nAssistant:")]
    assert short[len(naive) :] == ""
    row = {"chosen": long, "rejected": short} if longer == "chosen" else {"chosen": short, "rejected": long}
    with pytest.raises(BadRowError, match=f"'{longer}' continues for several turns") as caught:
        hh(row)
    assert caught.value.reason == "more than one turn"


def test_a_prefix_within_the_last_answer_keeps_both_answers() -> None:
    """trl #6079, #6960: where one answer is the beginning of the other, a character-wise split leaves it empty."""
    row = hh({"chosen": transcript("Hi", "Yes"), "rejected": transcript("Hi", "Yes, of course")})
    assert (row["chosen"], row["rejected"]) == (" Yes", " Yes, of course")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": transcript("Hi", "Yes"), "rejected": transcript("Hi", "Yes")}, "equal answers"),
        ({"chosen": transcript("Hi", "Yes"), "rejected": transcript("Ho", "No")}, "no shared prompt"),
        ({"chosen": transcript("Hi", "Yes"), "rejected": "\n\nHuman: Hi\n\nAssistant:"}, "empty"),
        ({"chosen": "\n\nHuman: Hi\n\nAssistant:  \n", "rejected": transcript("Hi", "Yes")}, "empty"),
        (
            {"chosen": transcript("Hi", "A", "B", "C"), "rejected": transcript("Hi", "D", "B", "C")},
            "more than one turn",
        ),
        ({"chosen": "Human: Hi\n\nAssistant: Yes", "rejected": transcript("Hi", "No")}, "not a transcript"),
        ({"chosen": transcript("Hi", "Yes")}, "not a transcript"),
        ({"chosen": transcript("Hi", "Yes"), "rejected": None}, "not a transcript"),
    ],
)
def test_rows_that_are_no_pair_of_answers_have_a_reason(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRowError) as caught:
        hh(row)
    assert caught.value.reason == reason


def test_the_word_human_in_a_text_is_no_boundary() -> None:
    row = hh({"chosen": transcript("Is a Human: tall?", "Yes"), "rejected": transcript("Is a Human: tall?", "No")})
    assert row["prompt"] == "\n\nHuman: Is a Human: tall?\n\nAssistant:"


def test_shared_prompt_is_the_longest_on_a_boundary() -> None:
    chosen, rejected = GOOD["chosen"], GOOD["rejected"]
    ends = [i for i in range(len(chosen) + 1) if chosen[:i] == rejected[:i] and chosen[:i].endswith("\n\nAssistant:")]
    assert len(shared_prompt(chosen, rejected)) == max(ends)


def test_what_is_dropped_is_counted_with_its_reason_and_line(write: Callable[..., Path]) -> None:
    path = write(
        GOOD,
        {"chosen": transcript("Hi", "Yes"), "rejected": transcript("Hi", "Yes")},
        {"chosen": transcript("Hi", "A"), "rejected": transcript("Hi", "A", "B", "C")},
        {"chosen": transcript("Hi", "A", "B", "C"), "rejected": transcript("Hi", "A")},
    )
    examples, report = read_examples(SourceConfig(path=str(path), adapter="hh"), "preferences", "skip")
    assert [placed.example for placed in examples] == [
        Example(transcript("What is a skink?", "A lizard.", "Is it slow?") + "\n\nAssistant:", (" No, quick.", " Yes."))
    ]
    assert (report.read, report.kept) == (4, 1)
    assert dict(report.dropped) == {"equal answers": 1, "more than one turn": 2}
    assert [line.split(": ")[0] for line in report.first] == [f"{path}:{number}" for number in (2, 3, 4)]


def test_the_folders_of_the_hub_are_read_with_their_splits(tmp_path: Path) -> None:
    for part in ("helpful-base", "harmless-base"):
        for split, rows in (("train", [GOOD, GOOD]), ("test", [GOOD])):
            (tmp_path / part).mkdir(exist_ok=True)
            with gzip.open(tmp_path / part / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(row)}\n" for row in rows)
    source = SourceConfig(path=str(tmp_path), data_dir="helpful-base", split="test", adapter="hh")
    [placed], _ = read_examples(source, "preferences")
    assert placed.place == f"{tmp_path} [test]:row 1"
    assert placed.example.answers == (" No, quick.", " Yes.")


def test_the_preferred_answers_serve_for_fine_tuning(write: Callable[..., Path]) -> None:
    source = SourceConfig(path=str(write(GOOD)), adapter="hh", columns={"completion": "chosen"})
    [placed], _ = read_examples(source, "demonstrations")
    assert placed.example.answers == (" No, quick.",)
