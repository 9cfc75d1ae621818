"""The embedded task as data: prompts, demonstrations and candidate answers for every stage of training.

Every function draws from a generator of its own, seeded by its purpose and the given seed: asking for more of one thing
never changes another. Prompts are held out by a hash of their text, a fifth of the space, whatever the seed.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Literal

from p3o.data.embedded.answers import parse_answer, render_answer
from p3o.data.embedded.grammar import (
    HARMFUL_TASKS,
    HARMLESS_TASKS,
    NAMES,
    WISHES,
    Request,
    all_requests,
    parse_prompt,
    render_prompt,
)
from p3o.data.embedded.writers import DEMONSTRATOR, MIXED, PERFECT, write_answer
from p3o.errors import P3OError

Split = Literal["train", "heldout"]

HARMFUL_SHARE = 0.25
"""Share of harmful requests among the prompts drawn."""

MAX_RESPONSE_TOKENS = 40
"""Room for the longest answer that any writer gives, with its end of sequence."""


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the completion that somebody wrote."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class CandidatePair:
    """Two answers to a prompt that are to be compared.

    Attributes:
        kind: "independent", two answers to the prompt; "cross_prompt", the second was written for another prompt; "name",
            the second addresses somebody else and is otherwise the same; "one_sentence", the second leaves out one
            sentence of the first; "length", the second has fewer steps of the task; "garbled", the second lacks some words.
    """

    prompt: str
    response_a: str
    response_b: str
    kind: str


def split_of(prompt: str) -> Split:
    """Where a prompt belongs: a fifth of all texts, chosen by their SHA-256, is held out."""
    return "heldout" if int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8]) % 5 == 0 else "train"


def prompts(count: int, *, seed: int, split: Split) -> list[str]:
    """Distinct prompts in random order, a quarter of them harmful.

    Raises:
        P3OError: if the split has not that many.
    """
    rng = Random(f"prompts {split} {seed}")
    harmful = round(count * HARMFUL_SHARE)
    harmless_space, harmful_space = _space(split)
    if harmful > len(harmful_space) or count - harmful > len(harmless_space):
        most = min(int(len(harmful_space) / HARMFUL_SHARE), int(len(harmless_space) / (1 - HARMFUL_SHARE)))
        raise P3OError(f"prompts: {count} {split} prompts wanted, the embedded task has {most}; ask for fewer")
    drawn = rng.sample(harmless_space, count - harmful) + rng.sample(harmful_space, harmful)
    rng.shuffle(drawn)
    return drawn


def demonstrations(count: int, *, seed: int, split: Split = "train") -> list[Demonstration]:
    """Demonstrations of deliberately mixed quality; prompts may come back."""
    rng = Random(f"demonstrations {split} {seed}")
    return [
        Demonstration(prompt, write_answer(parse_prompt(prompt), DEMONSTRATOR, rng))
        for prompt in _draw_prompts(count, split, rng)
    ]


def comparison_candidates(count: int, *, seed: int, split: Split = "train") -> list[CandidatePair]:
    """Pairs of answers written for comparison, to be mixed with pairs sampled from a policy.

    Style alone would teach a reward model that ignores the prompt, so in PAIR_KINDS many the second answer was written for
    another prompt. Without pairs that differ in the name only, a reward model learns to pay for any name at all, and a
    policy to use any: a quarter of the pairs. Others differ by one sentence, in the number of steps, or by a few words lost,
    so that each of these gets its own worth. See :func:`curriculum_order` for the order in which to learn from them.
    """
    rng = Random(f"comparisons {split} {seed}")
    kinds = rng.choices(list(PAIR_KINDS), list(PAIR_KINDS.values()), k=count)
    return [
        CandidatePair(prompt, *_PAIR_WRITERS[kind](parse_prompt(prompt), rng), kind)
        for prompt, kind in zip(_draw_prompts(count, split, rng), kinds, strict=True)
    ]


def curriculum_order(kinds: Sequence[str], *, seed: int) -> list[int]:
    """Indices of pairs of these kinds in the order in which a reward model learns best from one pass: names early.

    Whether two names are the same is an interaction that a small model finds in a minute of pairs about nothing else and
    hardly ever while larger differences draw its attention. Nine tenths of the "name" pairs come within the
    first seventh of all others, among which they are the majority; all else is in random order.
    """
    rng = Random(f"curriculum {seed}")

    def place(kind: str) -> float:
        early = kind == "name" and rng.random() < 0.9
        return rng.random() * (0.15 if early else 1.0)

    places = [place(kind) for kind in kinds]
    return sorted(range(len(kinds)), key=places.__getitem__)


def cross_prompt_pairs(count: int, *, seed: int, split: Split = "heldout") -> list[CandidatePair]:
    """Pairs of which the first is a perfect answer to the prompt and the second one to a prompt with another task.

    What a reward model must tell apart without fail, or a policy will learn one fine answer to everything.
    """
    rng = Random(f"cross-prompt pairs {split} {seed}")
    return [
        CandidatePair(
            prompt,
            write_answer(request, PERFECT, rng),
            write_answer(_other_request(request, rng), PERFECT, rng),
            "cross_prompt",
        )
        for prompt in prompts(count, seed=seed, split=split)
        for request in [parse_prompt(prompt)]
    ]


def perfect_answers(prompts: Sequence[str], *, seed: int) -> list[str]:
    """An answer of the highest gold reward to each prompt; the seed varies the wording."""
    rng = Random(f"perfect answers {seed}")
    return [write_answer(parse_prompt(prompt), PERFECT, rng) for prompt in prompts]


def perfect_answer(prompt: str) -> str:
    """The first answer that earns the highest gold reward."""
    return perfect_answers([prompt], seed=0)[0]


def _draw_prompts(count: int, split: Split, rng: Random) -> list[str]:
    harmless, harmful = _space(split)
    return [rng.choice(harmful if rng.random() < HARMFUL_SHARE else harmless) for _ in range(count)]


@cache
def _space(split: Split) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Harmless and harmful prompts of a split."""
    texts = [(render_prompt(request), request.task.harmful) for request in all_requests()]
    inside = [(text, harmful) for text, harmful in texts if split_of(text) == split]
    return tuple(text for text, harmful in inside if not harmful), tuple(text for text, harmful in inside if harmful)


