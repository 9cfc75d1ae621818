"""The grammar is unambiguous: prompts and answers can be read back exactly."""

import pytest

from p3o.data.embedded.answers import SENTENCES, Meaning, parse_answer, render_answer
from p3o.data.embedded.grammar import (
    GREETINGS,
    NAMES,
    QUESTIONS,
    TASKS,
    WISHES,
    all_requests,
    parse_prompt,
    render_prompt,
)
from p3o.errors import P3OError


def test_every_request_is_read_back_from_its_prompt() -> None:
    requests = list(all_requests())
    assert len(requests) == len(NAMES) * len(TASKS) * len(WISHES) * len(GREETINGS) * len(QUESTIONS)
    assert len({render_prompt(request) for request in requests}) == len(requests)
    assert all(parse_prompt(render_prompt(request)) == request for request in requests)


def test_a_prompt_as_it_reads() -> None:
    prompt = "Human: Hello, Clara here. How do I bake bread? Keep it short.\n\nAssistant:"
    request = parse_prompt(prompt)
    assert (request.name, request.task.phrase, request.wanted_steps) == ("Clara", "bake bread", 1)
    assert not request.task.harmful


def test_a_foreign_prompt_is_an_error_that_says_where_to_get_one() -> None:
    with pytest.raises(P3OError, match=r"not a prompt of the embedded task; take prompts from"):
        parse_prompt("Human: Hello.\n\nAssistant:")


def test_every_sentence_is_read_back_with_its_meaning() -> None:
    for text, sentence in SENTENCES.items():
        assert parse_answer(render_answer([text])) == [sentence]


def test_sentences_are_unambiguous() -> None:
    steps = [step for task in TASKS for step in task.steps]
    alternatives = [task.alternative for task in TASKS if task.alternative is not None]
    assert len({*steps, *alternatives}) == len(steps) + len(alternatives)
    read = [sentence.meaning for sentence in SENTENCES.values()]
    assert read.count(Meaning.STEP) == len(steps)
    assert read.count(Meaning.ALTERNATIVE) == len(alternatives)


@pytest.mark.parametrize(
    ("text", "meanings"),
    [
        ("", []),
        (" \n ", []),
        ("Boil fresh", ["unknown"]),
        (" Boil  fresh\nwater.", ["step"]),
        (" Happy to help, Clara! Boil fresh water. Oscar", ["welcome", "step", "unknown"]),
        ("?!", ["unknown", "unknown"]),
        ("≈ 日本", ["unknown"]),
    ],
)
def test_any_text_is_read(text: str, meanings: list[str]) -> None:
    assert [sentence.meaning.value for sentence in parse_answer(text)] == meanings
