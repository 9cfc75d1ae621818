"""A reward model that p3o trained behind a real vLLM server on a CPU: by every interface the scores that transformers gives,
and the same run as in one process, though the server is killed in its middle.

``make test-vllm`` makes the environment and runs this. What it measures is printed (``-s``) and stands in
docs/rewards_service.md.
"""

import importlib.util
import math
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.chat_model import CHATML
from tests.rollouts.real import RealServer, needs_vllm
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from p3o.cli import main
from p3o.config import RunConfig
from p3o.config_feedback import RewardConfig
from p3o.data.formats import Message
from p3o.errors import P3OError
from p3o.feedback.missing import rewards_may_be_missing
from p3o.feedback.remote.client import RemoteReward
from p3o.feedback.reward_model import encode_for_reward
from p3o.files import read_jsonl, write_jsonl
from p3o.models.language import load_tokenizer
from p3o.stages.feedback import Feedback
from p3o.stages.models import Models

TINY = Path(__file__).parents[3] / "examples" / "tiny_model.py"
TOLERANCE = 1e-3
LONGEST = 160
"""Tokens that the server reads."""

THINGS = ["a kettle", "the moon", "my old bicycle", "a letter", "the last bus", "an onion", "two chairs", "the rain"]
PROMPTS = [f"Say something about {thing}." for thing in THINGS]
KIND = [f"With pleasure: {thing} is worth a closer look, and I like it." for thing in THINGS]
CURT = ["no.", "Ask somebody else.", "why", "hm", "no. no. no.", "later", "I will not.", "what?"]
RESPONSES = KIND + CURT
"""From the best to the worst."""
END = "<end>"

pytestmark = [pytest.mark.slow, needs_vllm]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``policy``, ``reward`` (trained from it), ``padded`` (the same, its padding being its end of sequence), prompts.jsonl."""
    folder = tmp_path_factory.mktemp("served")
    pairs = [
        {"prompt": prompt, "chosen": better, "rejected": worse}
        for prompt in PROMPTS
        for better, worse in zip(RESPONSES, RESPONSES[3:], strict=False)
    ]
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(folder / "prompts.jsonl", [{"prompt": f"{prompt} {n}"} for prompt in PROMPTS for n in range(5)])
    spec = importlib.util.spec_from_file_location("tiny_model", TINY)
    assert spec is not None
    assert spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    tiny.write(folder / "policy", [folder / "pairs.jsonl"])
    training = ["--steps", "24", "--batch-size", "8", "--learning-rate", "1e-3", "--name", "made"]
    files = ["--model", str(folder / "policy"), "--preferences", str(folder / "pairs.jsonl")]
    assert main(["reward", *files, *training, "--output", str(folder / "runs")]) == 0
    made = folder / "runs" / "made" / "reward_model"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(made), load_tokenizer(str(made))
    # A policy of plain texts has no template, and conversations are to be asked, too.
    tokenizer.chat_template = CHATML
    for name, padding in (("reward", tokenizer.pad_token), ("padded", END)):
        tokenizer.pad_token = padding
        model.config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def server(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    arguments = ["--runner", "pooling", "--max-model-len", str(LONGEST)]
    real = RealServer(work / "reward", tmp_path_factory.mktemp("vllm"), *arguments)
    try:
        real.start()
        print(f"\nvLLM with a reward model ready in {real.wait():.0f} s")
        yield real
    finally:
        real.kill()


@torch.no_grad()
def by_transformers(folder: Path, rows: Sequence[Sequence[int]]) -> list[float]:
    """Each row by itself, through the classifier's own forward."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    scores = [model(input_ids=torch.tensor([list(row)])).logits.item() for row in rows]
    assert max(scores) - min(scores) > 1, "a constant, or a sigmoid of it, would not pass"
    return scores


def asked(
    server: RealServer,
    conversations: dict[str, tuple[Message, ...]] | None = None,
    responses: Sequence[str] = (),
    **service: Any,
) -> list[float]:
    """What a run that has this reward service is given; batches of 3."""
    given = {"url": server.url, "batch": 3, "attempts": 1} | service
    config = RewardConfig.model_validate({"service": given})
    models = Models(RunConfig(), torch.device("cpu"), adapter_seed=0)
    feedback = Feedback(config, models, trained=str, conversations=conversations or {}, references=dict)
    return list(feedback.scorer()(PROMPTS * 2, responses or RESPONSES))


def agree(found: Sequence[float], wanted: Sequence[float], what: str) -> None:
    worst = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    print(f"{what}: {len(found)} scores from {min(wanted):+.2f} to {max(wanted):+.2f}, at most {worst:.1e} off")
    assert worst < TOLERANCE


def tokenizer_of(work: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(work / "reward"))


