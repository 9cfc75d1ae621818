"""The simulated labeller against the Bradley–Terry probabilities, and offsets against the normal distribution."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

import pytest

from p3o.errors import P3OError
from p3o.feedback.simulated import SimulatedLabeller, prompt_offsets


def _length(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [float(len(response)) for response in responses]


@pytest.mark.parametrize(("a", "b"), [("", ""), ("a", ""), ("", "a"), ("aaa", "a")])
def test_labels_follow_bradley_terry(a: str, b: str) -> None:
    count, scale = 20_000, 1.5
    labels = SimulatedLabeller(_length, scale=scale, seed=0).label(["x"] * count, [a] * count, [b] * count)
    expected = 1 / (1 + math.exp(-scale * (len(a) - len(b))))
    assert mean(labels) == pytest.approx(expected, abs=4 * (expected * (1 - expected) / count) ** 0.5)


def test_labels_repeat_with_the_seed() -> None:
    pairs = (["x"] * 200, ["a"] * 200, ["b"] * 200)
    first, again, other = (SimulatedLabeller(_length, scale=1.0, seed=seed).label(*pairs) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_extremes_of_the_scale() -> None:
    pairs = (["x"] * 500, ["aa"] * 500, ["b"] * 500)
    assert all(SimulatedLabeller(_length, scale=math.inf, seed=0).label(*pairs))
    assert 0.4 < mean(SimulatedLabeller(_length, scale=0.0, seed=0).label(*pairs)) < 0.6
    with pytest.raises(P3OError, match=r"labeller scale: -1\.0 is negative"):
        SimulatedLabeller(_length, scale=-1.0, seed=0)


def test_offsets_are_normal_and_on_the_grid() -> None:
    offsets = prompt_offsets([f"prompt {i}" for i in range(20_000)], standard_deviation=10.0, seed=0)
    assert mean(offsets) == pytest.approx(0, abs=4 * 10 / 20_000**0.5)
    assert stdev(offsets) == pytest.approx(10, rel=4 / 40_000**0.5)
    assert mean(abs(offset) < 10 for offset in offsets) == pytest.approx(0.6827, abs=0.014)
    assert all((offset * 1024).is_integer() for offset in offsets)


def test_offsets_depend_on_the_prompt_and_the_seed_alone() -> None:
    prompts = ["a", "b", "c"]
    offsets = prompt_offsets(prompts, standard_deviation=1.0, seed=3)
    assert prompt_offsets(prompts[::-1], standard_deviation=1.0, seed=3) == offsets[::-1]
    assert prompt_offsets(prompts, standard_deviation=1.0, seed=4) != offsets
    assert prompt_offsets(prompts, standard_deviation=0.0, seed=3) == [0.0, 0.0, 0.0]
