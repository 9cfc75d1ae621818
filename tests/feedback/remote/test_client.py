"""The client of a reward service against one that misbehaves: right rewards in order, one error, or gaps that are counted."""

import math
import os
from typing import Any

import pytest
from tests.feedback.remote.service import Fault, service

from p3o.data.formats import Message
from p3o.errors import P3OError
from p3o.feedback.combined import CombinedReward, WeightedReward
from p3o.feedback.missing import rewards_may_be_missing
from p3o.feedback.remote import RewardServiceConfig
from p3o.feedback.remote.client import RemoteReward

PROMPTS = [f"Question {i}?" for i in range(10)]
RESPONSES = [f"answer {'x' * (7 * i % 10)} {i}" for i in range(10)]
WANTED = [len(response) / 3 for response in RESPONSES]


def config(url: str, **more: Any) -> RewardServiceConfig:
    quick: dict[str, Any] = {"backoff": 0.001, "timeout": 5.0, "batch": 3, "concurrency": 2}
    return RewardServiceConfig(**({"url": url} | quick | more))


def own(rewards: list[float | None]) -> dict[str, Any]:
    return {"version": 1, "rewards": rewards}


def honest(_path: str, body: dict[str, Any], _attempt: int) -> dict[str, Any]:
    return own([len(response) / 3 for response in body["responses"]])


def rewards_of(url: str, **more: Any) -> list[float]:
    return RemoteReward(config(url, **more))(PROMPTS, RESPONSES)


def test_rewards_come_in_order_whatever_the_batches() -> None:
    with service(honest) as (url, log):
        assert rewards_of(url) == WANTED
    assert sorted(len(body["responses"]) for body in log.bodies) == [1, 3, 3, 3]
    assert set(log.paths) == {"/rewards"}
    assert {"version": 1, "prompts": PROMPTS[:3], "responses": RESPONSES[:3]} in log.bodies
    assert log.most_at_once <= 2


def test_nothing_is_asked_about_no_responses() -> None:
    with service(honest) as (url, log):
        assert RemoteReward(config(url))([], []) == []
    assert log.bodies == []


