"""From the columns of a row to a prompt and its answers.

Standard rows hold texts, conversational rows lists of messages ``{"role": "user", "content": "…"}``:

    prompts         {"prompt"}
    demonstrations  {"prompt", "completion"}          or {"messages"}, whose last message is the answer
    preferences     {"prompt", "chosen", "rejected"}  or {"chosen", "rejected"}, whose shared beginning is the prompt

After a conversation, an answer may be a text or a list of one assistant message; it becomes the text either way. Other columns
are ignored. Nothing is repaired: a row that is not as it should be is a ``BadRowError``.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast, get_args

from p3o.data.jsonl import kind_of
from p3o.data.prefixes import common_prefix
from p3o.data.rows import BadRowError
from p3o.errors import did_you_mean, shorten

Kind = Literal["prompts", "demonstrations", "preferences"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ANSWERS: Mapping[Kind, tuple[str, ...]] = {
    "prompts": (),
    "demonstrations": ("completion",),
    "preferences": ("chosen", "rejected"),
}
"""The names of an example's answers."""
Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)
half_surrogate = re.compile("[\ud800-\udfff]").search
"""Finds what no UTF-8 can hold."""
_EXAMPLE_MESSAGE = '{"role": "user", "content": "…"}'


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


Prompt = str | tuple[Message, ...]


@dataclass(frozen=True)
class Example:
    """A checked row.

    Attributes:
        prompt: a text, or the messages that the next answer follows.
        answers: none for a prompt, the completion of a demonstration, or the preferred answer and the other one.
    """

    prompt: Prompt
    answers: tuple[str, ...] = ()


def parse(columns: Mapping[str, Any], kind: Kind, unread: Collection[str] = ()) -> Example:
    """The example that these columns hold.

    Args:
        columns: under our names.
        kind: of the example.
        unread: our names of which it was said that no column is to be read for them.

    Raises:
        BadRowError: if they hold none.
    """
    row = _Columns(columns, unread)
    if kind == "prompts":
        return Example(row.prompt_alone())
    if kind == "demonstrations":
        if "messages" in columns and "completion" not in columns:
            return row.answered_messages()
        return Example(row.prompt(), (row.answer("completion"),))
    example = row.pair()
    if example.answers[0] == example.answers[1]:
        raise BadRowError(
            "equal answers", "'chosen' and 'rejected' are the same text, so the row states no preference; remove it"
        )
    return example


def kind_of_columns(columns: Mapping[str, Any]) -> Kind:
    """What a row with these columns can be used for at most."""
    if "chosen" in columns and "rejected" in columns:
        return "preferences"
    return "demonstrations" if "completion" in columns or "messages" in columns else "prompts"


def rename(columns: Mapping[str, Any], names: Mapping[str, str | None]) -> Mapping[str, Any]:
    """The columns under our names.

    Args:
        names: for each of our names that of the column to read; None: our name is not to be read.

    Raises:
        BadRowError: if a column is not there.
    """
    if not names:
        return columns
    renamed = {name: value for name, value in columns.items() if name not in names}
    for ours, theirs in names.items():
        if theirs is not None:
            if theirs not in columns:
                _fail_missing(f"no column '{theirs}'", theirs, columns)
            renamed[ours] = columns[theirs]
    return renamed