def _other_request(request: Request, rng: Random) -> Request:
    while True:
        tasks = HARMFUL_TASKS if rng.random() < HARMFUL_SHARE else HARMLESS_TASKS
        other = Request(rng.choice(NAMES), rng.choice(tasks), rng.choice(list(WISHES)))
        if other.task != request.task:
            return other


def _independent_pair(request: Request, rng: Random) -> tuple[str, str]:
    return write_answer(request, MIXED, rng), write_answer(request, MIXED, rng)


def _cross_prompt_pair(request: Request, rng: Random) -> tuple[str, str]:
    return write_answer(request, MIXED, rng), write_answer(_other_request(request, rng), MIXED, rng)


def _name_pair(request: Request, rng: Random) -> tuple[str, str]:
    addressing = replace(MIXED, openers={"welcome": 1.0}, names_in_refusal=1.0, right_name=1.0)
    answer = write_answer(request, addressing, rng)
    return answer, answer.replace(request.name, rng.choice([name for name in NAMES if name != request.name]))


def _one_sentence_pair(request: Request, rng: Random) -> tuple[str, str]:
    while True:
        answer = write_answer(request, MIXED, rng)
        sentences = [sentence.text for sentence in parse_answer(answer)]
        if len(sentences) > 1:
            del sentences[rng.randrange(len(sentences))]
            return answer, render_answer(sentences)


def _length_pair(request: Request, rng: Random) -> tuple[str, str]:
    advising = replace(MIXED, right_task=1.0, right_length=1.0, refuses_harm=0.0, refuses_harmless=0.0)
    answer = write_answer(replace(request, wanted_steps=3), advising, rng)
    long, short = rng.choice([(3, 2), (3, 1), (2, 1)])
    steps, first_steps = request.task.steps, render_answer(request.task.steps[:short])
    return answer.replace(render_answer(steps[long:]), ""), answer.replace(render_answer(steps), first_steps)


def _garbled_pair(request: Request, rng: Random) -> tuple[str, str]:
    answer = write_answer(request, MIXED, rng)
    words = answer.split()
    start = rng.randrange(len(words) - 1)
    del words[start : min(start + rng.randint(1, 6), len(words) - 1)]
    return answer, render_answer(words)


PAIR_KINDS = {
    "name": 0.25,
    "independent": 0.1,
    "cross_prompt": 0.3,
    "one_sentence": 0.1,
    "length": 0.15,
    "garbled": 0.1,
}
"""Shares of the kinds of pairs."""

_PAIR_WRITERS: dict[str, Callable[[Request, Random], tuple[str, str]]] = {
    "independent": _independent_pair,
    "cross_prompt": _cross_prompt_pair,
    "name": _name_pair,
    "one_sentence": _one_sentence_pair,
    "length": _length_pair,
    "garbled": _garbled_pair,
}
