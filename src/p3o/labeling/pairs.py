"""Pairs of responses to label, as JSON Lines:

    {"prompt": "What is a skink?", "response_a": "A lizard.", "response_b": "A bird."}

Optional columns: ``policy_a`` and ``policy_b`` (who wrote it; never shown to annotators), ``id`` (a text that names the pair),
and ``gold`` ("a", "b", "tie" or "bad": the known answer of a pair that tests annotators). A prompt may be a list of messages.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from p3o.data.formats import half_surrogate
from p3o.errors import P3OError
from p3o.files import open_for_reading, write_jsonl

Messages = list[dict[str, str]]
"""A conversation: [{"role": "user", "content": "…"}, …]."""

Gold = Literal["a", "b", "tie", "bad"]


@dataclass(frozen=True)
class Pair:
    """A prompt and two responses to it.

    Attributes:
        key: names the pair in the store.
        gold: the known answer, of a pair that tests annotators.
    """

    key: str
    prompt: str | Messages
    response_a: str
    response_b: str
    policy_a: str | None = None
    policy_b: str | None = None
    gold: Gold | None = None

    def columns(self) -> dict[str, Any]:
        """The columns of its row in the store."""
        return dict(vars(self))

    def same_texts(self, prompt: str | Messages, response_a: str, response_b: str) -> bool:
        """Whether these are the pair's own texts."""
        return (self.prompt, self.response_a, self.response_b) == (prompt, response_a, response_b)


def key_of(prompt: str | Messages, response_a: str, response_b: str) -> str:
    """A name for a pair that has none: a hash of its texts."""
    return hashlib.sha256(json.dumps([prompt, response_a, response_b]).encode()).hexdigest()[:16]


def with_prompt(pair: Pair, prompt: str | Messages) -> Pair:
    """The pair with its prompt in another form, under the name that it has then."""
    return replace(pair, key=key_of(prompt, pair.response_a, pair.response_b), prompt=prompt)


def _unholdable(text: str) -> str | None:
    """What neither a page nor a database can hold, if the text has it."""
    if "\0" in text:
        return "a null character"
    return "half of a surrogate pair" if half_surrogate(text) else None


def _refuse_what_cannot_be_held(text: str) -> None:
    if (held := _unholdable(text)) is not None:
        raise ValueError(f"holds {held}; remove it")


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    prompt: str | list[_Message] = Field(min_length=1)
    response_a: str
    response_b: str
    policy_a: str | None = None
    policy_b: str | None = None
    id: str | int | None = None
    gold: Gold | None = None

    @field_validator("policy_a", "policy_b", "id")
    @classmethod
    def _is_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            _refuse_what_cannot_be_held(value)
        return value

    @field_validator("prompt", "response_a", "response_b")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        for text in [value] if isinstance(value, str) else [message.content for message in value]:
            if not text.strip():
                raise ValueError("is empty; fill it in or remove the row")
            _refuse_what_cannot_be_held(text)
        return value

    @model_validator(mode="after")
    def _differ(self) -> "_Row":
        if self.response_a == self.response_b:
            raise ValueError(
                "'response_a' and 'response_b' are the same text; remove the row, there is nothing to compare"
            )
        return self

    def pair(self) -> Pair:
        prompt = self.prompt if isinstance(self.prompt, str) else [message.model_dump() for message in self.prompt]
        key = str(self.id) if self.id is not None else key_of(prompt, self.response_a, self.response_b)
        return Pair(key, prompt, self.response_a, self.response_b, self.policy_a, self.policy_b, self.gold)


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file, in order.

    Raises:
        P3OError: at the first bad row, with its line; at a pair that stands there twice; or if there are none.
    """
    pairs: list[Pair] = []
    lines: dict[str, int] = {}
    for number, value in _rows(path):
        pair = parse_pair(value, f"{path}:{number}")
        if pair.key in lines:
            raise P3OError(
                f"{path}:{number}: the same pair as in line {lines[pair.key]}; remove one of them or give it an 'id'"
            )
        lines[pair.key] = number
        pairs.append(pair)
    if not pairs:
        raise P3OError(f"{path}: has no rows; write one JSON object per line")
    return pairs


def parse_pair(value: Any, place: str) -> Pair:
    """A pair from a parsed row.

    Raises:
        P3OError: if a column is missing or wrong; ``place`` begins the message.
    """
    try:
        return _Row.model_validate(value).pair()
    except ValidationError as error:
        # Of the ways in which a prompt can be wrong, as a text and as messages, the one that went deeper.
        first = max(error.errors(), key=lambda found: len(found["loc"]))
        name = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("list[", "str")))
        problem = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"].lower()
        if first["type"] == "missing" and len(first["loc"]) == 1:
            problem = "missing; a pair needs 'prompt', 'response_a' and 'response_b', as p3o sample writes them"
        raise P3OError(f"{place}: {f'{name!r}: ' if name else ''}{problem}") from error


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    with open_for_reading(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise P3OError(f"{path}:{number}: not a complete JSON object in UTF-8; write one per line") from error


@dataclass(frozen=True)
class Sampled:
    """One response to a prompt, and who wrote it."""

    response: str
    policy: str | None = None


@dataclass(frozen=True)
class PairCounts:
    """What became of sampled responses.

    Attributes:
        pairs: how many pairs there are.
        identical_dropped: responses that repeat an earlier one to the same prompt.
        empty_dropped: responses without any text.
        unholdable_dropped: responses with a null character or half of a surrogate pair, as a byte-level model may write: no
            page and no database holds them.
    """

    pairs: int
    identical_dropped: int
    empty_dropped: int
    unholdable_dropped: int


def pairs_of_responses(groups: Iterable[tuple[str | Messages, Sequence[Sampled]]]) -> tuple[list[Pair], PairCounts]:
    """All pairs (K choose 2) of the distinct responses to each prompt, in order, and what was dropped.

    Args:
        groups: each prompt with its K responses. A prompt may come again: a response that it had is dropped as identical.
    """
    pairs: list[Pair] = []
    identical = empty = unholdable = 0
    seen: dict[str, dict[str, None]] = {}
    for prompt, sampled in groups:
        before = seen.setdefault(json.dumps(prompt), {})
        fresh: dict[str, Sampled] = {}
        for one in sampled:
            if not one.response.strip():
                empty += 1
            elif _unholdable(one.response) is not None:
                unholdable += 1
            elif one.response in before or one.response in fresh:
                identical += 1
            else:
                fresh[one.response] = one
        before.update(dict.fromkeys(fresh))
        for a, b in combinations(fresh.values(), 2):
            key = key_of(prompt, a.response, b.response)
            pairs.append(Pair(key, prompt, a.response, b.response, a.policy, b.policy))
    return pairs, PairCounts(len(pairs), identical, empty, unholdable)


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Write a file of pairs, whole or not at all; columns that are None are left out.

    Raises:
        P3OError: if the system refuses.
    """

    def row(pair: Pair) -> Mapping[str, Any]:
        columns = {"id": pair.key, **pair.columns()}
        del columns["key"]
        return {name: value for name, value in columns.items() if value is not None}

    write_jsonl(path, map(row, pairs))
