"""What a user's reward function may return or raise, and what becomes of it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.torture.cases import FUZZ, any_number, any_text, read_or_told, values

from p3o.errors import P3OError
from p3o.feedback.functions import call_reward_function, load_reward_function


class Hostile:
    """Fails wherever it is touched."""

    def __float__(self) -> float:
        raise RuntimeError("no float")

    def __len__(self) -> int:
        return -1


class NoList:
    """Says that it can become a list, and cannot."""

    def tolist(self) -> list[float]:
        raise RuntimeError("no list")


SINGLE = [
    Hostile(),
    NoList(),
    np.float64(1.0),
    np.array([1.0]),
    np.array([1, 2]),
    torch.tensor(1.0),
    torch.zeros(2),
    object,
    1j,
]
returned = st.one_of(
    values(["a"]),
    st.lists(any_number | any_text | st.sampled_from(SINGLE) | st.none() | st.booleans(), min_size=2, max_size=2),
    st.sampled_from(
        [
            *SINGLE,
            np.zeros(2),
            np.zeros((2, 1)),
            torch.zeros(2),
            torch.zeros(2, dtype=torch.bfloat16),
            torch.zeros((2, 2)),
            {1, 2},
        ]
    ),
    st.lists(any_number, max_size=4).map(tuple),
    st.sampled_from([range(2), b"12", "12", iter([1, 2]), {0: 1.0, 1: 2.0}]),
)


@FUZZ
@given(returned, any_text)
@example([Hostile(), 1.0], "p")
@example(NoList(), "p")
def test_any_return(value: Any, prompt: str) -> None:
    rewards = read_or_told(
        "reward outputs", lambda: call_reward_function(lambda p, r: value, [prompt, "q"], ["a", "b"], name="m:f")
    )
    if rewards is not None:
        assert len(rewards) == 2
        assert all(type(reward) is float and math.isfinite(reward) for reward in rewards)


class Nameless(Hostile):
    """Cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def test_a_value_that_cannot_be_shown_is_told() -> None:
    with pytest.raises(P3OError, match="a value of type Nameless for response 0"):
        call_reward_function(lambda p, r: [Nameless()], ["p"], ["r"], name="m:f")


class HostileError(Exception):
    """Cannot even be told."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


ERRORS = [
    ValueError,
    KeyError,
    SystemExit,
    HostileError,
    RecursionError,
    MemoryError,
    StopIteration,
    GeneratorExit,
    UnicodeError,
]


@FUZZ
@given(st.sampled_from(ERRORS), any_text)
def test_any_exception(kind: type[BaseException], text: str) -> None:
    def fails(prompts: object, responses: object) -> list[float]:
        raise kind(text)

    if kind is GeneratorExit:  # like KeyboardInterrupt, no failure of the function
        return
    assert read_or_told("reward outputs", lambda: call_reward_function(fails, ["p"], ["r"], name="m:f")) is None


@FUZZ
@given(any_text)
def test_any_name(spec: str) -> None:
    read_or_told("reward outputs", lambda: load_reward_function(spec))
