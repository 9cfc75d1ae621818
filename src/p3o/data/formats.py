"""Rows of prompts, demonstrations and preferences, read from JSON Lines files.

One JSON object a line, UTF-8:

    {"prompt": "What is a skink?"}
    {"prompt": "What is a skink?", "completion": " A lizard."}
    {"prompt": "What is a skink?", "chosen": " A lizard.", "rejected": " A bird."}

A prompt is a text, or a conversation: ``[{"role": "user", "content": "What is a skink?"}]``. After a conversation, a
completion may be a text or a list of one assistant message; it becomes the text either way. Other columns are ignored, and so
are blank lines. Nothing is repaired and no row is dropped: the first bad one is a ``P3OError`` with the file and the line.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, TypeVar, cast, get_args, runtime_checkable

from jinja2 import TemplateError

from p3o.errors import P3OError, did_you_mean, shorten
from p3o.files import open_for_reading

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)
_EXAMPLE_MESSAGE = '{"role": "user", "content": "…"}'


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


Prompt = str | tuple[Message, ...]


@dataclass(frozen=True)
class Demonstration:
    """A prompt and one good answer, for supervised fine-tuning."""

    prompt: Prompt
    completion: str


@dataclass(frozen=True)
class Preference:
    """A prompt and two answers, of which the first was preferred."""

    prompt: Prompt
    chosen: str
    rejected: str


@runtime_checkable
class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that renders conversations."""

    chat_template: Any

    def apply_chat_template(self, conversation: Any, /, **settings: Any) -> Any:
        """The conversation as one text (with ``tokenize=False``)."""


def read_prompts(path: Path | str) -> list[Prompt]:
    """The prompts of a file of ``{"prompt"}`` rows, in order.

    Raises:
        P3OError: at the first bad row, or if the file is missing, unreadable or without rows.
    """
    return _read(path, lambda row: row.prompt())


def read_demonstrations(path: Path | str) -> list[Demonstration]:
    """The rows of a file of ``{"prompt", "completion"}``, in order.

    Raises:
        P3OError: at the first bad row, or if the file is missing, unreadable or without rows.
    """
    return _read(path, lambda row: Demonstration(row.prompt(), row.answer("completion")))


def read_preferences(path: Path | str) -> list[Preference]:
    """The rows of a file of ``{"prompt", "chosen", "rejected"}``, in order.

    Raises:
        P3OError: at the first bad row, one with equal answers included, or if the file is missing, unreadable or without
            rows.
    """

    def preference(row: "_Row") -> Preference:
        chosen, rejected = row.answer("chosen"), row.answer("rejected")
        if chosen == rejected:
            row.fail("'chosen' and 'rejected' are the same text; remove the row, it prefers nothing")
        return Preference(row.prompt(), chosen, rejected)

    return _read(path, preference)


