"""Labels out of a store and into one, as files.

Out: preferences as prompt/chosen/rejected; in files beside it what prefers neither response, and what annotators were told;
skips and gold pairs are counted.
In: the same files, and the exports of Argilla and Label Studio (``foreign``).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlmodel import select

from p3o.errors import P3OError, first_line, shorten
from p3o.files import open_for_reading, plain_os_errors, write_jsonl
from p3o.labeling.annotators import add_annotator
from p3o.labeling.answers import Answer
from p3o.labeling.instructions import all_instructions
from p3o.labeling.pairs import Messages, Pair, key_of, parse_pair
from p3o.labeling.records import IMPORTED, holding_records
from p3o.labeling.store import Store, record_label
from p3o.labeling.tables import LOG_IN, Annotator, Assignment, Event, Item


@dataclass(frozen=True)
class Exported:
    """What an export holds and what it leaves out.

    Attributes:
        preferences: rows of prompt/chosen/rejected.
        ties: rows of the other file: ties, pairs with two bad responses included.
        skipped, gold: labels that are in neither file.
        instructions: rows of SHA-256 and text of what annotators were told, oldest first, each text once.
    """

    preferences: list[dict[str, Any]]
    ties: list[dict[str, Any]]
    skipped: int
    gold: int
    instructions: list[dict[str, Any]]


_LARGEST_PREFERENCE = 1e6
"""Preferences lie in [-1, 1]; log-odds may be larger, but not without end."""


def export_labels(store: Store) -> Exported:
    """The labels that hold, one row each, oldest first."""
    preferences: list[dict[str, Any]] = []
    ties: list[dict[str, Any]] = []
    skipped = gold = 0
    for record in holding_records(store):
        if record.event.choice == "skip":
            skipped += 1
        elif record.item.gold is not None:
            gold += 1
        else:
            (preferences if record.event.choice in ("a", "b") else ties).append(record.row())
    with store.database.reading() as session:
        texts = {version.sha256: version.text for version in all_instructions(session)}
    told = [{"instructions": digest, "text": text} for digest, text in texts.items()]
    return Exported(preferences, ties, skipped, gold, told)


def ties_path(path: Path) -> Path:
    """Where the ties of an export go: ``labels.jsonl`` has them in ``labels.ties.jsonl``."""
    return path.with_suffix(f".ties{path.suffix}")


def instructions_path(path: Path) -> Path:
    """Where the instructions of an export go: those of ``labels.jsonl`` into ``labels.instructions.jsonl``."""
    return path.with_suffix(f".instructions{path.suffix}")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON Lines or, if the name ends so, parquet; whole or not at all.

    Raises:
        P3OError: if the ending is another one, or the system refuses.
    """
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        temporary = path.with_name(f".{path.name}.tmp")
        with plain_os_errors(path, "written"):
            try:
                parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), temporary)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    else:
        raise P3OError(f"{path}: must end in .jsonl or .parquet; rename the file")


@dataclass(frozen=True)
class Incoming:
    """A label from elsewhere.

    Attributes:
        time: when it was given; None if the file does not tell.
        place: where it stands in its file, for errors.
    """

    pair: Pair
    annotator: str
    answer: Answer
    time: datetime | None
    place: str


@dataclass(frozen=True)
class Imported:
    """What became of an import.

    Attributes:
        labels: how many were added.
        known: how many were there already, from an earlier import of the same labels.
        items: how many pairs were new.
    """

    labels: int
    known: int
    items: int


def import_labels(store: Store, incoming: Iterable[Incoming]) -> Imported:
    """Add labels from elsewhere, all or none. The same labels again add nothing.

    Raises:
        P3OError: if an annotator has answered a pair otherwise already, or is one who logs in to this store: what they say
            here, they say themselves.
    """
    added = known = new_items = 0
    with store.database.writing() as session:
        items = {item.key: item for item in session.exec(select(Item))}
        people = {annotator.name: annotator for annotator in session.exec(select(Annotator))}
        held = {(row.item_id, row.annotator_id): row for row in session.exec(select(Assignment))}
        for one in incoming:
            name = one.annotator.strip()
            person = people.get(name)
            if person is None:
                try:
                    person = people[name] = add_annotator(session, name, "imported", token_hash=None)
                except P3OError as error:
                    raise P3OError(f"{one.place}: {error}; nothing was imported") from error
            item = items.get(one.pair.key)
            if item is None:
                item = items[one.pair.key] = Item(**one.pair.columns())
                session.add(item)
                session.flush()
                new_items += 1
            elif not one.pair.same_texts(item.prompt, item.response_a, item.response_b):
                raise P3OError(
                    f"{one.place}: the store already has a pair with the id {shorten(item.key)} and different texts; "
                    f"nothing was imported"
                )
            assert item.id is not None
            assert person.id is not None
            before = held.get((item.id, person.id))
            if before is not None and before.label_id is not None:
                there = session.get_one(Event, before.label_id)
                if there.choice != one.answer.choice:
                    raise P3OError(
                        f"{one.place}: {person.name} has answered this pair with '{there.choice}' already, "
                        f"now '{one.answer.choice}'; nothing was imported"
                    )
                known += 1
                continue
            if person.role in LOG_IN:
                raise P3OError(
                    f"{one.place}: {person.name} labels in this store, so their new labels cannot be imported "
                    f"from a file; change the annotator in the file, or import it into a new store; nothing was imported"
                )
            if before is None:
                moment = one.time or datetime.now(UTC)
                before = Assignment(
                    item_id=item.id, annotator_id=person.id, swapped=False, shown_at=moment, expires_at=moment
                )
                held[item.id, person.id] = before
            record_label(session, before, _import_key(one), one.answer, at=one.time, timed=False)
            added += 1
    return Imported(added, known, new_items)


