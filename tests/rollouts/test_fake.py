"""The fake answers as the real server did: same fields, same kinds of values; and what p3o reads, it reads from both."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.rollouts.conftest import TOKENIZER
from tests.rollouts.fake import FakeVLLM

from p3o.models.tokens import end_id
from p3o.rollouts.http import ServerError
from p3o.rollouts.server import SamplingSettings, VLLMServer

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())


def shape(value: Any) -> Any:
    """The fields of a reply with the types of their values; of a list, its first entry."""
    if isinstance(value, dict):
        if all(name.isdigit() for name in value):  # log-probs by token
            return "by token"
        return {name: shape(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def completion_shape(reply: dict[str, Any]) -> Any:
    top = reply["choices"][0]["logprobs"]
    if top is not None:
        top["top_logprobs"] = []
    # A reason to stop is null, a text or an id.
    reply["choices"][0]["stop_reason"] = None
    return shape(reply)


def test_a_completion_has_the_fields_of_a_recorded_one(servers: Callable[..., FakeVLLM]) -> None:
    server = VLLMServer(servers().url, timeout=5)
    settings = SamplingSettings(2, 4, 1.0, end_id(TOKENIZER))
    theirs = json.loads(json.dumps(RECORDED["completion"]["reply"]))
    ours = server.post("/v1/completions", settings.request("policy", [5, 6, 7], 3))
    assert completion_shape(ours) == completion_shape(theirs)


def test_the_request_is_the_recorded_one() -> None:
    """The real server took every field that we send."""
    request = RECORDED["completion"]["request"]
    assert SamplingSettings(2, 6, 1.0, 2, (".",)).request("policy", request["prompt"], 7) == request


def test_a_recorded_completion_is_read() -> None:
    recorded = RECORDED["completion"]
    first, second = SamplingSettings(2, 6, 1.0, 2, (".",)).read(recorded["reply"], recorded["request"]["prompt"])
    assert first.tokens == [216, 35, 282, 967, 14797, 10286]
    assert not first.ended
    assert first.logprobs[0] == pytest.approx(-3.063972)
    assert len(second.tokens) == 6


def test_recorded_log_probs_of_a_prompt_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = RECORDED["prompt_logprobs"]
    tokens = recorded["request"]["prompt"]
    server = VLLMServer("http://127.0.0.1:1", timeout=5)
    monkeypatch.setattr(server, "post", lambda path, body: recorded["reply"])
    rows = recorded["reply"]["choices"][0]["prompt_logprobs"]
    assert server.prompt_logprobs("policy", tokens) == [
        rows[i][str(token)]["logprob"] for i, token in enumerate(tokens) if i > 0
    ]


def test_a_special_token_ends_a_response_by_its_id_and_not_by_its_name(servers: Callable[..., FakeVLLM]) -> None:
    """As vLLM, which looks for stop strings in a text without special tokens."""
    fake, name = servers(), "<unk>"
    unknown, dot = TOKENIZER.convert_tokens_to_ids([name, "."])
    assert fake.cut([dot, unknown, dot], {"stop_token_ids": [1], "stop": [name]}) == ([dot, unknown, dot], False)
    assert fake.cut([dot, unknown, dot], {"stop_token_ids": [1, unknown], "stop": []}) == ([dot, unknown], True)
    assert fake.cut([unknown, dot, unknown], {"stop_token_ids": [1], "stop": [name, "."]}) == ([unknown, dot], True)
    assert fake.cut([unknown, 1, dot], {"stop_token_ids": [1], "stop": ["."]}) == ([unknown, 1], True)


@pytest.mark.parametrize(
    ("name", "path", "change", "kind"),
    [
        ("unknown model", "/v1/completions", {"model": "nope"}, "missing"),
        ("too long", "/v1/completions", {"prompt": [5] * 1000}, "refused"),
        ("unknown method", "/collective_rpc", {"method": "nope"}, "broken"),
        ("no update", "/update_weights", {"update_info": {}}, "broken"),
    ],
)
def test_errors_have_the_recorded_status(
    servers: Callable[..., FakeVLLM], name: str, path: str, change: dict[str, Any], kind: str
) -> None:
    fake = servers()
    fake.paused = path == "/collective_rpc"
    server = VLLMServer(fake.url, timeout=5)
    body = SamplingSettings(2, 4, 1.0, 2).request("policy", [5], 1) | change
    with pytest.raises(ServerError) as error:
        server.post(path, body)
    assert error.value.kind == kind
    assert str(RECORDED[name]["status"]) in str(error.value)
    assert RECORDED[name]["reply"]["error"]["message"]


def test_versions_and_sizes_are_told_as_recorded(servers: Callable[..., FakeVLLM]) -> None:
    server = VLLMServer(servers().url, timeout=5)
    assert shape(server.get("/weight_info")) == shape(RECORDED["GET /weight_info"])
    assert server.get("/get_world_size") == RECORDED["GET /get_world_size"]
    assert server.models() == ["policy"]
