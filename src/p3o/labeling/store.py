"""The store: every label one committed transaction, sent twice or not; nothing is ever changed or deleted.

store = Store.open(Path("labels.db"))
store.add_items(read_pairs(Path("pairs.jsonl")))
token = store.add_annotator("ada")
"""

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import func, update
from sqlalchemy.engine import URL
from sqlmodel import Session, col, select

from p3o.errors import P3OError, shorten
from p3o.labeling.annotators import add_annotator, hash_of, named, new_token
from p3o.labeling.answers import Answer, NotYoursError, Settings
from p3o.labeling.database import Database, sqlite_url
from p3o.labeling.migrations import migrate
from p3o.labeling.pairs import Pair
from p3o.labeling.tables import LOG_IN, Annotator, Assignment, Event, Item, Role, Setting


class Store:
    """A labelling store. Safe to use from several threads and processes at once."""

    def __init__(self, database: Database) -> None:
        """Opens the store, creates its tables if the database is empty, and migrates an older one."""
        self.database = database
        with database.writing() as session:
            migrate(session.connection(), str(database.place))
            if session.get(Setting, "store_id") is None:
                session.add(Setting(name="store_id", value=secrets.token_hex(4)))
                _write_settings(session, Settings())
        with database.reading() as session:
            self.id = session.get_one(Setting, "store_id").value

    @classmethod
    def open(cls, place: Path | URL | str, *, create: bool = True) -> "Store":
        """The store in a file (a ``Path``) or behind a database URL.

        Raises:
            P3OError: if it cannot be opened, is no store, or ``create`` is False and the file does not exist.
        """
        if isinstance(place, Path):
            if not create and not place.exists():
                raise P3OError(f"{place}: no such store; check --store, or create one with p3o label --pairs FILE")
            place = sqlite_url(place)
        database = Database(place)
        try:
            return cls(database)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Close the store's connections."""
        self.database.close()

    def settings(self) -> Settings:
        """How pairs are handed out."""
        with self.database.reading() as session:
            return read_settings(session)

    def change_settings(self, **changes: int) -> Settings:
        """Change some settings; returns all of them."""
        with self.database.writing() as session:
            settings = replace(read_settings(session), **changes)
            _write_settings(session, settings)
        return settings

    def add_items(self, pairs: Iterable[Pair]) -> int:
        """Add pairs that are not there yet, in their order; returns how many were new.

        Raises:
            P3OError: if a key is there already with other texts.
        """
        added = 0
        with self.database.writing() as session:
            known = {item.key: item for item in session.exec(select(Item))}
            for pair in pairs:
                if pair.key not in known:
                    known[pair.key] = item = Item(**pair.columns())
                    session.add(item)
                    added += 1
                elif not pair.same_texts(
                    known[pair.key].prompt, known[pair.key].response_a, known[pair.key].response_b
                ):
                    raise P3OError(
                        f"pair {shorten(pair.key)}: the store already has a pair with this id and different "
                        f"texts; give the pair a new 'id', "
                        "or use another --store"
                    )
        return added

    def add_annotator(self, name: str, role: Role = "annotator") -> str:
        """Register someone; returns the token that logs them in, which is kept nowhere.

        Raises:
            P3OError: if the name is empty, too long or taken.
        """
        return self.add_annotators({name: role})[name]

    def add_annotators(self, roles: Mapping[str, Role]) -> dict[str, str]:
        """Register several, all or none; returns their tokens by name.

        Raises:
            P3OError: if a name is empty, too long or taken.
        """
        tokens = {name: new_token() for name in roles}
        with self.database.writing() as session:
            for name, role in roles.items():
                add_annotator(session, name, role, token_hash=hash_of(tokens[name]))
        return tokens

    def renew_token(self, name: str) -> str:
        """A new token for someone who is registered; the old one and its sessions end.

        Raises:
            P3OError: if there is no annotator with this name who can log in.
        """
        token = new_token()
        with self.database.writing() as session:
            annotator = named(session, name)
            if annotator.role not in LOG_IN:
                raise P3OError(f"annotator {shorten(annotator.name)}: nobody logs in with this name ({annotator.role})")
            annotator.token_hash, annotator.active = hash_of(token), True
            session.add(annotator)
        return token

    def deactivate(self, name: str) -> None:
        """Let someone in no more. Their labels stay."""
        with self.database.writing() as session:
            annotator = named(session, name)
            annotator.active = False
            session.add(annotator)

    def annotators(self) -> list[Annotator]:
        """Everyone, in the order in which they were added."""
        with self.database.reading() as session:
            return list(session.exec(select(Annotator).order_by(col(Annotator.id))))

    def authenticate(self, token: str) -> Annotator | None:
        """Who this token belongs to; None for nobody, or for one who cannot log in, or not any more."""
        with self.database.reading() as session:
            found = session.exec(select(Annotator).where(Annotator.token_hash == hash_of(token))).first()
        return found if found is not None and found.active and found.role in LOG_IN else None

    def is_swapped(self, annotator: int, assignment: int) -> bool:
        """Whether response b stands first on this annotator's page.

        Raises:
            NotYoursError: if the assignment is not this annotator's.
        """
        with self.database.reading() as session:
            return _own_assignment(session, annotator, assignment).swapped

    def label(
        self,
        annotator: int,
        assignment: int,
        key: str,
        answer: Answer,
        *,
        then: Callable[[Session, int], object] | None = None,
    ) -> Event:
        """Record an answer; when this returns, it is on the disk.

        The same key again returns the event that is there already and changes nothing, whatever the answer says: a form that
        was sent twice is one label. The first answer of an assignment holds until it is undone.

        Args:
            then: what else belongs to the same transaction, such as ``assignment.assign``; given the session and the annotator.

        Raises:
            NotYoursError: if the assignment is not this annotator's.
        """
        with self.database.writing() as session:
            if (done := _event_of_key(session, annotator, key)) is not None:
                return done
            held = _own_assignment(session, annotator, assignment)
            if held.label_id is not None:
                return session.get_one(Event, held.label_id)
            event = record_label(session, held, key, answer)
            if then is not None:
                then(session, annotator)
            return event

    def undo(self, annotator: int, event: int, key: str) -> bool:
        """Take back the annotator's newest label that holds, if it is ``event``; the pair is theirs again.

        Returns whether the label is taken back now; False if a newer one is there. The same call again returns True.

        Raises:
            NotYoursError: if the event is no label of this annotator's.
        """
        now = datetime.now(UTC)
        with self.database.writing() as session:
            label = session.get(Event, event)
            if label is None or label.annotator_id != annotator or label.choice is None:
                raise NotYoursError("this label is not yours; go back to the start")
            if session.exec(select(Event).where(Event.undoes == event)).first() is not None:
                return True
            newest = latest_label(session, annotator)
            if newest is None or newest.id != event:
                return False
            held = session.exec(select(Assignment).where(Assignment.label_id == event)).one()
            lease = timedelta(seconds=read_settings(session).lease_seconds)
            held.label_id, held.shown_at, held.expires_at = None, now, now + lease
            session.add(held)
            session.add(
                Event(
                    key=key, annotator_id=annotator, item_id=label.item_id, undoes=event, swapped=held.swapped, at=now
                )
            )
            if label.choice != "skip":
                _count(session, label.item_id, -1)
        return True

    def verify(self) -> dict[str, int]:
        """Compare what is derived with the history; returns how many items, labels and undos there are.

        Raises:
            P3OError: at the first contradiction.
        """
        with self.database.reading() as session:
            events = list(session.exec(select(Event).order_by(col(Event.id))))
            undone = {event.undoes for event in events if event.undoes is not None}
            holding: dict[tuple[int, int], int] = {}
            answered: dict[int, int] = {}
            for event in events:
                if event.choice is None or event.id in undone:
                    continue
                if (event.item_id, event.annotator_id) in holding:
                    raise P3OError(f"{self.database.place}: event {event.id} is a second label of its pair")
                holding[event.item_id, event.annotator_id] = event.id or 0
                answered[event.item_id] = answered.get(event.item_id, 0) + (event.choice != "skip")
            held = {
                (row.item_id, row.annotator_id): row.label_id
                for row in session.exec(select(Assignment).where(col(Assignment.label_id).is_not(None)))
            }
            if held != holding:
                raise P3OError(f"{self.database.place}: assignments and history disagree about the labels")
            items = list(session.exec(select(Item)))
            for item in items:
                if item.labels != answered.get(item.id or 0, 0):
                    raise P3OError(f"{self.database.place}: the count of item {item.id} disagrees with its history")
        return {"items": len(items), "labels": len(holding), "undone": len(undone)}