FAULTS: dict[str, Fault] = {
    "429": Fault(429, headers={"retry-after": "0.001"}),
    "500": Fault(500),
    "503": Fault(503),
    "cut": Fault(cut=True),
    "slow": Fault(wait=0.6),
    "no json": Fault(body="<html>gateway</html>"),
    "half": Fault(body='{"version": 1, "rew'),
    "another version": Fault(body='{"version": 2, "rewards": [1, 2, 3]}'),
    "no rewards": Fault(body='{"version": 1}'),
    "texts": Fault(body='{"version": 1, "rewards": ["1", "2", "3"]}'),
    "too few": Fault(body='{"version": 1, "rewards": []}'),
    "deep": Fault(body="[" * 100_000),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_passing_fault_changes_no_reward(name: str) -> None:
    with service(lambda path, body, n: FAULTS[name] if n <= 2 else honest(path, body, n)) as (url, log):
        assert rewards_of(url, timeout=0.3 if name == "slow" else 5.0, concurrency=4) == WANTED
    assert len(log.bodies) == 12


@pytest.mark.parametrize("name", FAULTS)
def test_a_lasting_fault_is_one_error_after_a_bounded_number_of_requests(name: str) -> None:
    with (
        service(lambda *_: FAULTS[name]) as (url, log),
        pytest.raises(P3OError, match=r"/rewards: .+, 3 times \(prompt 'Question") as raised,
    ):
        rewards_of(url, timeout=0.2 if name == "slow" else 5.0, attempts=3)
    assert len(log.bodies) <= 2 * 3
    assert len(str(raised.value)) < 500


def test_a_dead_address_is_one_error() -> None:
    with service(honest) as (url, _):
        pass
    with pytest.raises(P3OError, match=r"connection failed: .*, 2 times"):
        rewards_of(url, attempts=2)


@pytest.mark.parametrize(("status", "said"), [(401, "the key was refused"), (404, "no such model or path")])
def test_a_refusal_of_the_key_or_the_path_is_not_sent_again_even_where_rewards_may_be_missing(
    status: int, said: str
) -> None:
    with (
        service(lambda *_: Fault(status)) as (url, log),
        rewards_may_be_missing(),
        pytest.raises(P3OError, match=said),
    ):
        rewards_of(url, concurrency=1)
    assert len(log.bodies) == 1


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_an_error_that_names_the_prompt(value: float | None) -> None:
    def behave(_path: str, body: dict[str, Any], _attempt: int) -> dict[str, Any]:
        return own([value if text.endswith(" 4") else 1.0 for text in body["responses"]])

    with (
        service(behave) as (url, log),
        pytest.raises(P3OError, match=r"reward of a response is (nan|inf) .*'Question 4"),
    ):
        rewards_of(url)
    assert len(log.bodies) <= 4, "asking again would give the same"


def test_where_rewards_may_be_missing_only_those_are_and_the_reason_is_told() -> None:
    def behave(path: str, body: dict[str, Any], attempt: int) -> "dict[str, Any] | Fault":
        return Fault(500) if RESPONSES[4] in body["responses"] else honest(path, body, attempt)

    said: list[str] = []
    with service(behave) as (url, _), rewards_may_be_missing():
        rewards = RemoteReward(config(url, attempts=2), tell=said.append)(PROMPTS, RESPONSES)
    assert [math.isnan(reward) for reward in rewards] == [False] * 3 + [True] * 3 + [False] * 4
    assert [reward for reward in rewards if reward == reward] == WANTED[:3] + WANTED[6:]
    assert said == [f"{url}/rewards: 3 of 10 rewards are missing; HTTP 500: 'status 500', 2 times"]


def test_a_request_that_is_refused_for_what_it_holds_loses_only_the_row_that_is_to_blame() -> None:
    def behave(path: str, body: dict[str, Any], attempt: int) -> "dict[str, Any] | Fault":
        return Fault(422) if RESPONSES[4] in body["responses"] else honest(path, body, attempt)

    with service(behave) as (url, _), rewards_may_be_missing():
        rewards = rewards_of(url, batch=10)
    assert [i for i, reward in enumerate(rewards) if math.isnan(reward)] == [4]
    assert rewards[:4] + rewards[5:] == WANTED[:4] + WANTED[5:]
    with service(behave) as (url, log), pytest.raises(P3OError, match="HTTP 422: 'status 422' "):
        rewards_of(url, batch=10)
    assert len(log.bodies) == 1, "what is refused for what it holds is not sent again"


def test_the_key_goes_into_the_header_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_KEY", "s3cret-key")

    def behave(*_: object) -> Fault:
        return Fault(400, body='{"error": {"message": "key s3cret-key is of no use"}}')

    with service(behave) as (url, log), pytest.raises(P3OError, match=r"key \*\*\* is of no use"):
        rewards_of(url, api_key_env="REWARD_KEY")
    assert log.keys == {"Bearer s3cret-key"}
    assert "s3cret" not in config("http://localhost:1", api_key_env="REWARD_KEY").model_dump_json()
    with service(honest) as (url, log):
        rewards_of(url, api_key_env="NO_SUCH_KEY")
    assert log.keys == {""}
    assert "NO_SUCH_KEY" not in os.environ


@pytest.mark.parametrize(
    "url", ["localhost:8100", "ftp://host", "http://user:pass@host", "http://host/?key=x", "http://[x"]
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="url") as raised:
        RewardServiceConfig(url=url)
    assert "pass" not in str(raised.value).split("[type=")[0].replace("password", "")


def test_an_address_may_be_written_as_other_clients_write_it() -> None:
    assert RewardServiceConfig(url="http://host:8000/v1/").url == "http://host:8000"


def classify(path: str, body: dict[str, Any], _attempt: int) -> dict[str, Any]:
    """As vLLM replies, entries in any order."""
    texts = body["input"] if "input" in body else [body["messages"]]
    entries = [{"index": i, "label": "LABEL_0", "probs": [_size(t)], "num_classes": 1} for i, t in enumerate(texts)]
    return {"id": "x", "object": "list", "model": body["model"], "data": entries[::-1], "usage": {}}


def pooling(path: str, body: dict[str, Any], attempt: int) -> dict[str, Any]:
    reply = classify(path, body, attempt)
    entries = [{"index": e["index"], "object": "pooling", "data": e["probs"]} for e in reply["data"]]
    return reply | {"data": entries}


def token_pooling(path: str, body: dict[str, Any], attempt: int) -> dict[str, Any]:
    """A token reward model: a score at every token, of which the last counts."""
    reply = pooling(path, body, attempt)
    return reply | {"data": [e | {"data": [[-1.0], [0.5], e["data"]]} for e in reply["data"]]}


def score(_path: str, body: dict[str, Any], _attempt: int) -> dict[str, Any]:
    sizes = [10 * len(a) + len(b) for a, b in zip(body["text_1"], body["text_2"], strict=True)]
    return {"data": [{"index": i, "object": "score", "score": float(size)} for i, size in enumerate(sizes)]}


def _size(text: Any) -> float:
    if isinstance(text, str):
        return float(len(text))
    return float(sum(text)) if isinstance(text[0], int) else float(sum(len(turn["content"]) for turn in text))


@pytest.mark.parametrize(("name", "behave"), [("classify", classify), ("pooling", pooling), ("pooling", token_pooling)])
def test_the_interfaces_of_vllm_read_prompt_and_response_as_one_text(name: str, behave: Any) -> None:
    with service(behave) as (url, log):
        rewards = rewards_of(url, interface=name, model="rm", end="</s>", extra_body={"priority": 1}, concurrency=1)
    assert rewards == [len(p + r + "</s>") for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert log.bodies[0] == {
        "input": [p + r + "</s>" for p, r in zip(PROMPTS[:3], RESPONSES[:3], strict=True)],
        "use_activation": False,
        "model": "rm",
        "priority": 1,
    }
    assert set(log.paths) == {f"/{name}"}


def test_score_reads_prompt_and_response_as_a_pair() -> None:
    with service(score) as (url, log):
        rewards = rewards_of(url, interface="score", model="rm", concurrency=1)
    assert rewards == [10 * len(p) + len(r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert log.bodies[-1] == {"text_1": PROMPTS[9:], "text_2": RESPONSES[9:], "use_activation": False, "model": "rm"}


def test_conversations_are_sent_as_messages_one_to_a_request_among_texts_in_batches() -> None:
    talk = {PROMPTS[1]: (Message("system", "Be brief."), Message("user", "Question 1?"))}
    with service(classify) as (url, log):
        rewards = RemoteReward(config(url, interface="classify", model="rm"), conversations=talk)(PROMPTS, RESPONSES)
    wanted = [float(len(p + r)) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    wanted[1] = len("Be brief.") + len("Question 1?") + len(RESPONSES[1])
    assert rewards == wanted
    (chat,) = [body for body in log.bodies if "messages" in body]
    assert chat["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Question 1?"},
        {"role": "assistant", "content": RESPONSES[1]},
    ]
    with service(honest) as (url, log):
        RemoteReward(config(url), conversations=talk)(PROMPTS[:2], RESPONSES[:2])
    assert log.bodies[0]["messages"] == [None, chat["messages"][:2]]
    assert log.bodies[0]["prompts"] == PROMPTS[:2], "beside the text that the policy reads"


def test_with_the_reward_model_s_tokenizer_its_ids_are_sent() -> None:
    def encode(prompts: Any, responses: Any) -> list[list[int]]:
        return [[len(p), len(r)] for p, r in zip(prompts, responses, strict=True)]

    talk = {PROMPTS[1]: (Message("user", "Question 1?"),)}
    with service(classify) as (url, log):
        settings = config(url, interface="classify", model="rm")
        rewards = RemoteReward(settings, conversations=talk, encode=encode)(PROMPTS, RESPONSES)
    assert rewards == [len(p) + len(r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert sorted(len(body["input"]) for body in log.bodies) == [1, 3, 3, 3], "conversations among the others"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([{"index": 0, "probs": [0.1, 0.9]}], "2 numbers for a response"),
        ([{"index": 1, "probs": [0.1]}], "indices"),
        ([{"index": 0, "probs": "AAAA"}], "not a list"),
        ({"0": 1}, "not a list"),
    ],
)
def test_what_is_no_reward_is_told(entries: Any, said: str) -> None:
    with service(lambda *_: {"data": entries}) as (url, _), pytest.raises(P3OError, match=said):
        RemoteReward(config(url, interface="classify", attempts=1))(PROMPTS[:1], RESPONSES[:1])


def test_half_a_surrogate_pair_in_a_response_is_sent_and_answered() -> None:
    with service(honest) as (url, log):
        assert RemoteReward(config(url))(["q"], ["a\ud800b"]) == [1.0]
    assert log.bodies[0]["responses"] == ["a\ud800b"]


def test_a_sum_has_the_gaps_of_its_parts_and_means_of_what_was_had() -> None:
    def behave(path: str, body: dict[str, Any], attempt: int) -> "dict[str, Any] | Fault":
        return Fault(422) if RESPONSES[0] in body["responses"] else honest(path, body, attempt)

    with service(behave) as (url, _), rewards_may_be_missing():
        remote = RemoteReward(config(url, batch=1))
        parts = {"served": WeightedReward(remote, 2.0), "ones": WeightedReward(lambda p, r: [1.0] * len(r), -0.5)}
        combined = CombinedReward(parts)
        rewards = combined(PROMPTS, RESPONSES)
    assert math.isnan(rewards[0])
    assert rewards[1:] == [2.0 * reward - 0.5 for reward in WANTED[1:]]
    assert combined.take_means() == {"reward_served": pytest.approx(sum(WANTED[1:]) / 9), "reward_ones": 1.0}
    assert combined.take_means() == {}
