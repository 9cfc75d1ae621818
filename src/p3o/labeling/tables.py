"""The tables of a labelling store.

``event`` is the truth: a row is appended for every label and every undo, and a trigger refuses to change or delete one.
``assignment.label_id`` and ``item.labels`` only repeat what the events say, so that a page is one indexed query;
``Store.verify`` compares them with the events.
"""

from datetime import UTC, datetime
from typing import Any, Literal, get_args

from sqlalchemy import JSON, Connection, DateTime, Index, UniqueConstraint, event
from sqlalchemy.orm import registry
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

Choice = Literal["a", "b", "tie", "bad", "skip"]
"""What was answered about a pair, whatever sides it was shown on. ``bad``: both are bad; ``skip``: no answer."""

CHOICES: tuple[str, ...] = get_args(Choice)

Role = Literal["annotator", "admin", "judge", "imported"]
LOG_IN: tuple[Role, ...] = ("annotator", "admin")
"""Those who can log in. A judge is a program; of who is imported only labels are known."""

ADMIN = "admin"
"""The name of whoever runs the page; nobody else can have it."""


class Moment(TypeDecorator[datetime]):
    """A moment in UTC. SQLite keeps no time zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        """To the database, in UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        """From the database, in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(SQLModel, registry=registry()):
    """Base of our tables: a registry of their own, so that nobody else's SQLModel tables end up in the store."""


class Setting(Table, table=True):
    """A named text: ``overlap``, ``lease_seconds``, ``gold_every``, ``store_id``, ``schema_version``, ``instructions N``."""

    name: str = Field(primary_key=True)
    value: str


class Item(Table, table=True):
    """A prompt with the two responses to compare.

    Attributes:
        key: the row's id in its file, or a hash of its texts.
        prompt: a text, or a list of {"role", "content"} messages.
        gold: the known answer, of an item that tests annotators; None for all others.
        labels: how many people, imports and judges have answered it, skips not counted.
    """

    id: int | None = Field(default=None, primary_key=True)
    key: str = Field(unique=True)
    prompt: Any = Field(sa_type=JSON)
    response_a: str
    response_b: str
    policy_a: str | None = None
    policy_b: str | None = None
    gold: str | None = None
    labels: int = Field(default=0, index=True)


class Annotator(Table, table=True):
    """Someone, or something, that labels.

    Attributes:
        token_hash: SHA-256 of the token that logs in; the token itself is shown once and kept nowhere.
    """

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    role: str
    token_hash: str | None = Field(default=None, unique=True)
    active: bool = True
    created_at: datetime = Field(sa_type=Moment)


class Assignment(Table, table=True):
    """An item in someone's hands.

    Attributes:
        swapped: whether response b stands first on this annotator's page.
        shown_at: when it was last put before the annotator anew.
        expires_at: until when nobody else is given the item in this place.
        label_id: the label event that holds, None while there is none or after an undo.
    """

    __table_args__ = (
        UniqueConstraint("item_id", "annotator_id"),
        Index("assignment_of_annotator", "annotator_id", "label_id"),
    )

    id: int | None = Field(default=None, primary_key=True)
    item_id: int = Field(foreign_key="item.id")
    annotator_id: int = Field(foreign_key="annotator.id")
    swapped: bool
    shown_at: datetime = Field(sa_type=Moment)
    expires_at: datetime = Field(sa_type=Moment)
    label_id: int | None = Field(default=None, foreign_key="event.id")


class Event(Table, table=True):
    """Something that an annotator did: a label, or the undoing of one.

    Attributes:
        key: of the form that was sent; the same form sent again is the same event.
        choice: the answer, None for an undo.
        undoes: the label event that is taken back, None for a label.
        strength: 1 slightly, 2 clearly, 3 much better; None if not told.
        preference: a judge's own number in [−1, 1], positive for response a.
        swapped: on which sides the answer was given.
        seconds: from the showing of the pair to the answer.
    """

    __table_args__ = (UniqueConstraint("annotator_id", "key"),)

    id: int | None = Field(default=None, primary_key=True)
    key: str
    annotator_id: int = Field(foreign_key="annotator.id")
    item_id: int = Field(foreign_key="item.id", index=True)
    choice: str | None = None
    undoes: int | None = Field(default=None, foreign_key="event.id", unique=True)
    strength: int | None = None
    preference: float | None = None
    comment: str = ""
    swapped: bool = False
    seconds: float | None = None
    at: datetime = Field(sa_type=Moment, index=True)


_REFUSE = "the history is append-only"
_TRIGGERS = {
    "sqlite": [
        f"CREATE TRIGGER event_refuses_{action} BEFORE {action} ON event BEGIN SELECT RAISE(ABORT, '{_REFUSE}'); END"
        for action in ("UPDATE", "DELETE")
    ],
    "postgresql": [
        "CREATE FUNCTION event_is_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_REFUSE}'; END $$",
        "CREATE TRIGGER event_refuses_change BEFORE UPDATE OR DELETE ON event "
        "FOR EACH ROW EXECUTE FUNCTION event_is_append_only()",
    ],
}


@event.listens_for(Table.metadata, "after_create")
def _add_triggers(target: Any, connection: Connection, **_: Any) -> None:  # noqa: ARG001
    for statement in _TRIGGERS.get(connection.dialect.name, []):
        connection.exec_driver_sql(statement)
