"""Any source as our own JSONL files, split by prompt."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p3o.data.preparing import is_held_out, prepare
from p3o.data.reading import read_examples
from p3o.data.sources import SourceConfig
from p3o.errors import P3OError
from p3o.files import read_jsonl

Write = Callable[..., Path]
HI = [{"role": "user", "content": "Hi"}]
# 200 prompts, each with two pairs.
PAIRS = [{"prompt": f"Question {i // 2}?", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(400)]


def prepared(source: Path, output: Path, **settings: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"heldout": 0.2, "seed": 0, "policy": "stop"}
    return prepare(SourceConfig(path=str(source)), "preferences", output, **defaults | settings)


def test_nothing_is_lost_and_no_prompt_is_on_both_sides(write: Write, tmp_path: Path) -> None:
    summary = prepared(write(*PAIRS), tmp_path / "out")
    train, held = (read_jsonl(tmp_path / "out" / f"{side}preferences.jsonl") for side in ("", "heldout_"))
    assert sorted(map(json.dumps, train + held)) == sorted(map(json.dumps, PAIRS))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}
    for side, rows in (("", train), ("heldout_", held)):
        prompts = read_jsonl(tmp_path / "out" / f"{side}prompts.jsonl")
        assert prompts == [{"prompt": prompt} for prompt in dict.fromkeys(row["prompt"] for row in rows)]
        assert summary["files"][f"{side}preferences.jsonl"] == {"rows": len(rows), "prompts": len(prompts)}
    # 200 independent prompts at a share of .2: 40 expected, standard deviation 5.7.
    assert 20 <= summary["files"]["heldout_prompts.jsonl"]["rows"] <= 60
    assert json.loads((tmp_path / "out" / "data.json").read_text()) == summary
    again, report = read_examples(SourceConfig(path=str(tmp_path / "out" / "preferences.jsonl")), "preferences")
    assert len(again) == report.read == len(train)


def test_the_split_is_the_seeds_and_the_prompts_alone(write: Write, tmp_path: Path) -> None:
    def held(name: str, rows: list[dict[str, str]], seed: int) -> set[str]:
        prepared(write(*rows, name=f"{name}.jsonl"), tmp_path / name, seed=seed)
        return {row["prompt"] for row in read_jsonl(tmp_path / name / "heldout_prompts.jsonl")}

    first = held("a", PAIRS, 0)
    assert held("b", PAIRS[::-1], 0) == first
    assert held("c", PAIRS, 1) != first
    half = {row["prompt"] for row in PAIRS[:200]}
    assert held("d", PAIRS[:200], 0) == first & half, "another source with the same seed agrees on every shared prompt"


def test_a_larger_share_holds_out_more_of_the_same(write: Write) -> None:
    prompts = [f"{i}" for i in range(300)]
    small, large = ({p for p in prompts if is_held_out(p, share=share, seed=0)} for share in (0.1, 0.5))
    assert small < large
    assert not any(is_held_out(prompt, share=0.0, seed=0) for prompt in prompts)


def test_conversations_stay_conversations(write: Write, tmp_path: Path) -> None:
    rows = write({"messages": [*HI, {"role": "assistant", "content": "Hello"}]})
    prepare(SourceConfig(path=str(rows)), "demonstrations", tmp_path / "out", heldout=0.0, seed=0, policy="stop")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "demonstrations.jsonl",
        "prompts.jsonl",
        "data.json",
    }
    assert read_jsonl(tmp_path / "out" / "demonstrations.jsonl") == [{"prompt": HI, "completion": "Hello"}]


def test_dropped_rows_are_in_the_report(write: Write, tmp_path: Path) -> None:
    rows = write(*PAIRS, {"prompt": "a", "chosen": "b", "rejected": "b"})
    summary = prepared(rows, tmp_path / "out", policy="skip")
    assert summary["dropped"] == {"equal answers": 1}
    assert summary["first_dropped"][0].startswith(f"{rows}:401: ")


def test_what_cannot_be_prepared_leaves_nothing(write: Write, tmp_path: Path) -> None:
    with pytest.raises(P3OError, match=r"rows\.jsonl:2: 'chosen' and 'rejected' are the same"):
        prepared(write(PAIRS[0], {"prompt": "a", "chosen": "b", "rejected": "b"}), tmp_path / "out")
    with pytest.raises(P3OError, match=r"1 rows leave no held-out rows at a held-out share of 0\.01"):
        prepared(write(PAIRS[0]), tmp_path / "out", heldout=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    (tmp_path / "out").mkdir()
    with pytest.raises(P3OError, match="out: already exists; choose another name or remove it"):
        prepared(write(*PAIRS), tmp_path / "out")
