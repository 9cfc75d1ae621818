"""A served reward in a run: the same metrics as the same reward in the process, and faults as the configuration says."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.feedback.judge.server import Fault as JudgeFault
from tests.feedback.judge.server import prefer_longer, server
from tests.feedback.remote.service import Fault, running, service

from p3o.cli import main
from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.feedback.remote.server import function_score, make_app
from p3o.files import read_jsonl, write_jsonl

RUN = ["--steps", "3", "--prompts-per-step", "4", "--max-new-tokens", "12", "--learning-rate", "1e-3"]
REWARDS = """
def brief(prompts, responses):
    return [-len(r) / 7 for r in responses]

def vowels(prompts, responses):
    return [sum(r.count(v) for v in "aeiou") / 3 for r in responses]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed=0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with prompts and reward functions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "run_rewards", raising=False)
    (tmp_path / "run_rewards.py").write_text(REWARDS)
    prompts = list(dict.fromkeys(task.prompts(40, seed=0, split="train")))
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    return tmp_path


def rl(model: Path, name: str, *more: str) -> int:
    settings = [*RUN, "--set", "evaluation={prompts: 4, every: 2, followed_prompts: 4}"]
    return main(["rl", "--model", str(model), "--prompts", "prompts.jsonl", "--name", name, *settings, *more])


def metrics(work: Path, name: str) -> list[dict[str, Any]]:
    return list(read_jsonl(work / "runs" / name / "metrics.jsonl"))


def test_a_served_reward_gives_the_run_that_the_reward_in_the_process_gives(model: Path, work: Path) -> None:
    assert rl(model, "here", "--reward-function", "run_rewards:brief") == 0
    with running(make_app(function_score("run_rewards:brief"), name="brief")) as url:
        assert rl(model, "served", "--reward-url", url, "--set", "reward.service.batch=3") == 0
    assert metrics(work, "served") == metrics(work, "here")
    assert len([row for row in metrics(work, "here") if row["stage"] == "rl"]) == 3
    weights = [
        (work / "runs" / name / "rl" / "p3o_v2" / "model.safetensors").read_bytes() for name in ("here", "served")
    ]
    assert weights[0] == weights[1]


def test_it_adds_up_with_other_rewards(model: Path, work: Path) -> None:
    def parts(served: str) -> str:
        return f"reward={{parts: {{short: {{{served}, weight: 2}}, vowels: {{function: 'run_rewards:vowels', weight: -1}}}}}}"

    assert rl(model, "here", "--set", parts("function: 'run_rewards:brief'")) == 0
    with running(make_app(function_score("run_rewards:brief"), name="brief")) as url:
        assert rl(model, "served", "--set", parts(f"service: {{url: '{url}'}}")) == 0
    assert metrics(work, "served") == metrics(work, "here")
    assert {"reward_short", "reward_vowels"} <= set(metrics(work, "served")[-2])


