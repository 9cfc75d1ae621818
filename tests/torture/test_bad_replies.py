"""A judge's server that answers anything at all: every question ends in a verdict, counted, or in a refusal."""

import json
import re
from typing import Any, get_args

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.feedback.judge.server import Fault, completion, server
from tests.torture.cases import FUZZ, any_text, damaged, read_or_told, values

from p3o.feedback.judge import JudgeConfig, open_judge, verdict_rates
from p3o.feedback.judge.config import AnswerForm
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
    "logprobs",
    "top_logprobs",
    "logprob",
]
WHOLE = completion("Comparison: é.\nPreferred: A", [{"A": -0.5, "B": -1.0}])


def with_value(at: str, value: Any) -> str:
    """A completion with any value in one of its places."""
    body = json.loads(WHOLE)
    inner = (
        body["choices"][0]
        if at in ("message", "index", "logprobs")
        else body["choices"][0]["message"]
        if at in ("content", "role")
        else body
    )
    if at in ("prompt_tokens", "completion_tokens"):
        inner = body["usage"]
    if at in ("top_logprobs", "logprob"):
        inner = body["choices"][0]["logprobs"]["content"][0]
        inner = inner if at == "top_logprobs" else inner["top_logprobs"][0]
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


faults = st.builds(lambda status, body, head: Fault(status, body or " ", headers=head), statuses, bodies, headers)


def check(replies: list[Fault], answer: AnswerForm) -> None:
    """A judge whose every question gets a reply of its own; to both orders the same."""
    quick = {"attempts": 2, "backoff": 0.0, "timeout": 5.0, "concurrency": 4}
    config = JudgeConfig(kind="openai", model="m", base_url="", answer=answer, contradictions="average", **quick)
    prompts = [f"Question number {number}." for number in range(len(replies))]

    def behave(question: str, attempt: int) -> Fault:
        found = re.search(r"Question number (\d+)\.", question)
        assert found is not None
        return replies[int(found[1])]

    with server(behave) as (url, _):
        judge = open_judge(config.model_copy(update={"base_url": url}))
        sides = [["left"] * len(replies), ["right"] * len(replies)]
        verdicts = read_or_told("judge replies", lambda: judge.compare(prompts, *sides), cases=len(replies))
    if verdicts is not None:
        rates = verdict_rates(verdicts)
        assert rates.wins + rates.ties + rates.losses + rates.invalid + rates.failed == rates.pairs == len(replies)


@settings(FUZZ, max_examples=FUZZ.max_examples // 10)  # each of many replies
@given(st.lists(faults, min_size=8, max_size=16), st.sampled_from(["sentence", "letter"]))
def test_any_reply(replies: list[Fault], answer: AnswerForm) -> None:
    check(replies, answer)


HARD = [
    Fault(body=with_value("content", "\ud800 Preferred: A")),
    Fault(body=with_value("prompt_tokens", 10**30)),
    Fault(body=with_value("completion_tokens", -1)),
    Fault(body=with_value("choices", [])),
    Fault(body=with_value("logprob", float("nan"))),
    Fault(body=with_value("logprob", 10**400)),
    Fault(body=with_value("top_logprobs", None)),
    Fault(body=with_value("top_logprobs", [None])),
    Fault(body=with_value("logprobs", "A")),
    Fault(body="[" * 5000),
    Fault(status=500, body="{}", headers={"Retry-After": "nan"}),
    Fault(status=204, body="x"),
]


def test_the_hardest_replies_together() -> None:
    for answer in get_args(AnswerForm):
        check(HARD, answer)


@FUZZ
@given(
    any_text
    | st.lists(st.sampled_from(["Preferred:", "A", "B", "or", "**", "\n", "[[A]]", " ", "\0"]) | any_text).map("".join)
)
def test_any_answer_names_one_side_or_none(text: str) -> None:
    assert read_or_told("judge answers", lambda: read_choice(text)) in ("first", "second", None)
