"""A judge's server that answers anything at all: every question ends in a verdict, counted, or in a refusal."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.feedback.judge.server import Fault, completion, server
from tests.torture.cases import FUZZ, any_text, damaged, read_or_told, values

from p3o.feedback.judge import JudgeConfig, open_judge, verdict_rates
from p3o.feedback.judge.prompts import read_choice

NAMES = [
    "choices",
    "message",
    "content",
    "model",
    "usage",
    "prompt_tokens",
    "completion_tokens",
    "error",
    "id",
    "object",
    "role",
]
WHOLE = completion("Comparison: é.\nPreferred: A")


def with_value(at: str, value: Any) -> str:
    """A completion with any value in one of its places."""
    body = json.loads(WHOLE)
    inner = (
        body["choices"][0]
        if at in ("message", "index")
        else body["choices"][0]["message"]
        if at in ("content", "role")
        else body
    )
    if at in ("prompt_tokens", "completion_tokens"):
        inner = body["usage"]
    inner[at] = value
    return json.dumps(body)


bodies = st.one_of(
    damaged(WHOLE.encode()).map(lambda body: body.decode(errors="replace")),
    st.builds(with_value, st.sampled_from(NAMES), values(NAMES)),
    values(NAMES).map(json.dumps),
    any_text.map(lambda text: with_value("content", text)),
)
headers = st.dictionaries(
    st.just("Retry-After"),
    st.sampled_from(["0", "-5", "nan", "1e-9", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"]),
    max_size=1,
)
statuses = st.sampled_from([200] * 8 + [201, 204, 206, 400, 404, 413, 418, 422, 429, 500, 503, 599])


@pytest.fixture(scope="module")
def fed() -> Iterator[tuple[str, list[Fault]]]:
    """A server that answers with the last fault of a list."""
    replies: list[Fault] = [Fault()]
    with server(lambda question, attempt: replies[-1]) as (url, log):
        yield url, replies
        log.requests.clear()


@FUZZ
@given(body=bodies, status=statuses, head=headers)
@example(body=with_value("content", "\ud800 Preferred: A"), status=200, head={})
@example(body=with_value("prompt_tokens", 10**30), status=200, head={})
@example(body=with_value("choices", []), status=200, head={})
@example(body="[" * 5000, status=200, head={})
@example(body="{}", status=500, head={"Retry-After": "nan"})
def test_any_reply(fed: tuple[str, list[Fault]], body: str, status: int, head: dict[str, str]) -> None:
    url, replies = fed
    replies[:] = [Fault(status=status, body=body.encode(errors="replace").decode() or " ", headers=head)]
    config = JudgeConfig(kind="openai", model="m", base_url=url, attempts=2, backoff=0.0, timeout=5.0, concurrency=1)

    def judge() -> list[Any]:
        return open_judge(config).compare(["p", "q"], ["a", "c"], ["b", "d"])

    verdicts = read_or_told("judge replies", judge)
    if verdicts is not None:
        rates = verdict_rates(verdicts)
        assert rates.wins + rates.ties + rates.losses + rates.invalid + rates.failed == rates.pairs == 2


@FUZZ
@given(
    any_text
    | st.lists(st.sampled_from(["Preferred:", "A", "B", "or", "**", "\n", "[[A]]", " ", "\0"]) | any_text).map("".join)
)
def test_any_answer_names_one_side_or_none(text: str) -> None:
    assert read_or_told("judge answers", lambda: read_choice(text)) in ("first", "second", None)
