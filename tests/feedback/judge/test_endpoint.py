"""The endpoint's judge against a server that misbehaves: nothing lost, nothing paid twice, never without end."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.feedback.judge.server import Fault, prefer_longer, server

from p3o.config import RunConfig
from p3o.config_feedback import LabellerConfig
from p3o.data.formats import Message
from p3o.errors import P3OError
from p3o.feedback.judge import JudgeConfig, Verdict, open_judge, verdict_rates
from p3o.stages.context import RunContext
from p3o.stages.feedback import Feedback
from p3o.stages.labelling import label
from p3o.stages.models import Models
from p3o.training.progress import Nowhere, Progress
from p3o.training.tracking import RunFolder

PROMPTS = [f"Question {i}?" for i in range(12)]
# A is longer, hence better, where i is even.
A = ["long answer " * (2 if i % 2 == 0 else 1) + str(i) for i in range(12)]
B = ["long answer " * (1 if i % 2 == 0 else 2) + str(i) for i in range(12)]
WANTED = [1.0, -1.0] * 6


def config(url: str, **more: object) -> JudgeConfig:
    quick = {"backoff": 0.001, "timeout": 5.0, "concurrency": 4}
    return JudgeConfig(**({"kind": "openai", "model": "m", "base_url": url} | quick | more))


def judged(base_url: str, cache: Path | None = None, **more: object) -> list[Verdict]:
    return open_judge(config(base_url, **more), cache=cache).compare(PROMPTS, A, B)


def preferences(verdicts: list[Verdict]) -> list[float | None]:
    return [verdict.preference for verdict in verdicts]


def test_both_orders_are_asked_once_each_and_agree() -> None:
    with server(lambda question, _: prefer_longer(question)) as (url, log):
        verdicts = judged(url)
    assert preferences(verdicts) == WANTED
    assert len(log.requests) == len(set(log.requests)) == 24
    assert log.most_at_once <= 4
    assert verdicts[0].reasons == (
        "Comparison: one is longer.\nPreferred: A",
        "Comparison: one is longer.\nPreferred: B",
    )
    assert verdicts[0].forward is not None
    assert verdicts[0].forward.served_by == "judge-2026-01-01"
    rates = verdict_rates(verdicts)
    assert (rates.wins, rates.losses, rates.flips, rates.first_position_rate) == (6, 6, 0, 0.5)


def test_a_judge_that_always_takes_the_first_ties_everything() -> None:
    with server(lambda *_: "Preferred: A") as (url, _):
        rates = verdict_rates(judged(url))
    assert (rates.ties, rates.flips, rates.flip_rate, rates.first_position_rate) == (12, 12, 1.0, 1.0)


FAULTS: dict[str, Fault] = {
    "429": Fault(429, headers={"retry-after": "0.001"}),
    "500": Fault(500),
    "503": Fault(503),
    "cut": Fault(cut=True),
    "slow": Fault(wait=0.6),
    "no json": Fault(body="<html>gateway</html>"),
    "no completion": Fault(body='{"choices": null}'),
    "half": Fault(body='{"choices": [{"mess'),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_passing_fault_changes_no_verdict(name: str) -> None:
    with server(lambda q, attempt: FAULTS[name] if attempt <= 2 else prefer_longer(q)) as (url, log):
        verdicts = judged(url, timeout=0.3 if name == "slow" else 5.0, concurrency=24)
    assert preferences(verdicts) == WANTED
    assert len(log.requests) == 72
    assert max(log.answered.values()) == 1


def test_all_faults_at_once_change_no_verdict() -> None:
    faults = [fault for name, fault in FAULTS.items() if name != "slow"]

    def behave(question: str, attempt: int) -> str | Fault:
        place = zlib.crc32(f"{question}{attempt}".encode()) % (len(faults) + 3)
        return faults[place] if place < len(faults) and attempt < 10 else prefer_longer(question)

    with server(behave) as (url, log):
        verdicts = judged(url, attempts=20)
    assert preferences(verdicts) == WANTED
    assert all(count == 1 for count in log.answered.values())


def test_a_lasting_fault_is_bounded_counted_and_asked_again(tmp_path: Path) -> None:
    broken = True

    def behave(question: str, _: int) -> str | Fault:
        return Fault(500) if broken and "Question 3?" in question else prefer_longer(question)

    with server(behave) as (url, log):
        first = judged(url, tmp_path / "c.sqlite", attempts=3)
        assert len(log.requests) == 22 + 2 * 3
        assert first[3].outcome == "failed"
        assert first[3].forward is not None
        assert "HTTP 500" in first[3].forward.error
        rates = verdict_rates(first)
        assert (rates.pairs, rates.failed, rates.unjudged, rates.wins + rates.losses) == (12, 1, 1, 11)
        broken = False
        assert preferences(judged(url, tmp_path / "c.sqlite", attempts=3)) == WANTED
        assert len(log.requests) == 22 + 2 * 3 + 2


def test_garbage_is_invalid_and_not_paid_for_again_unless_asked(tmp_path: Path) -> None:
    garbage = True

    def behave(question: str, _: int) -> str:
        return "I cannot say." if garbage and "Question 5?" in question else prefer_longer(question)

    with server(behave) as (url, log):
        first = judged(url, tmp_path / "c.sqlite")
        assert (first[5].outcome, first[5].preference) == ("invalid", None)
        assert verdict_rates(first).invalid_rate == pytest.approx(1 / 12)
        assert judged(url, tmp_path / "c.sqlite") == first
        assert len(log.requests) == 24
        garbage = False
        assert preferences(judged(url, tmp_path / "c.sqlite", ask_invalid_again=True)) == WANTED
        assert len(log.requests) == 26


def test_a_dead_server_does_not_hold_the_run() -> None:
    with server(lambda *_: Fault(500)) as (url, log), pytest.raises(P3OError, match=r"in a row failed.*HTTP 500"):
        judged(url, attempts=2, give_up_after=3, concurrency=1)
    assert len(log.requests) == 6


def test_no_server_is_told() -> None:
    with pytest.raises(P3OError, match="connection failed"):
        judged("http://127.0.0.1:9/v1", attempts=1, give_up_after=1)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_stops_at_once(status: int) -> None:
    with server(lambda *_: Fault(status)) as (url, log), pytest.raises(P3OError, match=r"refused|no such model"):
        judged(url, concurrency=2)
    assert len(log.requests) <= 2


def test_one_bad_request_fails_alone_and_at_once() -> None:
    with server(lambda q, _: Fault(400) if "Question 0?" in q else prefer_longer(q)) as (url, log):
        verdicts = judged(url)
    assert [v.outcome for v in verdicts].count("failed") == 1
    assert len(log.requests) == 24


def test_other_parameters_models_and_templates_are_other_answers(tmp_path: Path) -> None:
    cache = tmp_path / "c.sqlite"
    with server(lambda q, _: prefer_longer(q)) as (url, log):
        judged(url, cache)
        for index, more in enumerate(({}, {"temperature": 0.5}, {"model": "n"}, {"template": "tldr"}, {"seed": 1})):
            judged(url, cache, **more)
            assert len(log.requests) == 24 * (index + 1)
        swapped = open_judge(config(url), cache=cache).compare(PROMPTS, B, A)
    assert preferences(swapped) == [-p for p in WANTED]
    assert len(log.requests) == 24 * 5


def test_equal_texts_are_a_tie_and_repeated_pairs_are_asked_once() -> None:
    with server(lambda q, _: prefer_longer(q)) as (url, log):
        verdicts = open_judge(config(url)).compare(["p", "p", "p"], ["x", "yy", "yy"], ["x", "y", "y"])
    assert preferences(verdicts) == [0.0, 1.0, 1.0]
    assert len(log.requests) == 2


def test_the_cost_is_checked_before_the_first_call_and_while_it_grows(tmp_path: Path) -> None:
    prices = {"price_input": 10.0, "price_output": 100.0, "max_tokens": 10}
    with server(lambda q, _: prefer_longer(q)) as (url, log):
        judge = open_judge(config(url, **prices), cache=tmp_path / "c.sqlite")
        estimate = judge.estimate(PROMPTS, A, B)
        assert (estimate.questions, estimate.known, estimate.output_tokens) == (24, 0, 240)
        assert estimate.cost == pytest.approx((estimate.input_tokens * 10 + 240 * 100) / 1e6)
        with pytest.raises(P3OError, match=r"24 questions may cost .* nothing was asked"):
            judged(url, tmp_path / "c.sqlite", **prices, max_cost=estimate.cost * 0.99)
        assert log.requests == []
        # The server's own count (100 tokens read, 10 written: 0.002 each) stops a run that the estimate let through.
        cheap = {"price_input": 0.1, "price_output": 300.0, "max_tokens": 1, "concurrency": 1}
        with pytest.raises(P3OError, match=r"spent.*stopped"):
            judged(url, tmp_path / "c.sqlite", **cheap, max_cost=0.01)
        assert len(log.requests) == 4
        verdicts = judged(url, tmp_path / "c.sqlite", **cheap)
        assert preferences(verdicts) == WANTED
        assert len(log.requests) == 24


# 100 tokens read and 10 written, as the server counts: .002 a question. The estimate lets them through.
PRICED = {"price_input": 0.0, "price_output": 200.0, "max_tokens": 1, "concurrency": 1}


def test_the_limit_holds_for_all_runs_together(tmp_path: Path) -> None:
    cache, limited = tmp_path / "c.sqlite", PRICED | {"max_cost": 0.011}
    with server(lambda q, _: prefer_longer(q)) as (url, log):
        with pytest.raises(P3OError, match=r"0.012 spent, more than 0.011; stopped"):
            judged(url, cache, **limited)
        assert len(log.requests) == 6
        for _ in range(2):
            with pytest.raises(
                P3OError, match=r"18 questions may cost .* 0.012 is already spent, more than 0.011; nothing"
            ):
                judged(url, cache, **limited)
        assert len(log.requests) == 6
        assert preferences(judged(url, cache, **PRICED)) == WANTED
        # What is known costs nothing, whatever the limit is now.
        again = open_judge(config(url, **limited), cache=cache)
        assert preferences(again.compare(PROMPTS, A, B)) == WANTED
        assert again.spent == pytest.approx(24 * 0.002)
        # Another model has spent nothing yet.
        assert open_judge(config(url, **limited | {"model": "other"}), cache=cache).spent == 0.0
    assert len(log.requests) == 24


def test_the_limit_holds_for_all_processes_together(tmp_path: Path) -> None:
    """Two judges on one file, each asked for a part, as two processes of a training are."""
    cache = tmp_path / "c.sqlite"
    with server(lambda q, _: prefer_longer(q)) as (url, log):
        one, other = (open_judge(config(url, **PRICED, max_cost=0.0201), cache=cache) for _ in range(2))
        one.compare(PROMPTS[:4], A[:4], B[:4])
        with pytest.raises(P3OError, match=r"0.022 spent, more than 0.0201"):
            other.compare(PROMPTS[4:], A[4:], B[4:])
        assert one.spent == other.spent == pytest.approx(11 * 0.002)
    assert len(log.requests) == 11


def test_the_limit_holds_for_what_labels_and_what_learns_in_a_run_together(tmp_path: Path) -> None:
    """A run whose pairs a judge labels, and whose policy learns from the same judge: one file of answers, one limit."""
    with server(lambda q, _: prefer_longer(q)) as (url, log):
        limited = config(url, **PRICED, max_cost=0.0201).model_dump()
        labeller = LabellerConfig.model_validate({"kind": "judge", "judge": limited})
        settings = RunConfig.model_validate({"model": "x", "device": "cpu", "reward": {"judge": limited}})
        folder = RunFolder.create(tmp_path, "x", config="", seed=0, threads=1)
        pairs = list(zip(PROMPTS, A, B, strict=True))
        once = {"gold": None, "scale": 1.0, "seed": 0, "folder": folder.path, "progress": Progress(Nowhere())}
        assert len(label(labeller, pairs[:4], **once).preferences) == 4
        run = RunContext(settings, folder, Progress(Nowhere()))
        run.__dict__["inputs"] = SimpleNamespace(conversations={})
        comparator = run.feedback.comparator()
        assert comparator is not None
        with pytest.raises(P3OError, match=r"0.022 spent, more than 0.0201"):
            comparator(PROMPTS[4:], A[4:], B[4:])
        assert len(log.requests) == 11
        assert comparator(PROMPTS[:4], A[:4], B[:4]) == WANTED[:4], "what a label cost is not paid again"
    assert len(log.requests) == 11


def test_an_answer_that_was_asked_for_twice_was_paid_twice(tmp_path: Path) -> None:
    cache = tmp_path / "c.sqlite"
    with server(lambda *_: "I cannot say.") as (url, _):
        for times in (1, 2):
            judge = open_judge(config(url, **PRICED, ask_invalid_again=True), cache=cache)
            assert verdict_rates(judge.compare(PROMPTS, A, B)).invalid == 12
            assert judge.spent == pytest.approx(times * 24 * 0.002)


def test_the_key_goes_into_the_header_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("JUDGE_KEY", key)

    def behave(question: str, attempt: int) -> str | Fault:
        if "Question 2?" in question:
            return Fault(400, body=json.dumps({"error": {"message": f"bad key {key}"}}))
        return f"{prefer_longer(question)}\nYour key is {key}."

    with server(behave) as (url, log):
        verdicts = judged(url, tmp_path / "c.sqlite", api_key_env="JUDGE_KEY")
    with (
        server(lambda *_: Fault(401, body=json.dumps({"error": {"message": f"Incorrect key {key}"}}))) as (url, _),
        pytest.raises(P3OError) as refused,
    ):
        judged(url, api_key_env="JUDGE_KEY")
    assert log.keys == {f"Bearer {key}"}
    assert key not in repr(verdicts)
    assert "***" in repr(verdicts)
    assert key not in str(refused.value)
    assert "JUDGE_KEY" in str(refused.value)
    assert all(key.encode() not in file.read_bytes() for file in tmp_path.iterdir())
    assert key not in "".join(capsys.readouterr())


def test_a_key_where_a_name_belongs_is_refused_without_repeating_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for more, message in (
        ({"api_key_env": "sk-secret-1"}, "never the key"),
        ({"base_url": "https://user:sk-secret-1@host/v1"}, "password"),
        ({"base_url": "https://host/v1?key=sk-secret-1"}, "query"),
        ({"base_url": None}, "OPENAI_API_KEY is not set"),
        ({"base_url": "localhost:8000"}, "not a valid address"),
    ):
        with pytest.raises(P3OError, match=message) as error:
            open_judge(config("http://localhost:1/v1", **more))
        assert "sk-secret-1" not in str(error.value)


def test_the_newer_name_of_the_limit_and_extra_fields_are_sent() -> None:
    with server(lambda q, _: prefer_longer(q)) as (url, log):
        judged(url, max_tokens=7, temperature=None, extra_body={"guided_choice": ["A", "B"]})
    body = log.bodies[0]
    assert (body["max_tokens"], body["guided_choice"], "temperature" in body) == (7, ["A", "B"], False)


CLIENT = """
import sys
from pathlib import Path
from p3o.feedback.judge import JudgeConfig, open_judge
url, cache = sys.argv[1:]
prompts = [f"Question {i}?" for i in range(40)]
a, b = [f"long answer {i}" for i in range(40)], [f"short {i}" for i in range(40)]
config = JudgeConfig(kind="openai", model="m", base_url=url, concurrency=3, backoff=0.001)
verdicts = open_judge(config, cache=Path(cache)).compare(prompts, a, b)
print([verdict.preference for verdict in verdicts] == [1.0] * 40)
"""


def until(done: Callable[[], bool], limit: float = 60.0) -> None:
    end = time.monotonic() + limit
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.slow
def test_a_client_that_is_killed_loses_no_answer_and_pays_for_none_twice(tmp_path: Path) -> None:
    cache = tmp_path / "c.sqlite"

    def behave(question: str, _: int) -> Fault | str:
        time.sleep(0.02)
        return prefer_longer(question)

    def kept() -> int:
        with sqlite3.connect(cache) as database:
            (count,) = database.execute("SELECT count(*) FROM answers").fetchone()
        database.close()
        return int(count)

    with server(behave) as (url, log):
        command = [sys.executable, "-c", CLIENT, url, str(cache)]
        for wanted in (15, 45):  # killed twice, at different places
            with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) as client:
                until(lambda wanted=wanted: len(log.answered) >= wanted)
                client.send_signal(signal.SIGKILL)
            before = kept()
            # Everything that was answered is there, but for what was in flight at the kill.
            assert len(log.answered) - 3 <= before <= len(log.answered) + 3
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
        assert done.stdout == "True\n"
        assert kept() == len(log.answered) == 80
        # At most the three requests in flight at each of the two kills were sent again.
        assert 80 <= len(log.requests) <= 80 + 2 * 3


def test_a_judge_as_feedback_is_shown_the_messages_of_a_conversation(tmp_path: Path) -> None:
    """Rendered by the policy's template they are full of marks, which may be special tokens of the judge's own."""
    rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    with server(lambda question, _: prefer_longer(question)) as (url, log):
        settings = RunConfig.model_validate({"model": "x", "reward": {"judge": config(url).model_dump()}})
        models = Models(settings, torch.device("cpu"), adapter_seed=0)
        talks = {rendered: (Message("user", "Hi"),)}
        feedback = Feedback(settings.reward, models, trained=str, conversations=talks, references=dict)
        comparator = feedback.comparator()
        assert comparator is not None
        assert comparator([rendered, "A text."], ["long", "l"], ["l", "long"]) == [1.0, -1.0]
    asked = [body["messages"][0]["content"] for body in log.bodies]
    assert len(asked) == 4
    assert sum("User: Hi" in text for text in asked) == sum("A text." in text for text in asked) == 2
    assert not any("im_start" in text for text in asked)
