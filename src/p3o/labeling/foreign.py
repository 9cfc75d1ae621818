"""Labels from the exports of Argilla and Label Studio.

Argilla 2 (``dataset.records.to_json``): a list of records with "fields" and "responses", the latter a list of {"value",
"user_id"} for each question. A value is the label of a label question, or the list of {"value", "rank"} of a ranking question.

Label Studio ("JSON" export): a list of tasks with "data" and "annotations", each with a "result" list. A result of type
"pairwise" has {"selected": "left"} (or "right") as its value, one of type "choices" {"choices": ["…"]}.

Neither says which of its fields are the two responses, nor what its labels mean. ``Naming`` does, and guesses what it can.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from p3o.errors import P3OError, first_line, shorten
from p3o.labeling.answers import Answer
from p3o.labeling.exchange import Incoming, parse_own, parse_time, read_rows, unnamed_pair
from p3o.labeling.tables import Choice

Format = Literal["p3o", "argilla", "label-studio"]

_PROMPTS = ("prompt", "instruction", "question", "input", "context", "query")
_MEANINGS: Mapping[str, Choice] = {
    **dict.fromkeys(("a", "1", "first", "left", "response_a", "response-a", "response_1", "response1"), "a"),
    **dict.fromkeys(("b", "2", "second", "right", "response_b", "response-b", "response_2", "response2"), "b"),
    **dict.fromkeys(("tie", "equal", "same", "both good", "neither"), "tie"),
    **dict.fromkeys(("bad", "both bad", "both_bad"), "bad"),
}


@dataclass(frozen=True)
class Naming:
    """What the fields and labels of an export are called; what is None is guessed.

    Attributes:
        prompt, response_a, response_b: names of fields.
        question: whose answers are the labels.
        meanings: what labels mean, beside those that are plain ("left", "tie", a response field's own name…).
    """

    prompt: str | None = None
    response_a: str | None = None
    response_b: str | None = None
    question: str | None = None
    meanings: Mapping[str, Choice] = field(default_factory=dict)

    def texts(self, values: Mapping[str, Any], place: str) -> tuple[str, str, str]:
        """The names of the prompt and the two responses among these fields.

        Raises:
            P3OError: if a name is not there, or cannot be guessed.
        """
        names = [name for name, value in values.items() if isinstance(value, str | list)]
        prompt = self.prompt or next((name for name in _PROMPTS if name in names), None)
        rest = [name for name in names if name != prompt]
        known = [name for name in rest if _MEANINGS.get(name.lower()) in ("a", "b")]
        rest = known if len(known) == 2 else rest
        guessed = rest if len(rest) == 2 else [None, None]
        a, b = self.response_a or guessed[0], self.response_b or guessed[1]
        if prompt is None or a is None or b is None:
            raise P3OError(
                f"{place}: which of {', '.join(map(repr, values))} are the prompt and the two responses? "
                "Give --prompt-field, --response-a-field and --response-b-field"
            )
        for name in (prompt, a, b):
            if name not in values:
                raise P3OError(f"{place}: no field {name!r}, only {', '.join(map(repr, values))}; correct its option")
        return prompt, a, b

    def meaning(self, label: Any, a: str, b: str, place: str) -> Choice:
        """What a label says; the name of a response's field stands for that response.

        Raises:
            P3OError: if that is not known.
        """
        fields: dict[str, Choice] = {a.lower(): "a", b.lower(): "b"}
        told = {name.lower(): choice for name, choice in self.meanings.items()}
        choice = {**_MEANINGS, **fields, **told}.get(str(label).strip().lower())
        if choice is None:
            raise P3OError(
                f"{place}: what does the label {shorten(label)} mean? Give --meaning {str(label)!r}=a (or b, tie, bad, skip)"
            )
        return choice


def read_labels(path: Path, format: Format | None = None, naming: Naming | None = None) -> tuple[list[Incoming], int]:
    """The labels of a file and how many of its answers hold none (drafts, cancelled and empty ones).

    Args:
        format: whose file it is; found out by itself if None.

    Raises:
        P3OError: if the file cannot be read or understood, with the row.
    """
    rows = read_rows(path)
    if not rows:
        raise P3OError(f"{path}: has no rows; there is nothing to import")
    naming = naming or Naming()
    format = format or _format_of(rows[0][1])
    if format == "p3o":
        return parse_own(rows), 0
    parse = cast(
        "Callable[[Any, Naming], Iterator[Incoming | None]]",
        {"argilla": _argilla, "label-studio": _label_studio}[format],
    )
    try:
        answers = list(parse(rows, naming))
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise P3OError(
            f"{path}: not a valid export of {format} ({type(error).__name__}: {first_line(error)}); check --format"
        ) from error
    found = [answer for answer in answers if answer is not None]
    return found, len(answers) - len(found)


def _format_of(row: Mapping[str, Any]) -> Format:
    if "annotations" in row and "data" in row:
        return "label-studio"
    return "argilla" if "fields" in row and "responses" in row else "p3o"


def _argilla(rows: Iterable[tuple[str, Mapping[str, Any]]], naming: Naming) -> Iterator[Incoming | None]:
    for place, row in rows:
        fields, answers = _object(row, "fields", place), _object(row, "responses", place)
        if not answers:
            continue
        prompt, a, b = naming.texts(fields, place)
        question = naming.question or (next(iter(answers)) if len(answers) == 1 else None)
        if question is None:
            raise P3OError(
                f"{place}: has answers to {', '.join(map(repr, answers))}; name the question whose answers are "
                f"the labels with --question"
            )
        pair = unnamed_pair(fields[prompt], fields[a], fields[b], place)
        for response in answers.get(question, []):
            value = response["value"]
            if value is None:
                yield None
                continue
            choice = (
                _ranking(value, a, b, naming, place) if isinstance(value, list) else naming.meaning(value, a, b, place)
            )
            yield Incoming(pair, f"argilla {response.get('user_id')}", Answer(choice), None, place)


def _ranking(value: list[Mapping[str, Any]], a: str, b: str, naming: Naming, place: str) -> Choice:
    """The preference that a ranking of the two responses tells; rank 1 is the best."""
    ranks = {naming.meaning(entry["value"], a, b, place): entry["rank"] for entry in value}
    if set(ranks) != {"a", "b"}:
        raise P3OError(
            f"{place}: the ranking {shorten(value)} does not rank the two responses; choose another "
            f"question with --question"
        )
    return "tie" if ranks["a"] == ranks["b"] else "a" if ranks["a"] < ranks["b"] else "b"


def _label_studio(rows: Iterable[tuple[str, Mapping[str, Any]]], naming: Naming) -> Iterator[Incoming | None]:
    for place, row in rows:
        data = _object(row, "data", place)
        for annotation in row["annotations"]:
            results = [
                result
                for result in annotation.get("result", [])
                if result.get("type") in ("pairwise", "choices") and naming.question in (None, result.get("from_name"))
            ]
            if annotation.get("was_cancelled") or not results:
                yield None
                continue
            if len(results) > 1:
                names = ", ".join(repr(result.get("from_name")) for result in results)
                raise P3OError(
                    f"{place}: has answers to {names}; name the question whose answers are the labels with --question"
                )
            prompt, a, b = naming.texts(data, place)
            value = results[0]["value"]
            label = value["selected"] if "selected" in value else value["choices"][0]
            who = annotation.get("completed_by")
            name = who.get("email") or who.get("id") if isinstance(who, dict) else who
            yield Incoming(
                unnamed_pair(data[prompt], data[a], data[b], place),
                f"label-studio {name}",
                Answer(naming.meaning(label, a, b, place)),
                parse_time(place, annotation.get("created_at")),
                place,
            )


def _object(row: Mapping[str, Any], name: str, place: str) -> dict[str, Any]:
    value = row.get(name)
    if not isinstance(value, dict):
        raise P3OError(f"{place}: no '{name}' object; check that --format names the right export format")
    return value
