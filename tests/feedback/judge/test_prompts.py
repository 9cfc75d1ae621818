"""How answers are read, and what templates may be."""

import re
from pathlib import Path

import pytest

from p3o.errors import P3OError
from p3o.feedback.judge.prompts import TEMPLATES, Question, read_choice


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("Comparison: A is clear.\nPreferred: A", "first"),
        ("Comparison: B is clear.\nPreferred: B", "second"),
        ("comparison: x\n**Preferred:** B", "second"),
        ("- Preferred: **A**.", "first"),
        ('Preferred: "B"', "second"),
        ("preferred: answer B", "second"),
        ("Preferred: Summary A", "first"),
        ("Preferred = (a)", "first"),
        ("The second is better.\n\nB", "second"),
        ("(A)\n", "first"),
        ("Preferred: A\nPreferred: A", "first"),
        ("Preferred: A\nPreferred: B", None),
        ("Preferred: A or B", None),
        ("Preferred\uff1aB", "second"),
        ("<think>\nPreferred: A\nor perhaps not\n</think>\n\nComparison: x\nPreferred: B", "second"),
        ("Preferred: A? No.\n</think>\nPreferred: B", "second"),
        ("<think>\nPreferred: A\nBut wait, the length", None),
        ("Preferred: A or B\n</think>\n\nA", "first"),
        ("Preferred: both", None),
        ("Preferred: Apple", None),
        ("A is better than B.", None),
        ("A\nbut then again, who knows", None),
        ("I prefer A", None),
        ("", None),
    ],
)
def test_the_letter_is_read_or_the_answer_is_invalid(text: str, choice: str | None) -> None:
    assert read_choice(text) == choice


UNDECIDED = re.split(
    "; ",
    "a tie; A tie; A tie.; a draw between the two; A/B; A / B; A = B; A=B; A & B; A, B; A | B; A > B; A or B; "
    "A and B; A nor B; A (or B); A, or B; A – tie; A: tie; A vs B; (A/B); **A**/**B**; A.B; A is as good as B; "
    "A is equal to B; A as good as B; A is not better; A B; A mix of both; Answer A or Answer B; Answer A/Answer B; "
    "Summary A, Summary B; neither; a/b; either; A both",
)
DECIDED = re.split(
    "; ",
    "A; (A); a; (a); **A**; A.; `A`; <A>; A because B rambles; A, because B rambles; A. B rambles.; "
    "A is better than B; A is clearly better; A - it is shorter; A – it is shorter; A (it is shorter); A over B; "
    "Answer A; answer A, as it is shorter; Summary A is the better one; **A**: shorter; A as it is shorter; A!",
)


def other_way_round(text: str) -> str:
    """A for B and B for A, where they are letters."""
    return re.sub(r"\b[ABab]\b", lambda match: {"A": "B", "B": "A", "a": "b", "b": "a"}[match.group()], text)


@pytest.mark.parametrize("rest", UNDECIDED)
def test_a_tie_is_a_vote_for_nobody(rest: str) -> None:
    assert read_choice(f"Comparison: alike.\nPreferred: {rest}") is None
    assert read_choice(f"Comparison: alike.\nPreferred: {other_way_round(rest)}") is None
    assert read_choice(f"Preferred: {rest}\n\nA") is None, "what it declared stands"


@pytest.mark.parametrize("rest", DECIDED)
def test_both_letters_are_read_alike(rest: str) -> None:
    assert read_choice(f"Comparison: x\nPreferred: {rest}") == "first"
    assert read_choice(f"Comparison: x\nPreferred: {other_way_round(rest)}") == "second"


def test_the_form_repeated_before_the_answer_says_nothing() -> None:
    assert read_choice("Comparison: <one sentence>\nPreferred: <A or B>\n\nComparison: x\nPreferred: B") == "second"
    assert read_choice("Preferred: <A or B>") is None


@pytest.mark.parametrize("name", TEMPLATES)
def test_our_templates_show_all_three_texts_once_and_ask_for_the_form_that_is_read(name: str) -> None:
    text = Question(name).fill("PROMPT\n", " FIRST", "SECOND {{ 7 * 7 }}")
    assert [text.count(part) for part in ("PROMPT", "FIRST", "SECOND {{ 7 * 7 }}")] == [1, 1, 1]
    assert text.index("FIRST") < text.index("SECOND")
    assert read_choice("Comparison: <one sentence>\nPreferred: A") == "first"
    assert "Preferred: <A or B>" in text
    assert "49" not in text


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("{{ prompt }}|{{ response_a }}|{{ response_b }}")
    assert Question(str(file)).fill("p", "a", "b") == "p|a|b"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{{ prompt }} {{ response_a }}", "never shows response_b"),
        ("{{ prompt }} {{ response_a }} {{ response_b }} {{ other }}", "'other' is undefined"),
        ("a\n{% if %}", ":2: not a template"),
        ("{{ prompt.__class__.__mro__ }} {{ response_a }} {{ response_b }}", "unsafe|undefined"),
    ],
)
def test_a_template_that_cannot_work_is_told(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(content)
    with pytest.raises(P3OError, match=message):
        Question(str(file))


def test_a_template_that_is_not_there_is_told() -> None:
    with pytest.raises(P3OError, match="neither a file nor a built-in template"):
        Question("tldrr")
