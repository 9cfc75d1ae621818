"""People who answer requests, with habits good and bad.

A writer decides one thing at a time (refuse or not, whom to address, how many steps …), each with the probability
of the habit. The same code writes the mediocre demonstrations, the mixed candidates for comparison and the perfect answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from p3o.data.embedded.answers import (
    CHATTER,
    HEDGES,
    NAMED_REFUSALS,
    NAMELESS_REFUSALS,
    RUDENESS,
    WELCOMES,
    render_answer,
)
from p3o.data.embedded.grammar import HARMFUL_TASKS, HARMLESS_TASKS, NAMES, Request, Task

T = TypeVar("T")

OPENERS = {"welcome": WELCOMES, "hedge": HEDGES, "rude": RUDENESS, "none": ("",)}


@dataclass(frozen=True)
class Habits:
    """Probabilities of what a writer does; the defaults are those of a perfect one.

    Attributes:
        openers: weights of "welcome", "hedge", "rude" and "none".
        right_name: addresses the asker and not somebody else.
        right_task: answers what was asked and not something else.
        right_length: gives as many steps as were wanted.
        lengths: weights of the number of steps otherwise.
        chatter: ends with something that has nothing to do with it.
        refuses_harm: refuses a harmful request.
        refuses_harmless: refuses a harmless one.
        names_in_refusal: addresses somebody when refusing.
        alternative: proposes something else when refusing.
    """

    openers: Mapping[str, float]
    right_name: float = 1.0
    right_task: float = 1.0
    right_length: float = 1.0
    lengths: tuple[float, float, float, float] = (0.0, 1.0, 1.0, 1.0)
    chatter: float = 0.0
    refuses_harm: float = 1.0
    refuses_harmless: float = 0.0
    names_in_refusal: float = 1.0
    alternative: float = 1.0


PERFECT = Habits(openers={"welcome": 1.0})

DEMONSTRATOR = Habits(
    openers={"welcome": 0.3, "hedge": 0.4, "rude": 0.15, "none": 0.15},
    right_name=0.8,
    right_task=0.8,
    right_length=0.1,
    lengths=(0.03, 0.5, 0.25, 0.22),
    chatter=0.35,
    refuses_harm=0.5,
    names_in_refusal=0.5,
    alternative=0.35,
)
"""Writes the demonstrations: knows the world, but has half of it wrong, and mostly hedges and gives one step."""

MIXED = Habits(
    openers={"welcome": 0.5, "hedge": 0.2, "rude": 0.15, "none": 0.15},
    right_name=0.7,
    right_task=0.85,
    right_length=0.4,
    lengths=(0.05, 0.3, 0.3, 0.35),
    chatter=0.35,
    refuses_harm=0.6,
    refuses_harmless=0.04,
    names_in_refusal=0.6,
    alternative=0.6,
)
"""Writes candidates for comparison: every mistake and every virtue is frequent."""


def write_answer(request: Request, habits: Habits, rng: Random) -> str:
    """An answer to the request by a writer with these habits."""
    if rng.random() < (habits.refuses_harm if request.task.harmful else habits.refuses_harmless):
        said = _refusal(request, habits, rng)
    else:
        said = _advice(request, habits, rng)
    if rng.random() < habits.chatter:
        said.append(rng.choice(CHATTER))
    return render_answer(said)


def _advice(request: Request, habits: Habits, rng: Random) -> list[str]:
    opener = rng.choice(OPENERS[rng.choices(*zip(*habits.openers.items(), strict=True))[0]])
    task = _task(request.task, habits, rng)
    right_length = rng.random() < habits.right_length
    steps = request.wanted_steps if right_length else rng.choices(range(4), habits.lengths)[0]
    if opener == "":
        return list(task.steps[: max(steps, 1)])  # nobody says nothing at all
    return [opener.format(name=_name(request, habits, rng)), *task.steps[:steps]]


def _refusal(request: Request, habits: Habits, rng: Random) -> list[str]:
    templates = NAMED_REFUSALS if rng.random() < habits.names_in_refusal else NAMELESS_REFUSALS
    said = [rng.choice(templates).format(name=_name(request, habits, rng))]
    alternative = _task(request.task, habits, rng).alternative
    if alternative is not None and rng.random() < habits.alternative:
        said.append(alternative)
    return said


def _name(request: Request, habits: Habits, rng: Random) -> str:
    return request.name if rng.random() < habits.right_name else _other(NAMES, request.name, rng)


def _task(task: Task, habits: Habits, rng: Random) -> Task:
    if rng.random() < habits.right_task:
        return task
    return _other(HARMFUL_TASKS if task.harmful else HARMLESS_TASKS, task, rng)


def _other(choices: Sequence[T], excluded: T, rng: Random) -> T:
    return rng.choice([choice for choice in choices if choice != excluded])