class _Columns:
    """The columns of one row."""

    def __init__(self, columns: Mapping[str, Any], unread: Collection[str]) -> None:
        self.columns, self.unread = columns, unread

    def prompt_alone(self) -> Prompt:
        """The prompt of a row of any kind."""
        if "prompt" not in self.columns:
            if "messages" in self.columns:
                messages = self._conversation("messages")
                return self._ending_with_user(
                    "messages", messages[:-1] if messages[-1].role == "assistant" else messages
                )
            if kind_of_columns(self.columns) == "preferences":
                return self.pair().prompt
        return self.prompt()

    def prompt(self) -> Prompt:
        value = self._column("prompt")
        if not isinstance(value, list):
            return _text("prompt", value, "a text or a list of messages")
        return self._ending_with_user("prompt", self._conversation("prompt"))

    def answer(self, name: str) -> str:
        value = self._column(name)
        if not isinstance(value, list):
            return _text(name, value, "a text")
        if isinstance(self.columns.get("prompt"), str):
            whole = "; if it is the whole conversation, ignore 'prompt' (columns: {prompt: null})"
            _fail(
                "bad message",
                f"'{name}' is a list of messages but 'prompt' is a text; write both in the same form"
                + (whole if len(value) > 1 else ""),
            )
        if len(value) != 1:
            _fail("bad message", f"'{name}' has {len(value)} messages; give it exactly one, by the assistant")
        return self._assistant(f"{name}[0]", _message(f"{name}[0]", value[0]))

    def answered_messages(self) -> Example:
        """A whole conversation: the last message is the answer to all before it."""
        messages = self._conversation("messages")
        answer = self._assistant(f"messages[{len(messages) - 1}]", messages[-1])
        if len(messages) == 1:
            _fail("bad message", "'messages' is an answer without a question; begin with a message by the user")
        return Example(self._ending_with_user("messages before the last", messages[:-1]), (answer,))

    def pair(self) -> Example:
        """A prompt and two answers; the prompt is the shared beginning where there is no column for it."""
        if "prompt" in self.columns:
            return Example(self.prompt(), (self.answer("chosen"), self.answer("rejected")))
        chosen, rejected = self._column("chosen"), self._column("rejected")
        if _asks(chosen) and _asks(rejected):
            return self._shared_messages()
        # A name that is nearly ours is a slip, unless it was said that there is no such column (as beside a "prompt_id").
        if "prompt" not in self.unread and did_you_mean("prompt", self.columns):
            self._column("prompt")
        if isinstance(chosen, list) and isinstance(rejected, list):
            return self._shared_messages()
        return _shared_text(_text("chosen", chosen, "a text"), _text("rejected", rejected, "a text"))

    def _shared_messages(self) -> Example:
        chosen, rejected = self._conversation("chosen"), self._conversation("rejected")
        shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
        # Where one conversation is the beginning of the other, its last message is its answer.
        shared = min(len(chosen), len(rejected)) - 1 if shared is None else shared
        if shared == 0:
            _fail(
                "no shared prompt",
                "'chosen' and 'rejected' begin with different messages; they have no prompt in common",
            )
        answers = []
        for name, messages in (("chosen", chosen), ("rejected", rejected)):
            if len(messages) != shared + 1:
                _fail(
                    "more than one turn",
                    f"'{name}' has {len(messages) - shared} messages after the last one they share, so the two do "
                    f"not answer the same prompt",
                )
            answers.append(self._assistant(f"{name}[{shared}]", messages[shared]))
        return Example(self._ending_with_user("the shared beginning", chosen[:shared]), tuple(answers))

    def _conversation(self, name: str) -> tuple[Message, ...]:
        value = self._column(name)
        if not isinstance(value, list):
            _fail("not text", f"'{name}' is {kind_of(value)}; it must be a list of messages")
        if not value:
            _fail("empty", f"'{name}' is an empty list; give it at least one message")
        return tuple(_message(f"{name}[{index}]", item) for index, item in enumerate(value))

    def _ending_with_user(self, name: str, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if not messages or messages[-1].role != "user":
            role = messages[-1].role if messages else "assistant"
            _fail(
                "bad message",
                f"'{name}' ends with a message by the {role}; it must end with one by the user, and the "
                f"assistant's answer belongs in the other columns",
            )
        return messages

    def _assistant(self, name: str, message: Message) -> str:
        if message.role != "assistant":
            _fail("bad message", f"'{name}.role' is '{message.role}'; it must be 'assistant'")
        return message.content

    def _column(self, name: str) -> Any:
        if name not in self.columns:
            otherwise = f", or name the column to read instead: columns: {{{name}: …}}"
            _fail_missing(f"no column '{name}'", name, self.columns, otherwise)
        return self.columns[name]


def _asks(value: Any) -> bool:
    """Whether a value is a whole conversation, one that begins with a question and not with an answer."""
    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict) and value[0].get("role") != "assistant"
    )


def _shared_text(chosen: str, rejected: str) -> Example:
    """The prompt ends before the white space that precedes the first word in which the two differ: a completion begins with
    its space, and no word is cut in two. Both answers keep at least one word."""
    if chosen == rejected:
        return Example("", (chosen, rejected))
    shared = common_prefix(chosen, rejected)
    end = len(shared)
    while end > 0:
        begins_word = chosen[end : end + 1].isspace() and rejected[end : end + 1].isspace()
        if begins_word and not shared[end - 1].isspace() and chosen[end:].strip() and rejected[end:].strip():
            return Example(shared[:end], (chosen[end:], rejected[end:]))
        end -= 1
    _fail("no shared prompt", "'chosen' and 'rejected' begin with different words; add a column 'prompt'")


def _message(name: str, value: Any) -> Message:
    if not isinstance(value, dict):
        _fail("bad message", f"'{name}' is {kind_of(value)}; it must be a message: {_EXAMPLE_MESSAGE}")
    for key in ("role", "content"):
        if key not in value:
            _fail_missing(f"'{name}' has no '{key}'", key, value)
    # A null says nothing; anything else would be lost without a word.
    if extra := [key for key in value if key not in ("role", "content") and value[key] is not None]:
        _fail(
            "bad message",
            f"'{name}' has {shorten(extra[0])} besides 'role' and 'content'; only those two are supported, remove it",
        )
    role = value["role"]
    if role not in ROLES:
        _fail("bad message", f"'{name}.role' is {shorten(role)}; it must be one of {', '.join(ROLES)}")
    return Message(cast(Role, role), _text(f"{name}.content", value["content"], "a text"))


def _text(name: str, value: Any, expected: str) -> str:
    if not isinstance(value, str):
        _fail("not text", f"'{name}' is {kind_of(value)}; it must be {expected}")
    if not value.strip():
        _fail("empty", f"'{name}' is {'empty' if not value else 'only white space'}; fill it in or remove the row")
    if "\0" in value:
        _fail("not text", f"'{name}' has a null character at position {value.index(chr(0)) + 1}; remove it")
    if half := half_surrogate(value):
        _fail(
            "not text",
            f"'{name}' has half of a surrogate pair at position {half.end()}, which is not valid text; remove it",
        )
    return value


def _fail(reason: str, problem: str) -> NoReturn:
    raise BadRowError(reason, problem)


def _fail_missing(problem: str, wanted: str, present: Mapping[str, Any], otherwise: str = "") -> NoReturn:
    if not present:
        _fail("missing column", f"{problem}: it is empty; add '{wanted}'")
    advice = did_you_mean(wanted, present) or f"add '{wanted}'{otherwise}"
    names = ", ".join(shorten(name) for name in list(present)[:6])
    _fail("missing column", f"{problem}, only {names}; {advice}")
