"""From a source to rendered rows: adapter, checks, chat template, length limits; every row that falls out is counted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p3o.data.adapters import ADAPTERS
from p3o.data.chat import ChatFormat, ChatTokenizer
from p3o.data.formats import Example, Kind, Message, kind_of_columns, parse, rename
from p3o.data.rows import SHOWN, BadRowError, Policy, RowReport
from p3o.data.sources import SourceConfig


@dataclass(frozen=True)
class PlacedExample:
    """An example and where it stands: "file:line"."""

    place: str
    example: Example


@dataclass(frozen=True)
class _AdaptedRow:
    place: str
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class TextRow:
    """A row as text: conversations have gone through the chat template.

    Attributes:
        answers: none, a completion, or the preferred answer and the other one; without the end of sequence.
        messages: what the prompt was rendered from, if it is a conversation.
    """

    place: str
    prompt: str
    answers: tuple[str, ...]
    messages: tuple[Message, ...] | None = None


@dataclass(frozen=True)
class Lengths:
    """Token counts of a row, those that training will see: the BOS and the end of sequence included."""

    prompt: int
    answers: tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """How long a row may be, in tokens; None: as long as it likes.

    Attributes:
        prompt: of the prompt.
        completion: of each answer, its end of sequence included.
        context: of prompt and answer together: what the model can read.
        room: what a response that is still to be sampled may need.
    """

    prompt: int | None = None
    completion: int | None = None
    context: int | None = None
    room: int = 0


def read_examples(
    source: SourceConfig, kind: Kind, policy: Policy = "stop", *, shown: int = SHOWN
) -> tuple[list[PlacedExample], RowReport]:
    """The examples of a source, in order.

    Args:
        shown: how many dropped rows the report keeps with their place.

    Raises:
        P3OError: if the source cannot be read; at the first bad row if the policy is to stop.
    """
    report = RowReport(str(source), kind, policy, shown)
    return list(_examples(source, kind, report)), report


def richest_kind(source: SourceConfig) -> Kind:
    """What the rows of a source can be used for at most, by the columns of its first sound row.

    Raises:
        P3OError: if the source cannot be read or has no sound row.
    """
    report = RowReport(str(source), "rows", "skip")
    for row in _adapted(source, report):
        return kind_of_columns(row.columns)
    report.refuse_if_empty()
    raise AssertionError("a report without rows refuses")


def _examples(source: SourceConfig, kind: Kind, report: RowReport) -> Iterator[PlacedExample]:
    unread = {ours for ours, theirs in source.columns.items() if theirs is None}
    for row in _adapted(source, report):
        try:
            yield PlacedExample(row.place, parse(row.columns, kind, unread))
        except BadRowError as bad:
            report.drop(row.place, bad)


def _adapted(source: SourceConfig, report: RowReport) -> Iterator[_AdaptedRow]:
    """The rows after adapter and column names, those that are bad already dropped."""
    adapter = ADAPTERS[source.adapter] if source.adapter is not None else None
    for row in source.raw_rows():
        report.read += 1
        try:
            if isinstance(row.columns, BadRowError):
                raise row.columns
            columns = adapter(row.columns) if adapter is not None else row.columns
            yield _AdaptedRow(row.place, rename(columns, source.columns))
        except BadRowError as bad:
            report.drop(row.place, bad)


def render_rows(examples: Sequence[PlacedExample], tokenizer: ChatTokenizer, report: RowReport) -> list[TextRow]:
    """The examples as text.

    Raises:
        P3OError: if there is no chat template where one is needed; at the first row that it refuses if bad rows stop the run.
    """
    chat = ChatFormat(tokenizer)
    rows = []
    for placed in examples:
        try:
            prompt, answers = chat.render(placed.example)
            if len(set(answers)) < len(answers):
                raise BadRowError(
                    "equal answers", "'chosen' and 'rejected' are the same text once rendered; remove the row"
                )
            messages = None if isinstance(placed.example.prompt, str) else placed.example.prompt
            rows.append(TextRow(placed.place, prompt, answers, messages))
        except BadRowError as bad:
            report.drop(placed.place, bad)
    return rows


def drop_too_long(
    rows: Sequence[TextRow], lengths: Sequence[Lengths], limits: Limits, report: RowReport
) -> list[TextRow]:
    """The rows within the limits.

    Raises:
        P3OError: at the first that is not, if bad rows stop the run.
    """
    kept = []
    for row, length in zip(rows, lengths, strict=True):
        problem = _too_long(length, limits, row.prompt)
        if problem is None:
            kept.append(row)
        else:
            report.drop(row.place, BadRowError("too long", problem))
    return kept


def _too_long(length: Lengths, limits: Limits, prompt: str) -> str | None:
    if limits.prompt is not None and length.prompt > limits.prompt:
        return f"the prompt has {length.prompt} tokens, more than data.max_prompt_tokens {limits.prompt}; shorten or remove it"
    longest = max(length.answers, default=0)
    if limits.completion is not None and longest > limits.completion:
        return (
            f"an answer has {longest} tokens (end of sequence included), more than data.max_completion_tokens "
            f"{limits.completion}; shorten it or remove the row"
        )
    if limits.context is None:
        return None
    if length.answers and length.prompt + longest > limits.context:
        return (
            f"a row of {length.prompt} + {longest} tokens exceeds the model's limit of {limits.context}; shorten "
            f"it or remove it ({prompt[:60]!r})"
        )
    if not length.answers and length.prompt + limits.room > limits.context:
        return (
            f"a prompt of {length.prompt} tokens and rl.training.max_new_tokens {limits.room} exceed the model's "
            f"limit of {limits.context}; shorten the prompt or lower max_new_tokens ({prompt[:60]!r})"
        )
    return None