def _import_key(one: Incoming) -> str:
    told = [one.pair.key, one.annotator, one.answer.choice, None if one.time is None else one.time.isoformat()]
    return IMPORTED + hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


def read_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a .jsonl, .json (one list) or .parquet file, each with its place.

    Raises:
        P3OError: if it cannot be read, or a row is no object.
    """
    values: list[tuple[int, Any]]
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            with open_for_reading(path) as file:
                values = list(enumerate(parquet.read_table(file).to_pylist(), start=1))
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise P3OError(f"{path}: not a readable parquet file; {first_line(error)}") from error
    else:
        with open_for_reading(path) as file:
            values = _parse_json(path, file.read())
    for number, value in values:
        if not isinstance(value, dict):
            raise P3OError(f"{path}:{number}: not a JSON object; remove it")
    return [(f"{path}:{number}", value) for number, value in values]


def _parse_json(path: Path, content: bytes) -> list[tuple[int, Any]]:
    """Each value with its line, or of a list with its place."""
    try:
        if content.lstrip().startswith(b"["):
            return list(enumerate(json.loads(content), start=1))
    except (ValueError, RecursionError) as error:
        raise P3OError(f"{path}: not a JSON list; {first_line(error)}") from error
    values = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            try:
                values.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise P3OError(f"{path}:{number}: not a complete JSON object; write one per line") from error
    return values


def parse_own(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Incoming]:
    """Labels as ``export_labels`` writes them, or any rows of prompt/chosen/rejected.

    Raises:
        P3OError: at the first bad row.
    """
    return [_own(place, row) for place, row in rows]


def _own(place: str, row: Mapping[str, Any]) -> Incoming:
    if "chosen" in row or "rejected" in row:
        chosen, rejected = (_as_text(row.get(name)) for name in ("chosen", "rejected"))
        if absent := [name for name in ("chosen", "rejected") if row.get(name) is None]:
            raise P3OError(f"{place}: no column '{absent[0]}'; every row needs both 'chosen' and 'rejected'")
        side = row.get("chosen_side")
        if side not in ("a", "b"):
            # The order must not tell the answer: it follows from the texts alone.
            side = "a" if str(chosen) < str(rejected) else "b"
        a, b = (chosen, rejected) if side == "a" else (rejected, chosen)
        choice = str(side)
        policies = [row.get("policy_chosen"), row.get("policy_rejected")]
        policy_a, policy_b = policies if side == "a" else policies[::-1]
    else:
        a, b, policy_a, policy_b = (row.get(name) for name in ("response_a", "response_b", "policy_a", "policy_b"))
        choice = str(row.get("label"))
    told = {"prompt": row.get("prompt"), "response_a": a, "response_b": b, "policy_a": policy_a, "policy_b": policy_b}
    pair = parse_pair({**told, "id": row.get("id")}, place)
    return Incoming(pair, _name(place, row), _answer(place, row, choice), parse_time(place, row.get("time")), place)


def _as_text(value: Any) -> Any:
    """A response that is one message, as its text."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        return value[0].get("content")
    return value


def _name(place: str, row: Mapping[str, Any]) -> str:
    name = row.get("annotator", "imported")
    if not isinstance(name, str):
        raise P3OError(f"{place}: 'annotator': {shorten(name)} is not a text; write a name")
    return name


def _answer(place: str, row: Mapping[str, Any], choice: str) -> Answer:
    strength, comment, preference = row.get("strength"), row.get("comment") or "", row.get("preference")
    if strength is not None and type(strength) is not int:
        raise P3OError(f"{place}: 'strength': {shorten(strength)} is not 1, 2 or 3")
    if not isinstance(comment, str):
        raise P3OError(f"{place}: 'comment': {shorten(comment)} is not a text")
    if preference is not None and not (type(preference) in (int, float) and abs(preference) <= _LARGEST_PREFERENCE):
        raise P3OError(
            f"{place}: 'preference': {shorten(preference)} is not a valid preference of a judge; it must be a number"
        )
    try:
        return Answer(choice, strength, comment, None if preference is None else float(preference))
    except P3OError as error:
        raise P3OError(f"{place}: {error}") from error


def parse_time(place: str, value: Any) -> datetime | None:
    """A moment as ISO 8601 writes it, in UTC if it names no zone; None stays None.

    Raises:
        P3OError: if it is no moment.
    """
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        moment.astimezone(UTC)  # the year 1 or 9999 may have no such moment
    except (TypeError, ValueError, OverflowError) as error:
        raise P3OError(
            f"{place}: 'time': {shorten(value)} is not a valid time; write for example 2026-01-31T12:00:00+00:00"
        ) from error
    return moment


def unnamed_pair(prompt: str | Messages, first: str, second: str, place: str) -> Pair:
    """A pair from elsewhere, named by its texts."""
    return parse_pair(
        {"prompt": prompt, "response_a": first, "response_b": second, "id": key_of(prompt, first, second)}, place
    )
