"""`p3o judge` from the command line: run folders and files, a served judge that fails and comes back, what is told."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.feedback.judge.server import Fault, prefer_longer, server

from p3o import cli
from p3o.report.reading import read_run

POLICIES = ("sft", "p3o_v2", "ppo")
PROMPTS = 20
TIMING = ("--set", "backoff=0.001", "--set", "concurrency=4")


def write_run(folder: Path) -> Path:
    """p3o_v2 answers longest on three prompts of four, else shortest; ppo lies between; greedy rows are not judged."""
    folder.mkdir()
    rows = []
    for policy in POLICIES:
        for index in range(PROMPTS):
            words = {"sft": 4, "ppo": 6, "p3o_v2": 2 if index % 4 == 0 else 9}[policy]
            row = {"policy": policy, "decoding": "sample", "prompt_index": index, "prompt": f"Question {index}?"}
            row |= {"response": " ".join(["word"] * words), "reward": float(words), "length": words + 1}
            rows += [row, row | {"decoding": "greedy", "response": "x"}]
    (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = {"a": "sft", "b": "ppo", "by": "reward", "wins": 1, "ties": 0, "losses": 1}
    (folder / "head_to_head.json").write_text(json.dumps([kept | {"win_rate": 0.5, "low": 0.1, "high": 0.9}]))
    return folder


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ask(run: Path, url: str, *more: str) -> int:
    return cli.main(["judge", str(run), "--judge", "openai", "--model", "m", "--base-url", url, *TIMING, *more])


def test_every_pair_is_judged_and_the_rows_join_those_by_reward(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    with server(lambda q, _: prefer_longer(q)) as (url, log):
        assert ask(run, url) == 0
        shown = capsys.readouterr().out
        assert ask(run, url, "--against", "sft") == 0
        again = capsys.readouterr().out
    assert len(log.requests) == 3 * PROMPTS * 2
    assert "120 questions to ask: at most about" in shown
    assert "0 questions to ask, 80 answers already saved" in again
    kept, *judged = json.loads((run / "head_to_head.json").read_text())
    assert kept["by"] == "reward"
    assert {(row["a"], row["b"]): (row["wins"], row["losses"]) for row in judged} == {
        ("p3o_v2", "ppo"): (15, 5),
        ("p3o_v2", "sft"): (15, 5),
        ("ppo", "sft"): (20, 0),
    }
    row = next(row for row in judged if row["b"] == "ppo")
    assert row["length_unit"] == "tokens"
    assert "counted in words" not in shown
    assert (row["by"], row["judge"], row["served_by"]) == ("judge", "m (helpfulness)", ["judge-2026-01-01"])
    assert (row["win_rate"], row["flips"], row["first_position_rate"], row["method"]) == (0.75, 0, 0.5, "wilson")
    assert row["length_controlled"]["raw"] == 0.75
    assert [entry["win_rate"]["wins"] for entry in row["by_length"]] == [0, 15]
    lines = rows_of(run / "judgements.jsonl")
    assert len({(line["a"], line["b"], line["prompt_index"]) for line in lines}) == len(lines) == 60
    assert lines[0]["answers"][0] == {
        "shown_first": "a",
        "choice": lines[0]["answers"][0]["choice"],
        "served_by": "judge-2026-01-01",
    }
    assert "Bradley–Terry ranking" in shown
    assert "chosen in 50.0% of valid answers" in shown
    ranking = shown[shown.index("Bradley") :].splitlines()
    assert [line.split()[1] for line in ranking if line.strip()[:1].isdigit()] == ["p3o_v2", "ppo", "sft"]


def test_failures_are_told_and_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, broken = write_run(tmp_path / "run"), True

    def behave(question: str, _: int) -> str | Fault:
        if "Question 7?" in question:
            return "no idea"
        return Fault(503) if broken and "Question 3?" in question else prefer_longer(question)

    with server(behave) as (url, log):
        assert ask(run, url, "--pair", "p3o_v2:ppo", "--set", "attempts=2") == 0
        assert "1 pairs without a verdict: the answer chose neither" in (told := capsys.readouterr().out)
        assert "1 pairs without a verdict: no answer arrived" in told
        assert [line["outcome"] for line in rows_of(run / "judgements.jsonl")].count("failed") == 1
        broken, before = False, len(log.requests)
        assert ask(run, url, "--pair", "p3o_v2:ppo", "--set", "attempts=2") == 0
        assert len(log.requests) == before + 2
    outcomes = [line["outcome"] for line in rows_of(run / "judgements.jsonl")]
    assert (outcomes.count("failed"), outcomes.count("invalid"), len(outcomes)) == (0, 1, PROMPTS)
    row = json.loads((run / "head_to_head.json").read_text())[-1]
    assert (row["pairs"], row["invalid"], row["wins"] + row["ties"] + row["losses"]) == (PROMPTS, 1, PROMPTS - 1)


def test_a_key_is_in_no_file_and_in_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "sk-0123456789-secret"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    run = write_run(tmp_path / "run")
    with server(lambda q, _: f"{key}\n{prefer_longer(q)}") as (url, log):
        assert ask(run, url) == 0
    with server(lambda *_: Fault(401, body=json.dumps({"error": {"message": f"no: {key}"}}))) as (url, _):
        assert ask(run, url) == 2
    assert log.keys == {f"Bearer {key}"}
    shown = capsys.readouterr()
    assert key not in shown.out + shown.err
    assert shown.err.count("error: ") == 1
    assert all(key.encode() not in file.read_bytes() for file in run.iterdir())


def test_the_cost_is_told_and_limited_before_the_first_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    prices = ("--set", "price_input=2", "--set", "price_output=8")
    with server(lambda q, _: prefer_longer(q)) as (url, log):
        assert ask(run, url, *prices, "--estimate") == 0
        assert "cost at most about 0.2" in capsys.readouterr().out
        assert ask(run, url, *prices, "--max-cost", "0.05") == 2
        assert "120 questions may cost" in capsys.readouterr().err
        assert log.requests == []
        assert not (run / "judgements.jsonl").exists()


def test_two_files_are_matched_by_their_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = tmp_path / "mine.jsonl", tmp_path / "theirs.jsonl"
    a.write_text("".join(json.dumps({"prompt": p, "response": "x" * (i + 2)}) + "\n" for i, p in enumerate("abca")))
    b.write_text("".join(json.dumps({"prompt": p, "response": "xxxx"}) + "\n" for p in "daabc"))
    (tmp_path / "judges.py").write_text("def score(prompts, responses):\n    return [len(r) for r in responses]\n")
    monkeypatch.chdir(tmp_path)
    files = ["--a", str(a), "--b", str(b), "--output", "out"]
    assert cli.main(["judge", *files, "--judge", "reward_function", "--function", "judges:score"]) == 0
    assert "1 prompts were left out" in (told := capsys.readouterr().out)
    assert "lengths are counted in words" in told
    [row] = json.loads(Path("out/head_to_head.json").read_text())
    # a: 2 and 5 letters, b: 3, c: 4, each against 4.
    assert (row["a"], row["b"], row["wins"], row["ties"], row["losses"], row["unpaired"]) == (
        "mine",
        "theirs",
        1,
        1,
        2,
        1,
    )
    assert row["length_unit"] == "words"


def test_the_report_reads_a_run_that_was_judged(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (tmp_path / "report_judges.py").write_text(
        "def longer(p, a, b):\n    return [(len(x) > len(y)) - (len(x) < len(y)) for x, y in zip(a, b)]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["judge", str(run), "--judge", "function", "--function", "report_judges:longer"]) == 0
    judged = [c for c in read_run(run).comparisons if c.by == "judge"]
    assert len(judged) == 10
    assert all(c.wins + c.ties + c.losses == 128 for c in judged)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give either a run's folder, or --a FILE and --b FILE"),
        (["run", "--a", "x"], "give either a run's folder"),
        (["nowhere", "--judge", "openai"], "nowhere: no such run folder"),
        (
            ["empty", "--judge", "openai"],
            "empty: there are no responses to judge yet; run `p3o evaluate` on this run first",
        ),
        (["run"], "name a judge"),
        (["run", "--output", "x"], "leave --output out"),
        (["run", "--judge", "opnai"], "error: --judge opnai: 'kind' "),
        (["run", "--judge", "openai", "--model", "m", "--max-cost", "-1"], "error: --max-cost -1.0: 'max_cost' "),
        (["run", "--set", "kind=opnai"], "error: --set kind=opnai: 'kind' "),
        (["run", "--judge", "openai"], "needs model"),
        (["run", "--judge", "openai", "--model", "m", "--pair", "ppo"], "must have the form A:B"),
        (["run", "--judge", "openai", "--model", "m", "--against", "pp0"], "did you mean 'ppo'?"),
        (["run", "--judge", "openai", "--model", "m", "--template", "t"], "neither a file nor a built-in template"),
        (["run", "--judge", "openai", "--model", "m", "--max-cost", "1"], "max_cost needs price_input"),
        (["--a", "run/responses.jsonl", "--b", "bad.jsonl"], "bad.jsonl:2: 'response' must be a text"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "c"}\n')
    assert cli.main(["judge", *arguments]) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")

    def behave(question: str, _: int) -> str:
        time.sleep(0.01)
        return prefer_longer(question)

    with server(behave) as (url, log):
        arguments = ["judge", str(run), "--judge", "openai", "--model", "m", "--base-url", url, *TIMING]
        command = [sys.executable, "-m", "p3o", *arguments]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
            end = time.monotonic() + 60
            while len(log.answered) < 40 and time.monotonic() < end:
                time.sleep(0.005)
            client.send_signal(signal.SIGKILL)
        assert not (run / "judgements.jsonl").exists()
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        assert 120 <= len(log.requests) <= 120 + 4
    lines = rows_of(run / "judgements.jsonl")
    assert len({(line["a"], line["b"], line["prompt_index"]) for line in lines}) == len(lines) == 60
    assert all(line["outcome"] in ("a", "b") for line in lines)
