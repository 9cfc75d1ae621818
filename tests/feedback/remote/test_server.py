"""p3o serve-reward: the same rewards as in the process that trains, and an answer to every request that makes no sense."""

import json
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tests.chat_model import chat_tokenizer
from tests.feedback.remote.service import running
from transformers import LlamaConfig, LlamaForSequenceClassification

from p3o.data.formats import Message
from p3o.errors import P3OError
from p3o.feedback.missing import rewards_may_be_missing
from p3o.feedback.remote import RewardServiceConfig
from p3o.feedback.remote.client import RemoteReward
from p3o.feedback.remote.server import Limits, function_score, make_app, model_score
from p3o.feedback.reward_model import RewardModel, load_reward_model
from p3o.models.language import load_tokenizer

PROMPTS = [f"Question {i}?" for i in range(6)]
RESPONSES = [f"answer {'x' * (3 * i)}" for i in range(6)]
TALK = {PROMPTS[2]: (Message("system", "Be brief."), Message("user", "Question 2?"))}


def lengths(prompts: Sequence[str], responses: Sequence[str], _: Any) -> list[float]:
    return [len(response) / 3 for response in responses]


def ask(url: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = httpx.post(f"{url}/rewards", content=content, headers=headers)
    return reply.status_code, reply.json()


def rewards_of(url: str, **more: Any) -> list[float]:
    return RemoteReward(RewardServiceConfig(url=url, backoff=0.001, **more))(PROMPTS, RESPONSES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with a chat template of its own."""
    path = tmp_path_factory.mktemp("reward")
    tokenizer = chat_tokenizer(eos="<|im_end|>")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, max_position_embeddings=64, **sizes)
    LlamaForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_reward_model_is_served_to_the_last_bit_conversations_included(folder: Path) -> None:
    cpu = torch.device("cpu")
    here = RewardModel(load_reward_model(str(folder), device=cpu), load_tokenizer(str(folder)), conversations=TALK)
    wanted = here(PROMPTS, RESPONSES)
    assert len(set(wanted)) == len(wanted)
    app = make_app(model_score(str(folder), device=cpu, batch_size=64), name="rm", threads=1)
    with running(app) as url:
        remote = RemoteReward(RewardServiceConfig(url=url), conversations=TALK)
        assert remote(PROMPTS, RESPONSES) == wanted
        assert rewards_of(url)[2] != wanted[2], "without its messages the prompt is read as a text"
        parts = RemoteReward(RewardServiceConfig(url=url, batch=1), conversations=TALK)(PROMPTS, RESPONSES)
    assert parts == pytest.approx(wanted, abs=1e-5)


def test_what_the_model_cannot_read_is_the_request_s_fault(folder: Path) -> None:
    app = make_app(model_score(str(folder), device=torch.device("cpu"), batch_size=64), name="rm")
    with running(app) as url:
        status, reply = ask(url, {"version": 1, "prompts": ["q"], "responses": ["x" * 100]})
        assert (status, reply["version"]) == (422, 1)
        assert "has 102 of its tokens, but it can read only 64" in reply["error"]
        with rewards_may_be_missing():
            rewards = RemoteReward(RewardServiceConfig(url=url))(["a", "b", "c"], ["fine", "x" * 100, "fine"])
    assert [math.isnan(reward) for reward in rewards] == [False, True, False]


def test_a_function_is_served_and_its_mistakes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "served_rewards.py").write_text(
        "def brief(prompts, responses):\n    return [1 / len(r) for r in responses]\n"
    )
    monkeypatch.chdir(tmp_path)
    with running(make_app(function_score("served_rewards:brief"), name="served_rewards:brief")) as url:
        assert rewards_of(url) == [1 / len(response) for response in RESPONSES]
        assert httpx.get(f"{url}/health").json() == {"version": 1, "reward": "served_rewards:brief", "waiting": 0}
        status, reply = ask(url, {"version": 1, "prompts": ["q"], "responses": [""]})
    assert status == 422
    assert "'served_rewards:brief' raised ZeroDivisionError" in reply["error"]
    with pytest.raises(P3OError, match="has no function 'long'"):
        function_score("served_rewards:long")


GOOD = {"version": 1, "prompts": ["q"], "responses": ["a"]}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 422, "Invalid JSON"),
        (b"\xff\xfe", 422, "Invalid JSON"),
        ([], 422, "object"),
        (GOOD | {"version": 2}, 422, "version: Input should be 1"),
        (GOOD | {"responses": []}, 422, "equally long"),
        (GOOD | {"messages": []}, 422, "equally long"),
        (GOOD | {"messages": [[{"role": "tool", "content": "x"}]]}, 422, "messages.0.0.role"),
        (GOOD | {"prompts": [1]}, 422, "prompts.0"),
        (GOOD | {"temperature": 1}, 422, "temperature: Extra inputs"),
        (GOOD | {"model": "another"}, 404, "this server serves 'lengths'"),
        ({"version": 1, "prompts": ["q"] * 9, "responses": ["a"] * 9}, 413, "9 responses; at most 8"),
    ],
)
def test_a_request_that_is_none_is_told_why(body: Any, status: int, said: str) -> None:
    with running(make_app(lengths, name="lengths", limits=Limits(rows=8))) as url:
        found, reply = ask(url, body)
        assert ask(url, GOOD) == (200, {"version": 1, "rewards": [1 / 3]})
    assert found == status
    assert said in reply["error"]
    assert "rewards" not in reply


def test_a_body_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p3o.feedback.remote.server.LARGEST_BODY", 100)
    with running(make_app(lengths, name="lengths")) as url:
        status, reply = ask(url, GOOD | {"responses": ["x" * 1000]})
    assert (status, reply["error"]) == (413, "more than 100 bytes; send fewer responses in a request")


def test_rewards_that_are_not_finite_are_null() -> None:
    with running(make_app(lambda p, r, _: [math.nan, 1.5, -math.inf], name="x")) as url:
        asked = {"version": 1, "prompts": ["q"] * 3, "responses": ["a"] * 3}
        assert ask(url, asked) == (200, {"version": 1, "rewards": [None, 1.5, None]})


def test_a_mistake_in_the_service_is_a_500_and_may_be_sent_again(capfd: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []

    def flaky(prompts: Sequence[str], responses: Sequence[str], _: Any) -> list[float]:
        calls.append(len(prompts))
        if len(calls) == 1:
            raise RuntimeError("the device fell asleep")
        return [1.0] * len(prompts)

    with running(make_app(flaky, name="flaky")) as url:
        assert rewards_of(url) == [1.0] * 6
    assert calls == [6, 6]
    assert "the device fell asleep" in capfd.readouterr().err


def test_a_key_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_KEY", "right")
    with running(make_app(lengths, name="lengths", key="right")) as url:
        assert ask(url, GOOD)[0] == 401
        assert ask(url, GOOD, authorization="Bearer wrong")[0] == 401
        assert ask(url, GOOD, authorization="Bearer right")[0] == 200
        assert len(rewards_of(url, api_key_env="REWARD_KEY")) == 6
        with pytest.raises(P3OError, match="the key was refused"):
            rewards_of(url, api_key_env="NO_SUCH_KEY")


def test_one_request_is_computed_at_a_time_others_wait_too_many_are_sent_away_and_late_ones_are_not_computed() -> None:
    entered, leave = threading.Event(), threading.Event()
    computed: list[str] = []

    def slow(prompts: Sequence[str], responses: Sequence[str], _: Any) -> list[float]:
        entered.set()
        assert leave.wait(10)
        computed.append(responses[0])
        return [0.0] * len(prompts)

    statuses: dict[str, int] = {}

    def send(name: str) -> None:
        statuses[name] = ask(url, GOOD | {"responses": [name]})[0]

    with running(make_app(slow, name="slow", limits=Limits(waiting=2, timeout=1.0))) as url:
        first = threading.Thread(target=send, args=("first",))
        first.start()
        assert entered.wait(10)
        second = threading.Thread(target=send, args=("second",))
        second.start()
        while httpx.get(f"{url}/health").json()["waiting"] < 2:
            pass
        send("third")
        assert statuses == {"third": 503}
        first.join()
        second.join()
        leave.set()
        send("fourth")
    assert statuses == {"third": 503, "first": 504, "second": 504, "fourth": 200}
    assert computed == ["first", "fourth"]