def test_faults_stop_a_run_or_drop_and_count_its_groups(
    model: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def behave(_path: str, body: dict[str, Any], _attempt: int) -> "dict[str, Any] | Fault":
        asked.append(len(body["prompts"]))
        rewards: list[float | None] = [len(response) / 7 for response in body["responses"]]
        if len(rewards) == 8 and asked.count(8) == 2:  # the second step of training; the evaluation asks for 4
            rewards[3] = None
        return {"version": 1, "rewards": rewards}

    with service(behave) as (url, _):
        assert rl(model, "stops", "--reward-url", url) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert re.search(r"/rewards: the reward of a response is nan \(prompt .*on_fault: skip", error)
    asked.clear()
    with service(behave) as (url, _):
        assert rl(model, "skips", "--reward-url", url, "--set", "rl.training.on_fault=skip") == 0
    rows = [row for row in metrics(work, "skips") if row["stage"] == "rl"]
    assert [row.get("dropped_groups", 0) for row in rows] == [0, 1, 0]
    warnings = json.loads((work / "runs" / "skips" / "run.json").read_text())["warnings"]
    (missing,) = [warning for warning in warnings if "missing;" in warning]
    assert "1 of 8 rewards are missing; the reward of a response is nan" in missing


def test_an_evaluation_counts_a_reward_that_did_not_come_like_one_that_is_not_finite(
    model: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def behave(_path: str, body: dict[str, Any], _attempt: int) -> "dict[str, Any] | Fault":
        """Refuses the first prompt of every evaluation (4 responses; a step has 8, the trial before it 2)."""
        if len(body["prompts"]) == 4:
            refused.extend(body["prompts"][:1])
        if set(body["prompts"]) & set(refused):
            return Fault(422)
        return {"version": 1, "rewards": [len(response) / 7 for response in body["responses"]]}

    refused: list[str] = []
    with service(behave) as (url, _):
        assert rl(model, "stops", "--reward-url", url) == 2
        assert "HTTP 422" in capsys.readouterr().err
        refused.clear()
        assert rl(model, "skips", "--reward-url", url, "--set", "rl.training.on_fault=skip") == 0
    rows = [row for row in metrics(work, "skips") if row["stage"] == "evaluate"]
    assert [(row["unscored"], row["prompts"]) for row in rows] == [(1, 4)] * len(rows)
    warnings = json.loads((work / "runs" / "skips" / "run.json").read_text())["warnings"]
    assert any("evaluation at step 0: left out 1 responses whose reward is not finite: " in text for text in warnings)


def test_a_service_that_is_not_there_is_told_before_anything_is_trained(
    model: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with service(lambda *_: Fault(500)) as (url, _):
        pass
    quick = ["--set", "reward.service.attempts=1"]
    assert rl(model, "dead", "--reward-url", url, *quick) == 2
    assert "connection failed" in capsys.readouterr().err
    assert not (work / "runs" / "dead" / "rl").exists()
    assert rl(model, "wrong", "--reward-url", "http://me:secret@host") == 2
    assert "contains a password" in capsys.readouterr().err
    assert not (work / "runs" / "wrong").exists(), "an address with a secret is never written"


@pytest.mark.slow
def test_the_command_serves_and_stops(work: Path) -> None:
    command = [sys.executable, "-m", "p3o", "serve-reward", "--function", "run_rewards:brief", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"serving run_rewards:brief at (http://127\.0\.0\.1:\d+); stop with Ctrl-C\n", line)
        assert found is not None
        from p3o.feedback.remote import RewardServiceConfig
        from p3o.feedback.remote.client import RemoteReward

        assert RemoteReward(RewardServiceConfig(url=found[1]))(["q"], ["seven.."]) == [-1.0]
        process.terminate()
        assert process.wait(20) in (0, 143, -15)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "either a reward model or --function"),
        (["model", "--function", "a:b"], "either a reward model or --function"),
        (["--function", "no_such_module:f"], "no module 'no_such_module'"),
        (["--function", "run_rewards:brief", "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["--function", "run_rewards:brief", "--host", "256.1.1.1"], "cannot listen on this address"),
    ],
)
def test_the_command_says_what_it_lacks(
    arguments: Sequence[str], said: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve-reward", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_served_judge_is_what_a_run_learns_from(model: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same run as with a comparing function of the same taste; an unanswered question drops its group."""
    (work / "run_taste.py").write_text(
        "def longer(prompts, a, b):\n"
        "    sizes = [(len(x.strip()), len(y.strip())) for x, y in zip(a, b, strict=True)]\n"
        "    return [(x > y) - (x < y) for x, y in sizes]\n"
    )

    def judge(url: str) -> list[str]:
        settings = {"kind": "openai", "model": "judge", "base_url": url, "backoff": 0.001}
        return ["--set", f"reward.judge={json.dumps(settings)}"]

    assert rl(model, "function", "--set", "reward.comparison=run_taste:longer") == 0
    with server(lambda question, _: prefer_longer(question)) as (url, log):
        assert rl(model, "judged", *judge(url)) == 0
        assert rl(model, "ppo", "--algorithm", "ppo", *judge(url)) == 2
    assert metrics(work, "judged") == metrics(work, "function")
    assert "ppo needs a reward for every response" in capsys.readouterr().err
    heldout = {row["prompt"] for row in read_jsonl(work / "runs" / "judged" / "samples.jsonl")}
    asked = "".join(question for question in log.requests if "Another response." not in question)
    prompts = [row["prompt"] for row in read_jsonl(work / "prompts.jsonl")]
    unanswered = next(prompt for prompt in prompts if prompt in asked and prompt not in heldout)

    def failing(question: str, _: int) -> "str | JudgeFault":
        lost = unanswered in question and "Another response." not in question
        return JudgeFault(400) if lost else prefer_longer(question)

    with server(failing) as (url, _):
        assert rl(model, "stops", *judge(url)) == 2
        assert re.search(r"judge .* no answer \(HTTP 400.*on_fault: skip", capsys.readouterr().err)
        assert rl(model, "skips", *judge(url), "--set", "rl.training.on_fault=skip") == 0
    assert sum(row.get("dropped_groups", 0) for row in metrics(work, "skips")) == 1