def render_prompt(prompt: Prompt, tokenizer: ChatTokenizer) -> str:
    """The text that the model continues: a conversation by the tokenizer's chat template, a text as it is.

    A template writes its own special tokens: tokenise a rendered conversation with ``add_special_tokens=False``.

    Raises:
        P3OError: if the prompt is a conversation and the tokenizer has no template, or its template refuses it.
    """
    if isinstance(prompt, str):
        return prompt
    if not tokenizer.chat_template:
        raise P3OError(
            "a prompt is a list of messages, but the model's tokenizer has no chat template; "
            "write the prompts as plain texts or use a model that was tuned for chat"
        )
    messages = [{"role": message.role, "content": message.content} for message in prompt]
    try:
        return cast(str, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        roles = ", ".join(message.role for message in prompt)
        raise P3OError(
            f"the tokenizer's chat template refuses a prompt with the roles {roles}: {error}; "
            "change the prompt's messages as the model's card asks"
        ) from error


_Item = TypeVar("_Item")


def _read(path: Path | str, convert: "Callable[[_Row], _Item]") -> list[_Item]:
    items = [convert(row) for row in _rows(Path(path))]
    if not items:
        raise P3OError(f"{path}: holds no rows; write one JSON object a line")
    return items


def _rows(path: Path) -> Iterator["_Row"]:
    with open_for_reading(path) as file:
        # Iterating over bytes ends lines at \n only: a text may hold U+2028, at which str.splitlines would cut it.
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _Row.parse(path, number, line)


@dataclass(frozen=True)
class _Row:
    """One parsed line, and where it stands."""

    place: str
    columns: Mapping[str, Any]

    @classmethod
    def parse(cls, path: Path, number: int, line: bytes) -> "_Row":
        row = cls(f"{path}:{number}", {})
        if line.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
            row.fail("begins with a byte order mark; save the file as UTF-8 without BOM")
        try:
            value = json.loads(
                line.rstrip().decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
            )
        except UnicodeDecodeError as error:
            row.fail(
                f"not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start + 1}); save the file as UTF-8"
            )
        except json.JSONDecodeError as error:
            row.fail(
                f"malformed JSON at column {error.pos + 1}: {error.msg.lower()}; each line must be one whole JSON object"
            )
        except RecursionError:
            row.fail("nested too deeply; a row is one flat JSON object")
        except ValueError as error:  # ours, from the hooks, and Python's own for integers of thousands of digits
            row.fail(f"malformed JSON: {error}")
        if not isinstance(value, dict):
            row.fail(f'is {_kind(value)}; each line must be one whole JSON object, such as {{"prompt": "…"}}')
        return cls(row.place, value)

    def fail(self, problem: str) -> NoReturn:
        raise P3OError(f"{self.place}: {problem}")

    def prompt(self) -> Prompt:
        value = self._column("prompt")
        if not isinstance(value, list):
            return self._text("prompt", value, "a text or a list of messages")
        if not value:
            self.fail("'prompt' is an empty list; give it at least one message")
        messages = tuple(self._message(f"prompt[{index}]", item) for index, item in enumerate(value))
        if messages[-1].role != "user":
            self.fail(
                f"'prompt' ends with a message of the {messages[-1].role}; it must end with the user's, "
                "and what the assistant answers belongs in the other columns"
            )
        return messages

    def answer(self, name: str) -> str:
        value = self._column(name)
        if not isinstance(value, list):
            return self._text(name, value, "a text")
        if isinstance(self.columns.get("prompt"), str):
            self.fail(f"'{name}' is a list of messages but 'prompt' is a text; write both in the same form")
        if len(value) != 1:
            self.fail(f"'{name}' has {len(value)} messages; give it exactly one, of the assistant")
        message = self._message(f"{name}[0]", value[0])
        if message.role != "assistant":
            self.fail(f"'{name}[0].role' is '{message.role}'; it must be 'assistant'")
        return message.content

    def _column(self, name: str) -> Any:
        if name not in self.columns:
            self._fail_missing(f"no column '{name}'", name, self.columns)
        return self.columns[name]

    def _message(self, name: str, value: Any) -> Message:
        if not isinstance(value, dict):
            self.fail(f"'{name}' is {_kind(value)}; it must be a message: {_EXAMPLE_MESSAGE}")
        for key in ("role", "content"):
            if key not in value:
                self._fail_missing(f"'{name}' has no '{key}'", key, value)
        # A null says nothing; anything else would be lost without a word.
        if extra := [key for key in value if key not in ("role", "content") and value[key] is not None]:
            self.fail(
                f"'{name}' has {shorten(extra[0])} beside 'role' and 'content'; only those two are read, remove it"
            )
        role = value["role"]
        if role not in ROLES:
            self.fail(f"'{name}.role' is {shorten(role)}; it must be one of {', '.join(ROLES)}")
        return Message(cast(Role, role), self._text(f"{name}.content", value["content"], "a text"))

    def _text(self, name: str, value: Any, expected: str) -> str:
        if not isinstance(value, str):
            self.fail(f"'{name}' is {_kind(value)}; it must be {expected}")
        if not value.strip():
            self.fail(f"'{name}' is {'empty' if not value else 'only white space'}; fill it in or remove the row")
        if "\0" in value:
            self.fail(f"'{name}' holds a null character at position {value.index(chr(0)) + 1}; remove it")
        if position := next((i for i, char in enumerate(value, 1) if "\ud800" <= char <= "\udfff"), 0):
            self.fail(f"'{name}' holds half of a surrogate pair at position {position}; it is no text, remove it")
        return value

    def _fail_missing(self, problem: str, wanted: str, present: Mapping[str, Any]) -> NoReturn:
        if not present:
            self.fail(f"{problem}: it is empty; add '{wanted}'")
        advice = did_you_mean(wanted, present) or f"add '{wanted}'"
        names = ", ".join(shorten(name) for name in list(present)[:6])
        self.fail(f"{problem}, only {names}; {advice}")


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two values under one name Python would keep the last without a word."""
    items = dict(pairs)
    if len(items) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shorten(twice)} appears twice in one object; keep one")
    return items


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value; remove it")


def _kind(value: Any) -> str:
    """A JSON value's type, as a reader would say it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return "a list" if isinstance(value, list) else "an object"
