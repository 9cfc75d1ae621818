"""TL;DR and its comparisons: the schemas are the data sets', the rows are ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from p3o.data.reading import read_examples
from p3o.data.rows import BadRowError, OtherTaskError
from p3o.data.sources import SourceConfig
from p3o.data.summarize_feedback import summarize_feedback
from p3o.data.tldr import tldr
from p3o.errors import P3OError

PROMPT = "SUBREDDIT: r/pets\n\nTITLE: My skink\n\nPOST: He ran off.\n\nTwice: on Monday.\n\nTL;DR:"
POST = {"subreddit": "pets", "title": "My skink", "post": "He ran off.\n\nTwice: on Monday."}
COMPARISON: dict[str, Any] = {
    "info": {"id": "t3_1", **POST, "site": None, "article": None},
    "summaries": [
        {"text": " Skink gone.", "policy": "sup1", "note": ""},
        {"text": " My skink ran off twice.", "policy": "ref", "note": ""},
    ],
    "choice": 1,
    "worker": "w",
    "batch": "batch3",
    "split": "train",
    "extra": {"confidence": None},
}
NEWS = {
    **COMPARISON,
    "info": {"id": "a", "post": None, "title": "T", "subreddit": None, "site": "cnn", "article": "News."},
    "batch": "cnndm0",
}


def test_the_prompt_keeps_its_double_newlines_and_the_completion_its_space() -> None:
    row = {"prompt": PROMPT, "completion": " My skink ran off."}
    assert tldr(row) == row


def test_the_original_columns_give_the_same_prompt() -> None:
    assert tldr({"id": "1", **POST, "summary": "My skink ran off."}) == {
        "prompt": PROMPT,
        "completion": " My skink ran off.",
    }


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": PROMPT.replace("\n\n", "\n"), "completion": " a"}, "with blank lines between"),
        ({"prompt": PROMPT + " ", "completion": "a"}, "not of the form"),
        ({"prompt": PROMPT, "completion": "a"}, "must begin with one space"),
        ({"prompt": PROMPT, "completion": "  a"}, "must begin with one space"),
        ({**POST, "title": None, "summary": "a"}, "'title' is missing or not a text"),
        ({**POST, "summary": " "}, "'summary' is empty"),
    ],
)
def test_another_form_is_refused(row: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRowError, match=told):
        tldr(row)


def test_sft_reward_model_and_rl_see_the_same_prompt_text() -> None:
    comparison = summarize_feedback(COMPARISON)
    assert comparison["prompt"] == tldr({**POST, "summary": "s"})["prompt"] == PROMPT
    assert comparison["chosen"] == " My skink ran off twice."
    assert comparison["rejected"] == " Skink gone."


@pytest.mark.parametrize("text", ["Skink gone.", " Skink gone.", "\n Skink gone. \n"])
def test_every_summary_begins_with_one_space(text: str) -> None:
    summaries = [{"text": text}, {"text": "Other."}]
    assert summarize_feedback({**COMPARISON, "summaries": summaries, "choice": 0})["chosen"] == " Skink gone."


def test_news_articles_are_another_task() -> None:
    with pytest.raises(OtherTaskError):
        summarize_feedback(NEWS)


@pytest.mark.parametrize(
    "change",
    [
        {"info": None},
        {"info": {**POST, "post": None, "article": None}},
        {"summaries": [{"text": "a"}]},
        {"choice": 2},
        {"choice": None},
        {"choice": True},
        {"summaries": [{"text": "a"}, {"text": " "}]},
    ],
)
def test_what_is_no_comparison_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadRowError) as caught:
        summarize_feedback({**COMPARISON, **change})
    assert not isinstance(caught.value, OtherTaskError)


def parquet_revision(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Laid out as the branch refs/convert/parquet of openai/summarize_from_feedback."""
    for split in ("train", "validation"):
        path = folder / "comparisons" / split / "0000.parquet"
        path.parent.mkdir(parents=True)
        datasets.Dataset.from_list(rows).to_parquet(path)
    (folder / "axis" / "test").mkdir(parents=True)
    datasets.Dataset.from_list([{"info": {"id": "x"}}]).to_parquet(folder / "axis" / "test" / "0000.parquet")
    return folder


def test_the_parquet_revision_is_read_and_news_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = parquet_revision(tmp_path / "revision", [COMPARISON, NEWS, COMPARISON])
    source = SourceConfig(path=str(folder), data_dir="comparisons", split="validation", adapter="summarize_feedback")
    examples, report = read_examples(source, "preferences", "stop")
    assert [placed.example.prompt for placed in examples] == [PROMPT, PROMPT]
    assert (report.read, report.kept) == (3, 2)
    assert dict(report.dropped) == {"news article, not a Reddit post": 1}
    assert report.first[0].startswith(f"{folder} [validation]:row 2: ")


def test_a_script_based_data_set_is_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "summarize_from_feedback"
    folder.mkdir()
    (folder / "summarize_from_feedback.py").write_text("raise AssertionError('never run')\n")
    with pytest.raises(
        P3OError, match=r"generated by a script.* set revision: refs/convert/parquet, and data_dir"
    ) as caught:
        read_examples(SourceConfig(path=str(folder), adapter="summarize_feedback"), "preferences")
    assert "\n" not in str(caught.value)


def test_rows_of_jsonl_go_through_the_adapter(write: Callable[..., Path]) -> None:
    path = write({"prompt": PROMPT, "completion": " a"}, {"prompt": "What?", "completion": " a"})
    with pytest.raises(P3OError, match=r"rows\.jsonl:2: 'prompt' is not of the form"):
        read_examples(SourceConfig(path=str(path), adapter="tldr"), "demonstrations")
