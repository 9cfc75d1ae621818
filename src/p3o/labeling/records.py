"""The labels that hold, read back from the store."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast

from sqlmodel import col, func, select

from p3o.labeling.instructions import Instructions, all_instructions, in_force
from p3o.labeling.statistics import Label
from p3o.labeling.store import Store, read_settings
from p3o.labeling.tables import Annotator, Assignment, Event, Item, Role

IMPORTED = "import "
"""How the keys of imported labels begin; those of forms are hexadecimal."""


@dataclass(frozen=True)
class Record:
    """A label that holds, with its item and who gave it.

    Attributes:
        instructions: SHA-256 of what the page told annotators at that time; None if nothing, or for labels that did not
            come from the page.
    """

    item: Item
    annotator: Annotator
    event: Event
    instructions: str | None = None

    @property
    def label(self) -> Label:
        """What the statistics ask about it."""
        return Label(
            item=self.event.item_id,
            annotator=self.annotator.name,
            role="imported" if self.event.key.startswith(IMPORTED) else cast(Role, self.annotator.role),
            choice=self.event.choice or "",
            swapped=self.event.swapped,
            gold=self.item.gold,
            seconds=self.event.seconds,
            at=self.event.at,
        )

    def row(self) -> dict[str, Any]:
        """The label as a row to export: a preference if one response was preferred, else the two responses as they stand."""
        item, event = self.item, self.event
        answer: dict[str, Any]
        if event.choice in ("a", "b"):
            sides = ("a", "b") if event.choice == "a" else ("b", "a")
            answer = {
                "chosen": getattr(item, f"response_{sides[0]}"),
                "rejected": getattr(item, f"response_{sides[1]}"),
            }
            policies = {
                f"policy_{name}": getattr(item, f"policy_{side}") for name, side in zip(answer, sides, strict=True)
            }
        else:
            answer = {"response_a": item.response_a, "response_b": item.response_b, "label": event.choice}
            policies = {"policy_a": item.policy_a, "policy_b": item.policy_b}
        return {
            "prompt": item.prompt,
            **answer,
            "annotator": self.annotator.name,
            "time": event.at.isoformat(),
            "strength": event.strength,
            "preference": event.preference,
            "comment": event.comment,
            "seconds": event.seconds,
            "shown_first": "b" if event.swapped else "a",
            "id": item.key,
            "chosen_side": event.choice if event.choice in ("a", "b") else None,
            "instructions": self.instructions,
            **policies,
        }


def holding_records(store: Store) -> list[Record]:
    """Every label that has not been undone, oldest first."""
    query = (
        select(Item, Annotator, Event)
        .where(Assignment.label_id == Event.id, Assignment.item_id == Item.id)
        .where(Assignment.annotator_id == Annotator.id)
        .order_by(col(Event.id))
    )
    with store.database.reading() as session:
        versions = all_instructions(session)
        records = [Record(item, annotator, event) for item, annotator, event in session.exec(query)]
    return [replace(record, instructions=_told(versions, record)) for record in records] if versions else records


def _told(versions: Sequence[Instructions], record: Record) -> str | None:
    if record.label.role != "annotator":
        return None
    version = in_force(versions, record.event.id or 0)
    return None if version is None else version.sha256


def settled(store: Store, keys: Set[str]) -> int:
    """How many of these pairs are to get no more labels: they have as many as are wanted, skips not counted; or somebody has
    skipped them, and of the annotators who are let in nobody is left who has not answered."""
    with store.database.reading() as session:
        overlap = read_settings(session).overlap
        done = set(session.exec(select(Item.key).where(Item.labels >= overlap)))
        people = select(Annotator.id).where(Annotator.role == "annotator", col(Annotator.active).is_(True))
        everybody = set(session.exec(people))
        answers = select(Item.key, Assignment.annotator_id, Event.choice).where(
            Item.labels < overlap, Assignment.item_id == Item.id, Assignment.label_id == Event.id
        )
        seen: dict[str, set[int | None]] = {}
        skipped: set[str] = set()
        for key, annotator, choice in session.exec(answers):
            seen.setdefault(key, set()).add(annotator)
            if choice == "skip":
                skipped.add(key)
    done |= {key for key in skipped if everybody <= seen[key]}
    return len(done & keys)


@dataclass(frozen=True)
class Status:
    """How far a store is.

    Attributes:
        items: pairs, gold ones not counted.
        finished: of them, those with k labels.
        gold: pairs that test annotators.
        undone: labels that were taken back.
    """

    items: int
    finished: int
    gold: int
    undone: int
    labels: Sequence[Label]
    annotators: Sequence[Annotator]
    read_at: datetime

    @property
    def by_people(self) -> list[Label]:
        """The labels of people who used the page."""
        return [label for label in self.labels if label.role == "annotator"]


def status_of(store: Store, now: datetime) -> Status:
    """Read how far a store is."""
    overlap = store.settings().overlap
    labels = [record.label for record in holding_records(store)]
    with store.database.reading() as session:
        ordinary = col(Item.gold).is_(None)

        def count(*conditions: Any) -> int:
            return int(session.exec(select(func.count(col(Item.id))).where(*conditions)).one())

        return Status(
            items=count(ordinary),
            finished=count(ordinary, Item.labels >= overlap),
            gold=count(~ordinary),
            undone=int(session.exec(select(func.count(col(Event.undoes)))).one()),
            labels=labels,
            annotators=store.annotators(),
            read_at=now,
        )
