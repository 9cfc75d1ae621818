"""`p3o data inspect` and `p3o data prepare`, as a user runs them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.chat_model import save_tokenizer

from p3o.cli import main
from p3o.inspection import _quantiles

PAIR = {"prompt": "Hi?", "chosen": " yes", "rejected": " no no"}


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write rows.jsonl in an empty current directory."""
    monkeypatch.chdir(tmp_path)

    def write(*items: Any, name: str = "rows.jsonl") -> None:
        Path(name).write_text("".join(f"{json.dumps(item)}\n" for item in items))

    return write


def test_inspect_tells_counts_lengths_an_example_and_every_dropped_row(
    rows: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tokenizer(tmp_path / "model")
    rows(PAIR, {**PAIR, "chosen": ""}, {**PAIR, "prompt": "Longer?", "chosen": " ab"}, {**PAIR, "chosen": "x" * 300})
    assert main(["data", "inspect", "rows.jsonl", "--model", "model", "--json", "found.json"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "rows.jsonl as preferences: 2 of 4 rows, 2 distinct prompts",
        "dropped: 1 empty, 1 too long",
        "  rows.jsonl:2: 'chosen' is empty; fill it in or remove the row",
        "  rows.jsonl:4: a row of 3 + 301 tokens exceeds the model's limit of 256; shorten it or remove it ('Hi?')",
        "tokens           min  median     p90     p99     max",
        "prompt             3       3       7       7       7",
        "chosen             4       4       5       5       5",
        "rejected           7       7       7       7       7",
        "example: rows.jsonl:1",
        "----- prompt",
        "Hi?",
        "----- chosen",
        " yes<|endoftext|>",
        "----- rejected",
        " no no<|endoftext|>",
        "-----",
    ]
    [record] = json.loads(Path("found.json").read_text())
    assert (record["read"], record["kept"], record["dropped"]) == (4, 2, {"empty": 1, "too long": 1})
    assert record["tokens"]["prompt"] == {"min": 3, "median": 3, "p90": 7, "p99": 7, "max": 7}


def test_inspect_shows_a_conversation_as_the_model_reads_it(
    rows: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tokenizer(tmp_path / "model")
    rows({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo\x1b[31m"}]})
    assert main(["data", "inspect", "rows.jsonl", "--model", "model"]) == 0
    out = capsys.readouterr().out
    assert "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n\n----- completion\nYo\\x1b[31m<|im_end|>\n" in out
    assert "the chat template ends a turn with <|im_end|>" in out


def test_inspect_without_a_model_and_with_fewer_dropped_rows(
    rows: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    rows(PAIR, *[{**PAIR, "chosen": " "}] * 3)
    assert main(["data", "inspect", "rows.jsonl", "--as", "preferences", "--dropped", "1"]) == 0
    out = capsys.readouterr().out
    assert (
        "dropped: 3 empty\n  rows.jsonl:2: 'chosen' is only white space; fill it in or remove the row\n  and 2 more\n"
        in out
    )
    assert "tokens: not counted; name the model with --model" in out


def test_inspect_all_sources_of_a_configuration(
    rows: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tokenizer(tmp_path / "model")
    rows(PAIR)
    Path("run.yaml").write_text(
        "model: model\nreward: {function: a:b}\n"
        "data: {prompts: rows.jsonl, preferences: rows.jsonl, max_completion_tokens: 5}\n"
    )
    assert main(["data", "inspect", "--config", "run.yaml", "--set", "rl.training.max_new_tokens=9"]) == 2
    out, err = capsys.readouterr()
    assert "rows.jsonl as prompts: 1 of 1 rows" in out
    assert "rows.jsonl as preferences: 0 of 1 rows, 0 distinct prompts\ndropped: 1 too long" in out
    assert err.startswith("error: rows.jsonl: all 1 rows were dropped (1 too long); the first one: rows.jsonl:1: ")


@pytest.mark.parametrize("asked", [None, 0, 6])
def test_a_source_without_a_usable_row_is_an_error_after_a_short_list(
    rows: Callable[..., None], capsys: pytest.CaptureFixture[str], asked: int | None
) -> None:
    rows(*[{**PAIR, "chosen": " "}] * 8)
    more = [] if asked is None else ["--dropped", str(asked)]
    assert main(["data", "inspect", "rows.jsonl", "--json", "found.json", *more]) == 2
    out, err = capsys.readouterr()
    shown = 5 if asked is None else asked
    problem = "'chosen' is only white space; fill it in or remove the row"
    assert out.splitlines() == [
        "rows.jsonl as preferences: 0 of 8 rows, 0 distinct prompts",
        "dropped: 8 empty",
        *(f"  rows.jsonl:{line}: {problem}" for line in range(1, shown + 1)),
        f"  and {8 - shown} more",
        "tokens: not counted; name the model with --model",
    ]
    first = f"; the first one: rows.jsonl:1: {problem}" if shown else ""
    assert err == f"error: rows.jsonl: all 8 rows were dropped (8 empty){first}\n"
    [record] = json.loads(Path("found.json").read_text())
    assert (record["kept"], record["dropped"]) == (0, {"empty": 8})
    rows()
    assert main(["data", "inspect", "rows.jsonl", "--as", "prompts"]) == 2
    assert capsys.readouterr().err == "error: rows.jsonl: has no rows\n"


def test_prepare_writes_files_that_are_read_back(rows: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    rows(
        *[{"question": f"{i}?", "good": " a", "bad": " b"} for i in range(50)],
        {"question": "", "good": "a", "bad": "b"},
    )
    columns = ["--column", "prompt=question", "--column", "chosen=good", "--column", "rejected=bad"]
    arguments = ["data", "prepare", "rows.jsonl", "--output", "out", "--heldout", "0.3", *columns]
    assert main(arguments) == 2
    assert "rows.jsonl:51: 'prompt' is empty" in capsys.readouterr().err
    assert main([*arguments, "--bad-rows", "skip"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["rows.jsonl as preferences: 50 of 51 rows", "dropped: 1 empty"]
    assert out[-1] == "out/data.json: these counts"
    assert main(["data", "inspect", "out/preferences.jsonl"]) == 0
    assert main(arguments) == 2
    assert "out: already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["inspect"], "give either a SOURCE or --config FILE"),
        (["inspect", "nowhere.jsonl"], "nowhere.jsonl: cannot be read: no such file"),
        (["inspect", "rows.jsonl", "--as", "pairs"], "--as pairs: known are prompts, demonstrations, preferences"),
        (["inspect", "rows.jsonl", "--as", "prompt"], "--as prompt: did you mean 'prompts'?"),
        (["inspect", "rows.jsonl", "--adapter", "hhh"], "rows.jsonl: unknown adapter 'hhh'; did you mean 'hh'?"),
        (["inspect", "rows.jsonl", "--column", "prompt"], "--column prompt: must have the form OURS=THEIRS"),
        (["inspect", "hub:a/b"], "hub:a/b: cannot be read: it is not in the local cache"),
        (["prepare", "rows.jsonl", "--output", "out", "--bad-rows", "drop"], "--bad-rows drop: must be stop or skip"),
    ],
)
def test_mistakes_are_one_line(
    rows: Callable[..., None], capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    rows(PAIR)
    assert main(["data", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")


def test_quantiles_are_values_that_occur() -> None:
    assert _quantiles(list(range(100, 0, -1))) == {"min": 1, "median": 50, "p90": 90, "p99": 99, "max": 100}
