"""Who sees which pair: overlap k, leases that expire, gold pairs between the others, sides drawn once and kept.

In order: the pair that the annotator has open already (so that a login resumes where the last one ended); a gold pair when one
is due; else the pair that wants an answer and has most of its k, so that pairs are finished and not only begun.
"""

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, func
from sqlmodel import Session, col, select

from p3o.labeling.answers import Settings
from p3o.labeling.store import Store, latest_label, read_settings
from p3o.labeling.tables import Assignment, Event, Item


@dataclass(frozen=True)
class Work:
    """What an annotator has before them.

    Attributes:
        item, assignment: the pair to answer now; None if nothing is left for this annotator at present.
        latest: their newest label that holds, which an undo would take back.
        done: pairs that they have answered or skipped.
        left: pairs that they can still be given, the present one included.
    """

    item: Item | None
    assignment: Assignment | None
    latest: Event | None
    done: int
    left: int


_FRESH = 0.9
"""A lease with this share of its time left is not renewed: looking at a page again then writes nothing."""


def next_work(store: Store, annotator: int, *, now: datetime | None = None, rng: random.Random | None = None) -> Work:
    """The pair that an annotator is to answer, leased to them from now on.

    Args:
        now: the present moment, for tests.
        rng: draws the sides; the system's own randomness if None.
    """
    now = now or datetime.now(UTC)
    with store.database.reading() as session:
        held = _open_assignment(session, annotator, read_settings(session), now)
        if held is not None and held.expires_at - now > _FRESH * _lease(session):
            return _work(session, annotator, held)
    with store.database.writing() as session:
        held = assign(session, annotator, now=now, rng=rng)
        return _work(session, annotator, held)


def assign(
    session: Session, annotator: int, *, now: datetime | None = None, rng: random.Random | None = None
) -> Assignment | None:
    """Put a pair into an annotator's hands, inside a transaction that writes; None if there is none for them."""
    now = now or datetime.now(UTC)
    settings = read_settings(session)
    held = _open_assignment(session, annotator, settings, now)
    if held is None:
        item = _choose(session, annotator, settings, now)
        if item is None:
            return None
        assert item.id is not None
        swapped = (rng or random.SystemRandom()).random() < 0.5
        held = Assignment(item_id=item.id, annotator_id=annotator, swapped=swapped, shown_at=now, expires_at=now)
    if held.expires_at < now:  # away for long: the clock of this answer starts anew
        held.shown_at = now
    held.expires_at = now + _lease(session)
    session.add(held)
    session.flush()
    return held


def _lease(session: Session) -> timedelta:
    return timedelta(seconds=read_settings(session).lease_seconds)


def _work(session: Session, annotator: int, held: Assignment | None) -> Work:
    item = None if held is None else session.get_one(Item, held.item_id)
    done, left = _progress(session, annotator, read_settings(session))
    return Work(item, held, latest_label(session, annotator), done, left)


def _open_assignment(session: Session, annotator: int, settings: Settings, now: datetime) -> Assignment | None:
    """The oldest pair in the annotator's hands without an answer, unless others have filled it since the lease ended."""
    mine = select(Assignment, Item).where(
        Assignment.annotator_id == annotator, col(Assignment.label_id).is_(None), Assignment.item_id == Item.id
    )
    for held, item in session.exec(mine.order_by(col(Assignment.id))):
        taken = item.labels + session.exec(_leases(now, besides=annotator).where(Assignment.item_id == item.id)).one()
        if item.gold is not None or held.expires_at >= now or taken < settings.overlap:
            return held
    return None


def _choose(session: Session, annotator: int, settings: Settings, now: datetime) -> Item | None:
    unseen = ~(
        select(Assignment.id).where(Assignment.item_id == Item.id, Assignment.annotator_id == annotator).exists()
    )
    gold = select(Item).where(col(Item.gold).is_not(None), unseen)
    leased = _leases(now, besides=annotator).where(Assignment.item_id == Item.id).correlate(Item).scalar_subquery()
    # One query for each number of answers: each walks an index to its first hit, where one that sorts would ask about all.
    ordinary = [
        select(Item).where(Item.labels == labels, col(Item.gold).is_(None), unseen, labels + leased < settings.overlap)
        for labels in reversed(range(settings.overlap))
    ]
    seen = session.exec(select(func.count()).where(Assignment.annotator_id == annotator)).one()
    gold_is_due = (seen + 1) % settings.gold_every == 0
    for query in [gold, *ordinary] if gold_is_due else [*ordinary, gold]:
        if (item := session.exec(query.order_by(col(Item.id)).limit(1)).first()) is not None:
            return item
    return None


def _leases(now: datetime, *, besides: int):  # type: ignore[no-untyped-def]  # SQLModel's select has no nameable type
    """How many other annotators have a pair open; to be narrowed to an item."""
    return select(func.count()).where(
        Assignment.annotator_id != besides, col(Assignment.label_id).is_(None), Assignment.expires_at >= now
    )


def _wants_labels(settings: Settings) -> ColumnElement[bool]:
    return (col(Item.labels) < settings.overlap) & col(Item.gold).is_(None)


def _progress(session: Session, annotator: int, settings: Settings) -> tuple[int, int]:
    """How many pairs this annotator has done, and how many are left for them, gold ones among both: a total that stays
    as it is when a gold pair comes up does not give it away."""
    answered = col(Assignment.label_id).is_not(None)
    mine = Assignment.annotator_id == annotator
    done = session.exec(select(func.count()).where(mine, answered)).one()
    wanted = _wants_labels(settings) | col(Item.gold).is_not(None)
    all_wanted = session.exec(select(func.count(col(Item.id))).where(wanted)).one()
    done_of_them = session.exec(
        select(func.count()).select_from(Assignment).join(Item).where(mine, answered, wanted)
    ).one()
    return done, all_wanted - done_of_them