def read_settings(session: Session) -> Settings:
    """The settings, inside a transaction."""
    names = list(vars(Settings()))
    rows = session.exec(select(Setting).where(col(Setting.name).in_(names)))  # not instructions, which are long
    values: Mapping[str, str] = {row.name: row.value for row in rows}
    return Settings(**{name: int(values[name]) for name in names})


def _write_settings(session: Session, settings: Settings) -> None:
    for name, value in vars(settings).items():
        session.merge(Setting(name=name, value=str(value)))


def record_label(
    session: Session, held: Assignment, key: str, answer: Answer, *, at: datetime | None = None, timed: bool = True
) -> Event:
    """Append a label to the history and to what is derived from it, inside a transaction.

    ``timed``: whether the time since the pair was shown means anything.
    """
    now = datetime.now(UTC)
    label = Event(
        key=key,
        annotator_id=held.annotator_id,
        item_id=held.item_id,
        choice=answer.choice,
        strength=answer.strength,
        preference=answer.preference,
        comment=answer.comment,
        swapped=held.swapped,
        seconds=(now - held.shown_at).total_seconds() if timed else None,
        at=at or now,
    )
    session.add(label)
    session.flush()
    held.label_id = label.id
    session.add(held)
    if answer.choice != "skip":
        _count(session, held.item_id, +1)
    return label


def latest_label(session: Session, annotator: int) -> Event | None:
    """The annotator's newest label that has not been undone."""
    newest = select(func.max(Assignment.label_id)).where(Assignment.annotator_id == annotator)
    event = session.exec(newest).one()
    return None if event is None else session.get(Event, event)


def _own_assignment(session: Session, annotator: int, assignment: int) -> Assignment:
    held = session.get(Assignment, assignment)
    if held is None or held.annotator_id != annotator:
        raise NotYoursError("this pair is not assigned to you; go back to the start")
    return held


def _event_of_key(session: Session, annotator: int, key: str) -> Event | None:
    return session.exec(select(Event).where(Event.annotator_id == annotator, Event.key == key)).first()


def _count(session: Session, item: int, change: int) -> None:
    session.execute(update(Item).where(col(Item.id) == item).values(labels=Item.labels + change))
