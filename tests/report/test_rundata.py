"""Run folders that are whole, partial and garbled."""

import json
from pathlib import Path

import pytest
from tests.report.synthetic_run import write_run

from p3o.errors import P3OError
from p3o.report.reading import read_run
from p3o.report.rundata import RunInfo


def test_a_finished_run_is_read_whole(finished_run: Path) -> None:
    data = read_run(finished_run)
    assert data.algorithms == ["p3o_v1", "p3o_v2", "ppo", "online_dpo"]
    assert data.has_gold
    assert [row.decoding for row in data.evaluations if row.policy == "sft"] == [
        "sample",
        "greedy",
        "best_of_4",
        "best_of_16",
    ]
    assert data.last("ppo").step == 60
    assert {row.reward_shift for row in data.shifted} == {10.0}
    assert len(data.training["p3o_v2"]) == 60
    assert "loss" in data.training["p3o_v2"][0].values
    assert "step" not in data.training["p3o_v2"][0].values


def append(path: Path, *rows: dict) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_twins_with_shifted_rewards_stay_out_of_the_main_results(tmp_path: Path) -> None:
    run = write_run(tmp_path, ["p3o_v2"])
    twin = {"algorithm": "p3o_v2", "reward_shift": 10.0, "step": 1, "reward": 99.0}
    append(
        run / "metrics.jsonl",
        {"stage": "evaluate", "policy": "p3o_v2_shifted", "prompts": 1, "kl": 1.0} | twin,
        {"stage": "rl", "run": "p3o_v2_shifted"} | twin,
    )
    append(run / "samples.jsonl", {"policy": "p3o_v2_shifted", "prompt_index": 3, "prompt": "", "response": ""} | twin)
    comparison = {"wins": 1, "ties": 0, "losses": 0, "win_rate": 1.0, "low": 0.2, "high": 1.0}
    (run / "head_to_head.json").write_text(json.dumps([{"a": "sft", "b": "p3o_v2_shifted"} | comparison]))
    data = read_run(run)
    assert data.trained_policies == ["p3o_v2"]
    assert [row.policy for row in data.shifted] == ["p3o_v2_shifted"]
    assert list(data.training) == ["p3o_v2"]
    assert {sample.policy for sample in data.samples} == {"p3o_v2"}
    assert data.comparisons == []


def test_a_run_whose_rewards_were_all_shifted_is_shown_as_any_other(tmp_path: Path) -> None:
    run = write_run(tmp_path, ["ppo"])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shifted = [row | {"reward_shift": 10.0} if row.get("algorithm") else row for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shifted))
    data = read_run(run)
    assert data.trained_policies == ["ppo"]
    assert len(data.training["ppo"]) == 60
    assert data.shifted == []


def test_sft_is_always_the_second_of_a_comparison(tmp_path: Path) -> None:
    run = write_run(tmp_path, ["ppo"])
    row = {"a": "sft", "b": "ppo", "wins": 2, "ties": 1, "losses": 7, "win_rate": 0.25, "low": 0.1, "high": 0.5}
    (run / "head_to_head.json").write_text(json.dumps([row]))
    (seen,) = read_run(run).comparisons
    assert (seen.a, seen.b, seen.wins, seen.ties, seen.losses) == ("ppo", "sft", 7, 1, 2)
    assert (seen.win_rate, seen.low, seen.high) == (0.75, 0.5, 0.9)


def test_a_run_is_finished_while_its_last_stage_draws_the_report() -> None:
    info = {"name": "x", "seed": 0, "status": "running"}
    assert not RunInfo(**info, seconds={"sft": 1.0}).finished
    assert RunInfo(**info, seconds={"sft": 1.0, "evaluate": 1.0}).finished
    assert not RunInfo(**info | {"status": "failed"}, seconds={"evaluate": 1.0}).finished


def test_numbers_that_are_missing_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path, ["p3o_v2"])
    row = '{"stage": "rl", "run": "p3o_v2", "algorithm": "p3o_v2", "step": 99, "loss": NaN, "reward": null, "length": 3}\n'
    with (run / "metrics.jsonl").open("a") as file:
        file.write(row)
    assert read_run(run).training["p3o_v2"][-1].values == {"length": 3.0}


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.jsonl"])
def test_a_needed_file_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path, ["ppo"])
    (run / name).unlink()
    with pytest.raises(P3OError, match=name):
        read_run(run)


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(P3OError, match=r"nowhere: no such run folder"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"stage": "rl", "st', r"metrics.jsonl:3: not valid JSON"),
        ("[1, 2]", r"metrics.jsonl:3: expected a JSON object, got list"),
        ('{"step": 1}', r"metrics.jsonl:3: the key 'stage' is missing"),
        ('{"stage": "rl", "run": "ppo"}', r"metrics.jsonl:3: 'step' must be an integer, got None"),
        ('{"stage": "evaluate", "policy": "ppo", "prompts": 4, "kl": 0}', r"metrics.jsonl:3: 'reward': field required"),
        ('{"stage": "evaluate", "policy": "ppo", "prompts": 4, "reward": NaN, "kl": 0}', r"metrics.jsonl:3: 'reward'"),
        ('{"stage": "evaluate", "policy": "ppo", "prompts": 4, "reward": 1}', r"metrics.jsonl:3: .*needs 'kl'"),
    ],
)
def test_a_garbled_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    run = write_run(tmp_path, ["ppo"])
    lines = (run / "metrics.jsonl").read_text().split("\n")
    (run / "metrics.jsonl").write_text("\n".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(P3OError, match=message):
        read_run(run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", b"{", r"run.json: not valid JSON \(line 1, column 2\)"),
        ("run.json", b'{"name": "x", "seed": 0}', r"run.json: 'status': field required"),
        ("head_to_head.json", b"{}", r"head_to_head.json: expected a list"),
        ("head_to_head.json", b'[{"a": "ppo"}]', r"head_to_head.json: entry 0: 'b': field required"),
        ("responses.jsonl", b'{"policy": "sft"}\n', r"responses.jsonl:1: 'prompt_index'"),
        ("samples.jsonl", b'{}\n{"policy": \xff}', r"samples.jsonl:2: not UTF-8"),
    ],
)
def test_a_garbled_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    run = write_run(tmp_path, ["ppo"])
    (run / name).write_bytes(content)
    with pytest.raises(P3OError, match=message):
        read_run(run)
