"""What annotators are told before they compare, and which labels were given under it.

Every version stays in the store, as a setting that is named after the newest event of the moment at which it came: it holds for
all later events, whatever the clocks of the hosts say. So any label leads to the text that its annotator could read.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sqlmodel import Session, col, func, select

from p3o.errors import P3OError
from p3o.files import open_for_reading
from p3o.labeling.store import Store
from p3o.labeling.tables import Event, Setting

LONGEST = 64 * 1024
"""Bytes of a file of instructions; it goes out with every pair."""

_NAME = "instructions "
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Instructions:
    """One version.

    Attributes:
        text: the file's, to the byte.
        since: the newest event when it came; it holds for those after it. 0 if there was none.
    """

    text: str
    since: int

    @cached_property
    def sha256(self) -> str:
        """As ``sha256sum`` tells it of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def shown(self) -> str:
        """The text for the page, which escapes it and keeps its lines."""
        return _visible(self.text)


def read_instructions(path: Path) -> str:
    """The text of a file of instructions, unchanged.

    Raises:
        P3OError: if it cannot be read, is longer than ``LONGEST``, is no UTF-8 text, or is empty.
    """
    with open_for_reading(path) as file:
        raw = file.read(LONGEST + 1)
    if len(raw) > LONGEST:
        raise P3OError(f"{path}: longer than {LONGEST // 1024} KiB; shorten it")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise P3OError(f"{path}:{line}: not UTF-8; save the instructions as plain text in UTF-8") from error
    if "\0" in text:
        raise P3OError(f"{path}: holds a null character; save the instructions as plain text in UTF-8")
    if not _visible(text):
        raise P3OError(f"{path}: is empty; write the instructions into it, or leave out --instructions")
    return text


def change_instructions(store: Store, text: str) -> bool:
    """From now on this is what annotators are told; returns False if it was so already."""
    with store.database.writing() as session:
        newest = _newest(session)
        if newest is not None and newest.text == text:
            return False
        since = session.exec(select(func.max(Event.id))).one() or 0
        # A version that came after the same event gives way: no label was given under it.
        session.merge(Setting(name=f"{_NAME}{since:012d}", value=text))
    return True


def newest_instructions(store: Store) -> Instructions | None:
    """What annotators are told now; None if nothing."""
    with store.database.reading() as session:
        return _newest(session)


def all_instructions(session: Session) -> list[Instructions]:
    """Every version, oldest first, inside a transaction."""
    rows = select(Setting).where(col(Setting.name).startswith(_NAME)).order_by(col(Setting.name))
    return [_version(row) for row in session.exec(rows)]


def in_force(versions: Sequence[Instructions], event: int) -> Instructions | None:
    """The version under which an event came; None if it is older than the first.

    Args:
        versions: all of them, oldest first.
    """
    return next((version for version in reversed(versions) if version.since < event), None)


def _newest(session: Session) -> Instructions | None:
    rows = select(Setting).where(col(Setting.name).startswith(_NAME)).order_by(col(Setting.name).desc())
    row = session.exec(rows.limit(1)).first()
    return None if row is None else _version(row)


def _version(row: Setting) -> Instructions:
    return Instructions(row.value, int(row.name.removeprefix(_NAME)))


def _visible(text: str) -> str:
    return text.removeprefix(_BYTE_ORDER_MARK).strip()
