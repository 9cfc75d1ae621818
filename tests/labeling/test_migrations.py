"""A store of an older version becomes one of the newest, whole or not at all."""

from pathlib import Path

import pytest
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from tests.labeling.conftest import pairs

from p3o.errors import P3OError
from p3o.labeling import migrations
from p3o.labeling.migrations import STEPS, migrate, schema_version
from p3o.labeling.store import Store


def add_column(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE item ADD COLUMN source TEXT"))


def add_index(connection: Connection) -> None:
    connection.execute(text("CREATE INDEX item_source ON item (source)"))


def fail(connection: Connection) -> None:
    connection.execute(text("SELECT nothing FROM nowhere"))


def columns(store: Store) -> list[str]:
    return [column["name"] for column in inspect(store.database.engine).get_columns("item")]


def version(store: Store) -> int:
    with store.database.reading() as session:
        return schema_version(session.connection())


def test_a_new_store_has_the_newest_version(store: Store) -> None:
    assert version(store) == len(STEPS)


def test_an_older_store_takes_the_missing_steps_and_keeps_its_rows(store: Store) -> None:
    store.add_items(pairs(2))
    with store.database.writing() as session:
        assert migrate(session.connection(), "here", (*STEPS, add_column, add_index)) == len(STEPS)
    assert version(store) == len(STEPS) + 2
    assert "source" in columns(store)
    with store.database.reading() as session:
        assert session.execute(text("SELECT count(*) FROM item WHERE source IS NULL")).scalar() == 2


def test_a_step_that_fails_leaves_the_old_version_whole(store: Store) -> None:
    with pytest.raises((OperationalError, ProgrammingError, P3OError)), store.database.writing() as session:
        migrate(session.connection(), "here", (*STEPS, add_column, fail))
    assert version(store) == len(STEPS)
    assert "source" not in columns(store)


def test_a_newer_store_is_refused(place: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.database.writing() as session:
        migrate(session.connection(), "here", (*STEPS, add_column))
    monkeypatch.setattr(migrations, "STEPS", STEPS)
    with pytest.raises(
        P3OError, match=r"was written by a newer version of p3o \(schema 2; this version knows 1\); update p3o"
    ):
        Store.open(place)
