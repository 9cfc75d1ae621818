"""What is sent to a reward service and what comes back, for each interface.

    p3o       POST /rewards   {"version": 1, "prompts", "responses", "messages"?} -> {"version": 1, "rewards"}
    classify  POST /classify  {"input"} or {"messages"} -> {"data": [{"index", "probs": [score]}]}
    pooling   POST /pooling   {"input"} or {"messages"} -> {"data": [{"index", "data": [score] or [[score] per token]}]}
    score     POST /score     {"text_1", "text_2"}      -> {"data": [{"index", "score"}]}

The last three are vLLM's (``vllm serve MODEL --runner pooling``). They squash scores by default (``use_activation``): a sigmoid
bends the differences that P3O learns from, so it is switched off in every request.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p3o.data.formats import Message
from p3o.errors import shorten
from p3o.feedback.remote.config import InterfaceName

VERSION = 1
"""Of our own interface."""


@dataclass(frozen=True)
class Row:
    """One response to be scored.

    Attributes:
        prompt: as the policy reads it.
        response: what it answered.
        messages: what the prompt was rendered from; None if it is a plain text.
        ids: what the reward model reads, where its tokenizer is known here.
    """

    prompt: str
    response: str
    messages: tuple[Message, ...] | None = None
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Interface:
    """How one kind of server is spoken to.

    Attributes:
        path: below the server's address.
        body: the request for some rows; the text is what follows each response.
        rewards: those of a reply's JSON; NaN where the server has none. Raises ValueError if it is no such reply.
        alone: whether a row needs a request of its own.
    """

    path: str
    body: Callable[[Sequence[Row], str], dict[str, Any]]
    rewards: Callable[[Any], list[float]]
    alone: Callable[[Row], bool]


def messages_as_json(messages: Sequence[Message]) -> list[dict[str, str]]:
    """A conversation as it is sent."""
    return [{"role": message.role, "content": message.content} for message in messages]


def _own_body(rows: Sequence[Row], end: str) -> dict[str, Any]:
    body: dict[str, Any] = {"version": VERSION, "prompts": [row.prompt for row in rows]}
    body["responses"] = [row.response + end for row in rows]
    if any(row.messages for row in rows):
        body["messages"] = [None if row.messages is None else messages_as_json(row.messages) for row in rows]
    return body


def _own_rewards(reply: Any) -> list[float]:
    if _field(reply, "version") != VERSION:
        raise ValueError(f"version {shorten(reply['version'])}, where this p3o speaks version {VERSION}")
    return [_number(value) for value in _list(reply, "rewards")]


def _text_body(rows: Sequence[Row], end: str) -> dict[str, Any]:
    if _is_chat(rows[0]):
        (row,) = rows
        assert row.messages is not None
        answer = {"role": "assistant", "content": row.response + end}
        return {"messages": [*messages_as_json(row.messages), answer], "use_activation": False}
    texts = [row.prompt + row.response + end if row.ids is None else list(row.ids) for row in rows]
    return {"input": texts, "use_activation": False}


def _pair_body(rows: Sequence[Row], end: str) -> dict[str, Any]:
    return {
        "text_1": [row.prompt for row in rows],
        "text_2": [row.response + end for row in rows],
        "use_activation": False,
    }


def _is_chat(row: Row) -> bool:
    """A request in messages holds one conversation; ids are sent as any others."""
    return row.messages is not None and row.ids is None


def _never(_row: Row) -> bool:
    return False


def _class_rewards(reply: Any) -> list[float]:
    return [_only(_list(entry, "probs")) for entry in _in_order(reply)]


def _pooled_rewards(reply: Any) -> list[float]:
    return [_pooled(_list(entry, "data")) for entry in _in_order(reply)]


def _pair_rewards(reply: Any) -> list[float]:
    return [_number(_field(entry, "score")) for entry in _in_order(reply)]


def _pooled(values: list[Any]) -> float:
    """The score of a sequence, or that of its last token."""
    return _only(values[-1] if values and isinstance(values[-1], list) else values)


def _only(values: list[Any]) -> float:
    if len(values) != 1:
        raise ValueError(f"{len(values)} numbers for a response; a reward model has one label")
    return _number(values[0])


def _in_order(reply: Any) -> list[Any]:
    """The entries of ``data`` by their index."""
    entries = _list(reply, "data")
    order = [_field(entry, "index") for entry in entries]
    if not all(isinstance(index, int) for index in order) or sorted(order) != list(range(len(order))):
        raise ValueError(f"indices {shorten(order)}")
    return [entry for _, entry in sorted(zip(order, entries, strict=True), key=lambda pair: pair[0])]


def _field(value: Any, name: str) -> Any:
    if not isinstance(value, Mapping) or name not in value:
        raise ValueError(f"no {name!r} in {shorten(value)}")
    return value[name]


def _list(value: Any, name: str) -> list[Any]:
    found = _field(value, name)
    if not isinstance(found, list):
        raise ValueError(f"{name!r} is {shorten(found)}, not a list")
    return found


def _number(value: Any) -> float:
    """A number as it is; NaN for null, which is how JSON says it."""
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{shorten(value)} is not a number")
    return float(value)


INTERFACES: dict[InterfaceName, Interface] = {
    "p3o": Interface("/rewards", _own_body, _own_rewards, _never),
    "classify": Interface("/classify", _text_body, _class_rewards, _is_chat),
    "pooling": Interface("/pooling", _text_body, _pooled_rewards, _is_chat),
    "score": Interface("/score", _pair_body, _pair_rewards, _never),
}
