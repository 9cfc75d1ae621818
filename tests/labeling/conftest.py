"""A store to test with: SQLite always, PostgreSQL too if P3O_TEST_POSTGRESQL names a server that databases may be made on."""

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url
from starlette.testclient import TestClient

from p3o.labeling.app import make_app
from p3o.labeling.assignment import next_work
from p3o.labeling.pairs import Pair, key_of
from p3o.labeling.security import RateLimit
from p3o.labeling.store import Store

Enter = Callable[..., TestClient]

POSTGRESQL = os.environ.get("P3O_TEST_POSTGRESQL")


@pytest.fixture(params=["sqlite", "postgresql"] if POSTGRESQL else ["sqlite"])
def place(request: pytest.FixtureRequest) -> Iterator[Path | URL]:
    """Where a store can be: a file that is not there yet, or an empty database."""
    if request.param == "sqlite":
        # In memory if that can be: waiting for a disk is most of the time of these tests, and proves nothing here.
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            yield Path(folder) / "labels.db"
        return
    server = make_url(POSTGRESQL or "").set(drivername="postgresql+psycopg")
    name = f"p3o_test_{secrets.token_hex(6)}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield server.set(database=name)
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture
def store(place: Path | URL) -> Iterator[Store]:
    """An empty store."""
    store = Store.open(place)
    yield store
    store.close()


def pairs(count: int, *, gold: int = 0) -> list[Pair]:
    """Distinct pairs; the last ``gold`` of them are gold, and their response a is the better one."""
    found = []
    for i in range(count):
        prompt, a, b = f"prompt {i}", f"good answer {i}", f"bad answer {i}"
        known = "a" if i >= count - gold else None
        found.append(Pair(key_of(prompt, a, b), prompt, a, b, "policy-one", "policy-two", known))
    return found


@pytest.fixture
def annotator(store: Store) -> Callable[[str], int]:
    """Registers an annotator; returns the id."""

    def register(name: str) -> int:
        found = store.authenticate(store.add_annotator(name))
        assert found is not None
        assert found.id is not None
        return found.id

    return register


def unlimited() -> RateLimit:
    return RateLimit(per_second=1e6, burst=10**6)


@pytest.fixture
def enter(store: Store) -> Iterator[Enter]:
    """A browser, logged in as a new annotator of this name; with no name, not logged in."""
    clients: list[TestClient] = []
    app = make_app(store, requests=unlimited())

    def open_client(name: str | None = None, role: Any = "annotator") -> TestClient:
        client = TestClient(app, raise_server_exceptions=True)
        clients.append(client)
        if name is not None:
            assert client.get(f"/enter/{store.add_annotator(name, role)}").status_code == 200
        return client

    yield open_client
    for client in clients:
        client.close()


def assigned(store: Store, who: int) -> int:
    """The id of the assignment that this annotator is to answer."""
    work = next_work(store, who)
    assert work.assignment is not None
    assert work.assignment.id is not None
    return work.assignment.id
