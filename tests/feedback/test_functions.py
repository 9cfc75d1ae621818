"""A user's reward function may do anything wrong; each wrong is told by one line that names it."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from p3o.errors import P3OError
from p3o.feedback.functions import call_reward_function, load_reward_function


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; what is imported from it is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_loads_from_the_current_directory(here: Path) -> None:
    (here / "rewards_a.py").write_text("def length(prompts, responses):\n    return [len(r) for r in responses]\n")
    function = load_reward_function("rewards_a:length")
    assert call_reward_function(function, ["p", "p"], ["a", "bcd"], name="rewards_a:length") == [1.0, 3.0]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("rewards_b", "must have the form module:function; write for example 'rewards:polite'"),
        ("rewards_b:", "must have the form module:function"),
        (":length", "must have the form module:function"),
        ("", "must have the form module:function"),
        ("rewards_b.py:length", "name the module, not its file: 'rewards_b:function'"),
        ("folder/rewards_b.py:length", "name the module, not its file: 'folder.rewards_b:function'"),
        ("reward_b:length", "no module 'reward_b' in"),
        ("reward_b:length", "did you mean 'rewards_b'?"),
        ("zzz:length", "put zzz.py into the current directory"),
        (
            "zzz.rewards_b:length",
            "start p3o in the folder that has zzz/rewards_b.py, or name that folder in PYTHONPATH",
        ),
        ("rewards_b:lenght", "no function 'lenght'; did you mean 'length'?"),
        ("rewards_b:xyz", "no function 'xyz'; define it in"),
        ("rewards_b:NUMBER", "'NUMBER' is a value of type int, not a function"),
        ("rewards_b:one", "cannot be called as one(prompts, responses): too many positional arguments"),
        ("raises_b:f", "fails on import: ZeroDivisionError: division by zero"),
        ("raises_b:f", "raises_b.py:1)"),
        ("syntax_b:f", "fails on import: SyntaxError: '(' was never closed"),
        ("leaves_b:f", "fails on import: SystemExit: 3"),
        ("needs_b:f", "the module needs 'not_installed_anywhere', which is not installed"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_told(here: Path, spec: str, told: str) -> None:
    (here / "rewards_b.py").write_text("NUMBER = 3\ndef length(p, r): return []\ndef one(responses): return []\n")
    (here / "raises_b.py").write_text("1 / 0\n")
    (here / "syntax_b.py").write_text("def f(\n")
    (here / "leaves_b.py").write_text("import sys\nsys.exit(3)\n")
    (here / "needs_b.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(P3OError) as caught:
        load_reward_function(spec)
    assert str(caught.value).startswith(f"reward function {spec!r}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "returned",
    [
        [1, 2.5],
        (1.0, np.float32(2.5)),
        np.array([1.0, 2.5], dtype=np.float32),
        torch.tensor([1.0, 2.5], requires_grad=True),
        [torch.tensor(1.0), torch.tensor(2.5)],
        [True, 2.5],
    ],
)
def test_any_sequence_of_numbers_is_taken(returned: Any) -> None:
    rewards = call_reward_function(lambda p, r: returned, ["p", "q"], ["a", "b"], name="f")
    assert rewards == [1.0, 2.5]
    assert all(type(reward) is float for reward in rewards)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (None, "returned None (is a return statement missing?); return a list of numbers"),
        (3.0, "returned a value of type float"),
        ("ab", "returned a value of type str"),
        ({0: 1.0, 1: 2.0}, "returned a value of type dict"),
        (iter([1.0, 2.0]), "returned a value of type list_iterator"),
        ([1.0], "returned 1 rewards for 2 responses"),
        ([1.0, 2.0, 3.0], "returned 3 rewards for 2 responses"),
        (torch.zeros(2, 2), "returned [0.0, 0.0] for response 0 (prompt 'the first'); every reward must be a number"),
        ([1.0, float("nan")], "returned nan for response 1 (prompt 'the second'); every reward must be finite"),
        ([float("inf"), 1.0], "returned inf for response 0 (prompt 'the first')"),
        ([1.0, -float("inf")], "returned -inf for response 1"),
        ([1.0, None], "returned None for response 1"),
        ([1.0, "2.0"], "returned '2.0' for response 1"),
        ([1.0, 2j], "returned 2j for response 1"),
        ([1.0, 10**400], "for response 1 (prompt 'the second'); every reward must be a number"),
        ([1.0, torch.zeros(3)], "for response 1 (prompt 'the second'); every reward must be a number"),
    ],
)
def test_a_wrong_return_is_told(returned: Any, told: str) -> None:
    with pytest.raises(P3OError) as caught:
        call_reward_function(lambda p, r: returned, ["the first", "the second"], ["a", "b"], name="mod:f")
    assert str(caught.value).startswith("reward function 'mod:f' ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_exception_is_told_with_the_response_it_comes_from() -> None:
    def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [1 / len(response) for response in responses]

    with pytest.raises(P3OError) as caught:
        call_reward_function(reward, ["p" * 200, "long\n" * 40], ["a", ""], name="mod:f")
    message = str(caught.value)
    assert "'mod:f' raised ZeroDivisionError: division by zero (" in message
    assert "test_functions.py:" in message
    assert r"for response 1 (prompt 'long\nlong\n" in message
    assert "…" in message
    assert len(message) < 400


def test_an_exception_of_the_batch_alone_says_so() -> None:
    def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        if len(responses) > 1:
            raise SystemExit("batch too large")
        return [0.0]

    with pytest.raises(
        P3OError, match=r"raised SystemExit: batch too large .* for a batch of 2 responses, though not for any"
    ):
        call_reward_function(reward, ["p", "p"], ["a", "b"], name="f")


def test_ctrl_c_is_no_failure_of_the_function() -> None:
    def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_reward_function(reward, ["p"], ["a"], name="f")


def test_the_function_cannot_change_what_it_is_given() -> None:
    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        prompts.clear()
        responses[:] = ["x", "x"]
        return [0.0, 0.0]

    prompts, responses = ["p", "q"], ["a", "b"]
    call_reward_function(reward, prompts, responses, name="f")
    assert (prompts, responses) == (["p", "q"], ["a", "b"])
