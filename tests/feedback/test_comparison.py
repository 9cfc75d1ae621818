"""Comparisons are antisymmetric whatever the function does, and what a reward cannot express comes through."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid
from transformers import LlamaForSequenceClassification

from p3o.algorithms.p3o import p3o_joint_clip_loss, p3o_separate_clip_loss, pairwise_policy_gradient_loss
from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.errors import P3OError
from p3o.feedback.comparison import (
    Comparator,
    FunctionComparator,
    PairwisePreferenceModel,
    load_comparison_function,
    preference_matrix,
)

BEATS = {("rock", "scissors"), ("scissors", "paper"), ("paper", "rock")}


def game(prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
    """Rock, paper, scissors: a cycle. "nothing" loses to all three."""

    def one(x: str, y: str) -> float:
        return float((x, y) in BEATS or y == "nothing") - float((y, x) in BEATS or x == "nothing")

    return [one(x, y) for x, y in zip(a, b, strict=True)]


GAME = FunctionComparator(game, "game")


def test_a_bias_towards_a_side_cancels() -> None:
    def biased(prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
        return [0.3 + 0.5 * number for number in game(prompts, a, b)]

    compare = FunctionComparator(biased, "biased")
    assert compare(["p", "p"], ["rock", "rock"], ["paper", "rock"]) == [-0.5, 0.0]


@given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_any_function_becomes_antisymmetric(texts: list[tuple[str, str]]) -> None:
    def arbitrary(prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
        return [(hash((x, y)) % 2001 - 1000) / 1000 for x, y in zip(a, b, strict=True)]

    compare = FunctionComparator(arbitrary, "arbitrary")
    prompts, a, b = ["p"] * len(texts), [x for x, _ in texts], [y for _, y in texts]
    assert compare(prompts, a, b) == [-number for number in compare(prompts, b, a)]


def test_both_orders_are_asked_in_one_call() -> None:
    calls = []

    def counting(prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
        calls.append((list(prompts), list(a), list(b)))
        return [0.0] * len(prompts)

    FunctionComparator(counting, "counting")(["p", "q"], ["a", "c"], ["b", "d"])
    assert calls == [(["p", "q", "p", "q"], ["a", "c", "b", "d"], ["b", "d", "a", "c"])]


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (
            [1.5, 0.0],
            "returned 1.5 (prompt 'the prompt'); a preference is in [-1, 1]: return 2p - 1, or declare log-odds",
        ),
        ([0.0, -1.01], "returned -1.01"),
        ([0.0], "returned 1 preferences for 2 comparisons; return one for each, in order"),
        (None, "returned None (is a return statement missing?)"),
        ([0.0, float("nan")], "returned nan for comparison 1 (prompt 'the prompt'); every preference must be finite"),
        ([0.0, "1"], "returned '1' for comparison 1 (prompt 'the prompt'); every preference must be a number"),
    ],
)
def test_a_wrong_return_is_told(returned: Any, told: str) -> None:
    with pytest.raises(P3OError) as caught:
        FunctionComparator(lambda p, a, b: returned, "mod:f")(["the prompt"], ["a"], ["b"])
    assert str(caught.value).startswith("comparison function 'mod:f' ")
    assert told in str(caught.value)


def test_an_exception_is_told_with_its_comparison() -> None:
    def fails(prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
        return [1 / len(x) for x in a]

    with pytest.raises(P3OError, match=r"'f' raised ZeroDivisionError: .* for comparison 1 \(prompt 'q'\)"):
        FunctionComparator(fails, "f")(["p", "q"], ["a", ""], ["b", "c"])


def test_log_odds_may_be_any_finite_number() -> None:
    compare = FunctionComparator(lambda p, a, b: [7.0, -9.0], "f", scale="log_odds")
    assert compare(["p"], ["a"], ["b"]) == [8.0]
    with pytest.raises(P3OError, match="must be finite"):
        FunctionComparator(lambda p, a, b: [float("inf"), 0.0], "f", scale="log_odds")(["p"], ["a"], ["b"])


def test_numbers_that_are_none_pass_where_the_caller_leaves_their_pairs_out() -> None:
    compare = FunctionComparator(lambda p, a, b: [float("nan"), 0.5, 1.0, float("inf"), 0.5, -1.0], "f", finite=False)
    found = compare(["p"] * 3, ["a"] * 3, ["b"] * 3)
    assert [number if math.isfinite(number) else None for number in found] == [None, 0.0, 1.0]
    with pytest.raises(P3OError, match=r"returned 2\.0"):
        FunctionComparator(lambda p, a, b: [2.0, 0.0], "f", finite=False)(["p"], ["a"], ["b"])


def test_a_function_is_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "compare_x.py").write_text("def longer(p, a, b): return [0.1]\ndef two(p, a): return [0.1]\n")
    function = load_comparison_function("compare_x:longer")
    assert function(["p"], ["a"], ["b"]) == [0.1]
    with pytest.raises(P3OError) as caught:
        load_comparison_function("compare_x:two")
    assert str(caught.value).startswith(
        "comparison function 'compare_x:two': cannot be called as two(prompts, responses_a, responses_b): too many"
    )
    assert str(caught.value).endswith("give it these three parameters")


def test_the_matrix_is_antisymmetric_and_asks_each_pair_of_texts_once() -> None:
    asked = []

    def compare(prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
        asked.extend(zip(prompts, a, b, strict=True))
        return [float(len(x) - len(y)) for x, y in zip(a, b, strict=True)]

    assert isinstance(compare, Comparator)
    matrix = preference_matrix(compare, ["p", "q"], [["a", "bb", "a"], ["c", "dddd", "ee"]])
    assert matrix.dtype == torch.float64
    assert matrix.tolist() == [[[0, -1, 0], [1, 0, 1], [0, -1, 0]], [[0, -3, -1], [3, 0, 2], [1, -2, 0]]]
    assert asked == [("p", "a", "bb"), ("p", "bb", "a"), ("q", "c", "dddd"), ("q", "c", "ee"), ("q", "dddd", "ee")]
    assert torch.equal(matrix, -matrix.transpose(1, 2))


def test_the_matrix_of_a_reward_is_its_gaps() -> None:
    rewards = {"x": 0.25, "y": -0.5, "z": 1.0}

    def log_odds(prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
        return [rewards[x] - rewards[y] for x, y in zip(a, b, strict=True)]

    matrix = preference_matrix(FunctionComparator(log_odds, "f", "log_odds"), ["p"], [["x", "y", "z"]])
    values = torch.tensor([0.25, -0.5, 1.0], dtype=torch.float64)
    assert torch.equal(matrix[0], values[:, None] - values[None, :])


def test_groups_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 prompts for 2 groups of \[1, 2\] responses"):
        preference_matrix(GAME, ["p"], [["a", "b"], ["c"]])
    assert preference_matrix(GAME, [], []).shape == (0, 0, 0)
    assert preference_matrix(GAME, ["p"], [["rock", "rock"]]).tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


def test_no_reward_explains_a_cycle() -> None:
    """Gaps of a reward add up around a cycle to 0; those of the game do not."""
    [matrix] = preference_matrix(GAME, ["p"], [["rock", "paper", "scissors"]])
    assert (matrix[0, 1] + matrix[1, 2] + matrix[2, 0]).item() == -3.0


@pytest.mark.parametrize(
    "loss",
    [
        lambda *tensors: pairwise_policy_gradient_loss(*tensors, beta=0.0),
        lambda *tensors: p3o_separate_clip_loss(*tensors, epsilon=0.2, beta=0.0),
        lambda *tensors: p3o_joint_clip_loss(*tensors, epsilon=0.2, beta=0.0),
    ],
)
def test_p3o_rests_on_a_cycle_and_leaves_what_loses_to_all(loss: Any) -> None:
    """In a group that holds a cycle once, each of its responses wins as much as it loses: no gradient. With "nothing" in
    the group, the gradient is the row sum of the matrix: +1 for the three and −3 for it, over the 6 pairs and halved."""

    def gradient(group: list[str]) -> list[float]:
        gaps = preference_matrix(GAME, ["p"], [group])
        old = torch.full((1, len(group)), -2.0, dtype=torch.float64)
        new = old.clone().requires_grad_()
        loss(new, old, old, gaps).loss.backward()
        assert new.grad is not None
        return list(-new.grad[0])

    assert gradient(["rock", "paper", "scissors"]) == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)
    expected = [0.5 * row / 6 for row in (1, 1, 1, -3)]
    assert gradient(["rock", "paper", "scissors", "nothing"]) == pytest.approx(expected)


TOKENIZER = build_tokenizer()


def preference_model(batch_size: int = 64) -> PairwisePreferenceModel:
    config = build_model(TOKENIZER, seed=0).config
    config.num_labels = 1
    torch.manual_seed(0)
    return PairwisePreferenceModel(LlamaForSequenceClassification(config).eval(), TOKENIZER, batch_size=batch_size)


def test_a_pairwise_model_reads_both_orders_at_the_last_token() -> None:
    model = preference_model(batch_size=3)
    prompts, a, b = ["How do I bake bread?"] * 2, ["Mix it.", "Wait."], ["Bake it for a while.", "Mix it."]

    def logit(prompt: str, first: str, second: str) -> float:
        end = TOKENIZER.eos_token_id
        ids = [
            *TOKENIZER(prompt)["input_ids"],
            *TOKENIZER(first)["input_ids"],
            end,
            *TOKENIZER(second)["input_ids"],
            end,
        ]
        hidden = model.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        return float(model.model.score(hidden).item())

    expected = [(logit(p, x, y) - logit(p, y, x)) / 2 for p, x, y in zip(prompts, a, b, strict=True)]
    assert model(prompts, a, b) == pytest.approx(expected, abs=1e-5)
    assert model(prompts, b, a) == pytest.approx([-number for number in model(prompts, a, b)], abs=1e-5)
    assert model([], [], []) == []


def test_a_pairwise_model_learns_a_cycle() -> None:
    """Trained on all three wins of the game by − log σ of both orders, it holds all three; a reward can hold two."""
    model = preference_model()
    rock, paper, scissors = task.perfect_answers(task.prompts(3, seed=0, split="train"), seed=0)
    wins = [(rock, scissors), (scissors, paper), (paper, rock)]
    prompts, better, worse = ["choose"] * 3, [win for win, _ in wins], [loss for _, loss in wins]
    forward, back = model.encode(prompts, better, worse), model.encode(prompts, worse, better)
    optimiser = torch.optim.AdamW(model.model.parameters(), lr=3e-3)
    for _ in range(40):
        logits = model.forward(forward + back)
        loss = -logsigmoid((logits[:3] - logits[3:]) / 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert min(model(prompts, better, worse)) > 1.0
