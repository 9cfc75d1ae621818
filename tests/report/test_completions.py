"""The completions table and its exports."""

import csv
import json
from pathlib import Path

import pytest

from p3o.errors import P3OError
from p3o.report.completions import completions, export_completions

ROWS = [
    {"policy": policy, "step": step, "prompt_index": prompt, "prompt": f"p{prompt}", "reward": step + 0.5}
    | {"response": f"{policy} | {step},\n{prompt}"}
    for policy in ("ppo", "a")
    for step in (0, 10, 5)
    for prompt in (0, 1)
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def test_a_prompt_s_responses_stand_together_in_the_order_of_steps(run: Path) -> None:
    rows = [(row.policy, row.prompt_index, row.step) for row in completions(run)]
    assert rows == [(policy, prompt, step) for policy in ("ppo", "a") for prompt in (0, 1) for step in (0, 5, 10)]
    assert [row.step for row in completions(run, policy="a", prompt=1)] == [0, 5, 10]
    assert len(completions(run, step=5)) == 4


def test_what_is_not_there_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(P3OError, match=r"--policy pppo: not among the samples of .*; did you mean 'ppo'"):
        completions(run, policy="pppo")
    with pytest.raises(P3OError, match=r"--step 3: not among .*; recorded are 0, 5, 10"):
        completions(run, step=3)
    with pytest.raises(P3OError, match="no samples yet"):
        completions(tmp_path / "elsewhere")


def test_exports_hold_the_rows(run: Path, tmp_path: Path) -> None:
    rows = completions(run, policy="a", step=5)
    export_completions(rows, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [(row["response"], row["reward"]) for row in read] == [("a | 5,\n0", "5.5"), ("a | 5,\n1", "5.5")]
    export_completions(rows, tmp_path / "t.jsonl")
    assert json.loads((tmp_path / "t.jsonl").read_text().splitlines()[1])["response"] == "a | 5,\n1"
    export_completions(rows, tmp_path / "t.md")
    assert "| a | 5 | 0 | p0 | a \\| 5,<br>0 | 5.5 |  |" in (tmp_path / "t.md").read_text()
    with pytest.raises(P3OError, match=r"end its name in .csv, .jsonl or .md"):
        export_completions(rows, tmp_path / "t.xlsx")
