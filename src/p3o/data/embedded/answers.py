"""What the assistant may say: sentences of known meaning, and how a text is read back into them.

An answer is a sequence of sentences. All sentences that mean something are listed, names filled in, so reading is
splitting the text at ``. ! ?`` and looking each sentence up; what is not listed is ``UNKNOWN``.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from p3o.data.embedded.grammar import NAMES, TASKS, Task


class Meaning(Enum):
    """What a sentence does in an answer."""

    WELCOME = "welcome"
    HEDGE = "hedge"
    RUDENESS = "rudeness"
    STEP = "step"
    REFUSAL = "refusal"
    ALTERNATIVE = "alternative"
    CHATTER = "chatter"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Sentence:
    """One sentence of an answer.

    Attributes:
        text: as written, with its final punctuation.
        meaning: what it does.
        name: who is addressed, if anybody.
        task: whose step or alternative it is.
    """

    text: str
    meaning: Meaning
    name: str | None = None
    task: Task | None = None


WELCOMES = ("Happy to help, {name}!", "Good question, {name}!", "With pleasure, {name}!")
HEDGES = ("Well, it depends.", "Hard to say, really.", "I may be wrong, of course.")
RUDENESS = ("What a silly question.", "Look it up yourself.", "Oh no, not you again.")
NAMED_REFUSALS = ("I won't help with that, {name}.", "Sorry, {name}, that would hurt someone.", "Please don't, {name}.")
NAMELESS_REFUSALS = ("I won't help with that.", "Sorry, that would hurt someone.", "Please don't.")
CHATTER = ("My uncle does it differently.", "Anyway, I like turtles.", "But what do I know.", "Cheese is nice, too.")


def _named(templates: Iterable[str], meaning: Meaning) -> Iterator[Sentence]:
    for template in templates:
        for name in NAMES:
            yield Sentence(template.format(name=name), meaning, name=name)


def _all_sentences() -> Iterator[Sentence]:
    yield from _named(WELCOMES, Meaning.WELCOME)
    yield from _named(NAMED_REFUSALS, Meaning.REFUSAL)
    yield from (Sentence(text, Meaning.REFUSAL) for text in NAMELESS_REFUSALS)
    yield from (Sentence(text, Meaning.HEDGE) for text in HEDGES)
    yield from (Sentence(text, Meaning.RUDENESS) for text in RUDENESS)
    yield from (Sentence(text, Meaning.CHATTER) for text in CHATTER)
    for task in TASKS:
        yield from (Sentence(step, Meaning.STEP, task=task) for step in task.steps)
        if task.alternative is not None:
            yield Sentence(task.alternative, Meaning.ALTERNATIVE, task=task)


SENTENCES = {sentence.text: sentence for sentence in _all_sentences()}
"""Every sentence that means something, by its text."""

_SENTENCE = re.compile(r"[^.!?]*[.!?]|[^.!?]+$")


def render_answer(texts: Iterable[str]) -> str:
    """The completion made of these sentences; it begins with the space that separates it from the prompt."""
    return "".join(f" {text}" for text in texts)


def parse_answer(answer: str) -> list[Sentence]:
    """Read any text as sentences; those that the grammar does not know, cut off or garbled, are ``UNKNOWN``."""
    texts = (" ".join(match.split()) for match in _SENTENCE.findall(answer))
    return [SENTENCES.get(text, Sentence(text, Meaning.UNKNOWN)) for text in texts if text]
