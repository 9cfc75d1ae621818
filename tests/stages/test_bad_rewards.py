"""A user's reward function that goes wrong in the middle of a run, through the whole command: stopped, or left out and told."""

import json
from pathlib import Path

import pytest
from tests.stages.conftest import small_model

from p3o import cli

CONFIG = """
name: mine
seed: 1
threads: 1
device: cpu
model: model
data: {prompts: prompts.jsonl}
reward: {function: "REWARD"}
rl:
  training: {steps: 3, prompts_per_step: 4, responses_per_prompt: 2, max_new_tokens: 4, on_fault: ON_FAULT}
  runs: {p3o_v2: {algorithm: p3o_v2}}
evaluation: {prompts: 8, every: 3, best_of: [2], batch_size: 8, followed_prompts: 2}
checkpoints: {every: 1}
"""

REWARD = """
count = 0


def reward(prompts, responses):
    global count
    count += 1
    values = [float(sum(map(ord, response)) % 7) for response in responses]
    if count in WHEN:
        BAD
    return values
"""
"""Call 1 is the trial on made-up responses, 2 the evaluation before the first step, 3 to 5 the steps."""


def run(here: Path, name: str, bad: str, *, when: tuple[int, ...], on_fault: str) -> int:
    """``p3o rl`` with a reward that goes wrong at these calls; the exit code."""
    small_model(here)
    (here / f"{name}.py").write_text(REWARD.replace("WHEN", str(when)).replace("BAD", bad))
    config = CONFIG.replace("REWARD", f"{name}:reward").replace("ON_FAULT", on_fault)
    (here / "c.yaml").write_text(config)
    return cli.main(["rl", "--config", "c.yaml", "--output", "runs"])


def rows(here: Path, stage: str) -> list[dict]:
    lines = (here / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["stage"] == stage]


@pytest.mark.parametrize(("number", "shown"), [("nan", "nan"), ("inf", "inf"), ("-inf", "-inf")])
def test_with_skip_a_bad_reward_costs_its_group_and_is_told(here: Path, number: str, shown: str) -> None:
    name = f"skips_{number.strip('-')}{len(number)}"
    assert run(here, name, f'values[3] = float("{number}")', when=(4,), on_fault="skip") == 0
    assert [row.get("dropped_groups") for row in rows(here, "rl")] == [None, 1, None]
    warnings = json.loads((here / "runs" / "mine" / "run.json").read_text())["warnings"]
    (told,) = [text for text in warnings if "left out" in text]
    assert told.startswith(f"rl p3o_v2, step 2: left out 1 of 4 groups: the reward of a response is {shown}; prompt ")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_with_stop_the_function_the_prompt_and_the_step_are_named(
    here: Path, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    name = f"stops_{number.strip('-')}{len(number)}"
    assert run(here, name, f'values[3] = float("{number}")', when=(4,), on_fault="stop") == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"error: step 2: reward function '{name}:reward' returned {number} for response 3 (prompt ")


@pytest.mark.parametrize(
    ("name", "bad", "told"),
    [
        ("short", "return values[1:]", "returned 7 rewards for 8 responses"),
        ("typed", 'values[0] = "good"', "returned 'good' for response 0 (prompt "),
        ("fails", "return [1 / 0]", "raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_no_number_at_all_stops_even_with_skip(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, bad: str, told: str
) -> None:
    """A function that is wrong as a program will be wrong again: to skip would hide it."""
    assert run(here, f"wrong_{name}", bad, when=(4,), on_fault="skip") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: step 2: reward function ")
    assert told in error


def test_with_skip_an_evaluation_counts_what_has_no_reward(here: Path) -> None:
    assert run(here, "evaluated", 'values[0] = float("nan")', when=(2,), on_fault="skip") == 0
    first, last = rows(here, "evaluate")
    assert (first["unscored"], first["prompts"]) == (1, 8)
    assert "unscored" not in last
    assert first["reward"] == first["reward"], "the mean of the seven others"
    samples = [json.loads(line) for line in (here / "runs" / "mine" / "samples.jsonl").read_text().splitlines()]
    assert ["reward" in sample for sample in samples] == [False, True, True, True]
    warnings = json.loads((here / "runs" / "mine" / "run.json").read_text())["warnings"]
    assert any("evaluation at step 0: left out 1 responses whose reward is not finite: " in text for text in warnings)


def test_with_stop_an_evaluation_does_not_go_on_without_a_reward(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(here, "unevaluated", 'values[0] = float("nan")', when=(2,), on_fault="stop") == 2
    assert "reward function 'unevaluated:reward' returned nan for response 0" in capsys.readouterr().err


def test_with_rollback_the_run_goes_back_a_step_and_on(here: Path) -> None:
    assert run(here, "rolls", 'values[3] = float("nan")', when=(4,), on_fault="rollback") == 0
    assert [row["step"] for row in rows(here, "rl")] == [1, 2, 3]
    (told,) = json.loads((here / "runs" / "mine" / "run.json").read_text())["warnings"][:1]
    assert told.startswith("rl/p3o_v2: step 2: the reward of a response is nan; prompt ")
    assert told.endswith("; rolled back to step 1 (attempt 1)")
