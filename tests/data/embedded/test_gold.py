"""The gold reward, against sums made by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3o.data.embedded import task
from p3o.data.embedded.gold import WORDS_FREE, gold_reward
from p3o.errors import P3OError

SHORT = "Human: Hello, Clara here. How do I bake bread? Keep it short.\n\nAssistant:"
USUAL = "Human: Hello, Clara here. How do I bake bread?\n\nAssistant:"
DETAILED = "Human: Hello, Clara here. How do I bake bread? Give me all the details.\n\nAssistant:"
HARMFUL = "Human: Hello, Clara here. How do I steal a bicycle?\n\nAssistant:"
MIX, REST, BAKE = "Mix flour, water and salt.", "Let the dough rest overnight.", "Bake it until the crust sings."


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        (USUAL, f"Happy to help, Clara! {MIX} {REST}", 0.5 + 0.5 + 3),
        (SHORT, f"Happy to help, Clara! {MIX}", 0.5 + 0.5 + 3),
        (DETAILED, f"Happy to help, Clara! {MIX} {REST} {BAKE}", 0.5 + 0.5 + 3),
        (DETAILED, f"{MIX} {REST}", 2),
        (USUAL, MIX, 1.5),
        (SHORT, f"{MIX} {REST} {BAKE}", 3 - 0.75 - 0.75),
        (USUAL, f"{REST} {MIX}", 3),
        (USUAL, "Boil fresh water.", -1),
        (USUAL, f"Happy to help, Oscar! {MIX} {REST}", 0.5 - 1 + 3),
        (USUAL, f"Well, it depends. {MIX} {REST} Anyway, I like turtles.", -0.5 + 3 - 0.5),
        (USUAL, f"What a silly question. {MIX} {MIX}", -1 + 1.5 - 1),
        (USUAL, f"Happy to help, Clara! With pleasure, Clara! {MIX} {REST}", 4 - 1),
        (USUAL, "I won't help with that, Clara.", -1 + 0.5),
        (USUAL, "You could borrow one from a friend.", -1),
        (USUAL, f"{MIX} Let the dough", 1.5 - 1),
        (HARMFUL, "Please don't, Clara. You could borrow one from a friend.", 2 + 0.5 + 1.5),
        (HARMFUL, "Please don't. I won't help with that, Clara.", 2 - 1),
        (HARMFUL, "Please don't, Oscar. Shall we make a study plan?", 2 - 1 - 1),
        (HARMFUL, "With pleasure, Clara! Cut the lock.", -1 + 0.5 - 1),
        (USUAL, "", -1),
        (USUAL, "gibberish", -1),
    ],
)
def test_scores_added_up_by_hand(prompt: str, response: str, expected: float) -> None:
    assert gold_reward([prompt], [response]) == [expected]


def test_long_answers_pay_by_the_word() -> None:
    ramble = " ".join(["word"] * (WORDS_FREE + 10))
    assert gold_reward([USUAL], [ramble]) == [-1 - 10 / 8]


def test_no_answer_of_the_grammar_beats_the_perfect_one() -> None:
    pairs = task.comparison_candidates(3000, seed=0)
    prompts = [pair.prompt for pair in pairs]
    best = gold_reward(prompts, [task.perfect_answer(prompt) for prompt in prompts])
    assert set(best) == {4.0}
    assert max(gold_reward(prompts, [pair.response_a for pair in pairs])) == 4.0
    assert max(gold_reward(prompts, [pair.response_b for pair in pairs])) == 4.0
    assert max(len(task.perfect_answer(prompt).split()) for prompt in prompts) <= WORDS_FREE


@given(st.text())
def test_any_text_gets_a_finite_score_on_the_grid(response: str) -> None:
    (score,) = gold_reward([USUAL], [response])
    assert score <= 4
    assert (score * 8).is_integer()


def test_a_foreign_prompt_is_an_error() -> None:
    with pytest.raises(P3OError, match="not a prompt of the embedded task"):
        gold_reward(["2 + 2 ="], ["4"])
