"""A reply counts only if it is K whole responses to the prompt that was sent."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from p3o.rollouts.http import ServerError
from p3o.rollouts.server import Completion, SamplingSettings

END = 2
PROMPT = [5, 6]
SETTINGS = SamplingSettings(2, 4, 1.0, END)


def choice(index: int, tokens: list[int], reason: str) -> dict[str, Any]:
    return {
        "index": index,
        "token_ids": tokens,
        "finish_reason": reason,
        "prompt_token_ids": PROMPT,
        "logprobs": {"token_logprobs": [-0.5] * len(tokens)},
    }


GOOD = {"choices": [choice(1, [7, 8, 9, 10], "length"), choice(0, [7, END], "stop")]}


def test_responses_come_in_order_with_their_end() -> None:
    assert SETTINGS.read(GOOD, PROMPT) == [
        Completion([7, END], [-0.5] * 2, True),
        Completion([7, 8, 9, 10], [-0.5] * 4, False),
    ]


def test_a_stop_string_ends_a_response_without_the_end_token() -> None:
    reply = {"choices": [choice(0, [7], "stop"), choice(1, [END], "stop")]}
    assert [completion.ended for completion in SETTINGS.read(reply, PROMPT)] == [True, True]


def test_special_tokens_that_end_a_response_go_by_their_ids_and_belong_to_it() -> None:
    settings = SamplingSettings(2, 4, 1.0, END, (".",), (3, END))
    request = settings.request("policy", PROMPT, 1)
    assert (request["stop_token_ids"], request["stop"]) == ([END, 3], ["."])
    reply = {"choices": [choice(0, [7, 3], "stop"), choice(1, [7, 8, 9, 3], "stop")]}
    assert settings.read(reply, PROMPT) == [
        Completion([7, 3], [-0.5] * 2, True),
        Completion([7, 8, 9, 3], [-0.5] * 4, True),
    ]
    for wrong in (choice(1, [7, 3, 9, 10], "length"), choice(1, [7, 8, 9, 3], "length"), choice(1, [3, END], "stop")):
        with pytest.raises(ServerError, match="it goes on after its end"):
            settings.read({"choices": [choice(0, [7, 3], "stop"), wrong]}, PROMPT)


def changed(change: Callable[[list[dict[str, Any]]], object]) -> dict[str, Any]:
    reply = copy.deepcopy(GOOD)
    change(reply["choices"])
    return reply


@pytest.mark.parametrize(
    "reply",
    [
        None,
        [],
        {},
        {"choices": None},
        {"choices": []},
        changed(lambda choices: choices.pop()),
        changed(lambda choices: choices.append(choices[0])),
        changed(lambda choices: choices[0].update(index=0)),
        changed(lambda choices: choices[0].update(token_ids=None)),
        changed(lambda choices: choices[0].update(token_ids=[])),
        changed(lambda choices: choices[0].update(token_ids=["a", "b", "c", "d"])),
        changed(lambda choices: choices[0].update(token_ids=[7, 8, 9])),
        changed(lambda choices: choices[0].update(token_ids=[7, END, 9, 10])),
        changed(lambda choices: choices[0].update(token_ids=[7, 8, 9, END])),
        changed(lambda choices: choices[0].update(finish_reason="abort")),
        changed(lambda choices: choices[0].update(finish_reason=None)),
        changed(lambda choices: choices[0].update(prompt_token_ids=[5, 7])),
        changed(lambda choices: choices[0].update(logprobs=None)),
        changed(lambda choices: choices[0]["logprobs"].update(token_logprobs=[-0.5])),
        changed(lambda choices: choices[0]["logprobs"].update(token_logprobs=[-0.5, None, -0.5, -0.5])),
        changed(lambda choices: choices[1].update(token_ids=[7, 8, 9, 10, 11, END])),
    ],
)
def test_anything_else_is_broken(reply: Any) -> None:
    with pytest.raises(ServerError) as error:
        SETTINGS.read(reply, PROMPT)
    assert error.value.kind == "broken"


def test_nothing_is_left_to_the_defaults_of_a_server() -> None:
    """A generation_config.json may set any of these."""
    request = SETTINGS.request("policy", PROMPT, 1)
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    neutral |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": True, "stop_token_ids": [END]}
    assert neutral.items() <= request.items()