@pytest.mark.parametrize("name", ["reward", "padded"])
@pytest.mark.parametrize("interface", ["classify", "pooling"])
def test_ids_are_scored_as_by_transformers(server: RealServer, work: Path, interface: str, name: str) -> None:
    """Plain texts and conversations in one call; the classifier whose padding is its end reads the token before that."""
    talk = {PROMPTS[1]: (Message("system", "Be brief."), Message("user", THINGS[1]))}
    rows = encode_for_reward(load_tokenizer(str(work / name)), PROMPTS * 2, RESPONSES, conversations=talk)
    found = asked(server, talk, interface=interface, tokenizer=str(work / name))
    agree(found, by_transformers(work / name, rows), f"{interface}, ids, {name}")


@pytest.mark.parametrize("interface", ["classify", "pooling"])
def test_texts_are_scored_as_by_transformers(server: RealServer, work: Path, interface: str) -> None:
    texts = [prompt + response + END for prompt, response in zip(PROMPTS * 2, RESPONSES, strict=True)]
    wanted = by_transformers(work / "reward", tokenizer_of(work)(texts)["input_ids"])
    agree(asked(server, interface=interface, end=END), wanted, f"{interface}, texts")


@pytest.mark.parametrize("interface", ["classify", "pooling"])
def test_conversations_are_scored_as_by_transformers(server: RealServer, work: Path, interface: str) -> None:
    talk = {prompt: (Message("user", thing),) for prompt, thing in zip(PROMPTS, THINGS, strict=True)}
    rows = encode_for_reward(tokenizer_of(work), PROMPTS * 2, RESPONSES, conversations=talk)
    agree(
        asked(server, talk, interface=interface), by_transformers(work / "reward", rows), f"{interface}, conversations"
    )


def test_pairs_are_scored_as_by_transformers(server: RealServer, work: Path) -> None:
    """vLLM reads the two texts as the tokenizer's pair, which without special tokens is one after the other."""
    rows = encode_for_reward(tokenizer_of(work), PROMPTS * 2, RESPONSES, conversations={})
    assert rows == tokenizer_of(work)(PROMPTS * 2, [response + END for response in RESPONSES])["input_ids"]
    agree(asked(server, interface="score", end=END), by_transformers(work / "reward", rows), "score, pairs")


@pytest.mark.parametrize("interface", ["classify", "pooling", "score"])
def test_a_response_that_is_too_long_costs_itself(server: RealServer, work: Path, interface: str) -> None:
    service = {"interface": interface, "end": END}
    right = asked(server, **service)
    responses = [*KIND, "and so on " * LONGEST, *CURT[1:]]
    with pytest.raises(P3OError, match=rf"/{interface}: HTTP 400: .*{LONGEST}.*\(prompt 'Say something") as raised:
        asked(server, responses=responses, **service)
    print(f"too long: {raised.value}")
    with rewards_may_be_missing():
        rewards = asked(server, responses=responses, **service)
    lost = len(KIND)
    assert math.isnan(rewards[lost])
    assert rewards[:lost] + rewards[lost + 1 :] == pytest.approx(right[:lost] + right[lost + 1 :], abs=TOLERANCE)


def test_another_model_s_name_is_refused_at_once(server: RealServer) -> None:
    with pytest.raises(P3OError, match=r"there is no such model or path \(HTTP 404: .*guard"):
        asked(server, interface="classify", model="guard", attempts=5)


def test_a_run_is_that_with_the_model_in_the_process_though_the_server_is_killed(
    server: RealServer, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 under the second request, all state lost: the run waits until the server is back, and no reward is another."""

    def run(name: str, reward: str) -> list[dict[str, Any]]:
        files = ["--model", str(work / "policy"), "--prompts", str(work / "prompts.jsonl")]
        settings = ["--steps", "3", "--prompts-per-step", "4", "--max-new-tokens", "12", "--learning-rate", "1e-3"]
        settings += ["--set", "evaluation={prompts: 4, every: 2, followed_prompts: 4}", "--set", reward]
        assert main(["rl", *files, *settings, "--name", name, "--output", str(work / "runs")]) == 0
        return list(read_jsonl(work / "runs" / name / "metrics.jsonl"))

    undisturbed = run("here", f"reward.model={work / 'reward'}")
    attempt, times, back = RemoteReward._attempt, [0], threading.Event()

    async def attempted(self: RemoteReward, *arguments: Any) -> Any:
        times[0] += 1
        if times[0] == 2:
            threading.Timer(0.01, lambda: (server.kill(), server.start(), back.set())).start()
        return await attempt(self, *arguments)

    monkeypatch.setattr(RemoteReward, "_attempt", attempted)
    started = time.monotonic()
    service = {"url": server.url, "interface": "classify", "tokenizer": str(work / "reward"), "attempts": 20}
    rows = run("served", f"reward.service={service}")
    assert back.is_set()
    assert [row["stage"] for row in rows] == [row["stage"] for row in undisturbed]
    for row, wanted in zip(rows, undisturbed, strict=True):
        for name in ("reward", "reward_gap", "kl_k1", "loss", "length", "updates"):
            assert row.get(name) == pytest.approx(wanted.get(name), abs=TOLERANCE), name
    print(f"killed and back: {time.monotonic() - started:.0f} s with the run, {times[0]} requests, the same rewards")
