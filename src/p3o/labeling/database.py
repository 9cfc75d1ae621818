"""The database under a store: SQLite by default, PostgreSQL by URL, with the same promise.

A transaction that writes is alone: on SQLite by ``BEGIN IMMEDIATE``, on PostgreSQL by an advisory lock that is held until its
end. What it reads is then what holds, and no pair is handed out twice. A commit is on the disk when it returns: SQLite runs
with ``synchronous=FULL`` (in WAL mode anything less may lose the last commits in a power cut), PostgreSQL does so by default.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, NoSuchModuleError
from sqlmodel import Session

from p3o.errors import P3OError
from p3o.files import path_is_possible

_BUSY_SECONDS = 30
_ADVISORY_LOCK = 0x50334F  # "P3O"


class DatabaseUnavailableError(P3OError):
    """The database cannot answer now, for a reason outside of p3o: nothing was saved, and asking again may help."""


class Database:
    """Connections to one store.

    Args:
        url: of the database; ``sqlite_url`` makes one of a path.

    Raises:
        P3OError: if the URL cannot be read or its driver is missing.
    """

    def __init__(self, url: URL | str) -> None:
        try:
            self.url = make_url(url)
        except ArgumentError as error:
            raise P3OError("--database-url: not a URL; write postgresql://user@host/database") from error
        if self.url.drivername in ("postgresql", "postgres"):
            self.url = self.url.set(drivername="postgresql+psycopg")
        # SQLite lets writers wait by polling, which may pass one over for long: those of this process queue up here first.
        self._one_writer = threading.Lock() if self._is_sqlite else nullcontext()
        self.place = self.url.database if self._is_sqlite else without_password(self.url)
        try:
            self.engine = self._engine()
        except ModuleNotFoundError as error:
            raise P3OError(
                f"{self.place}: needs the package {error.name!r}; run: pip install 'p3o[postgresql]'"
            ) from error
        except NoSuchModuleError as error:
            raise P3OError(
                f"{self.place}: this kind of database is not supported; use --store FILE or postgresql://user@host/database"
            ) from error

    @property
    def _is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def _engine(self) -> Engine:
        if not self._is_sqlite:
            return create_engine(self.url, pool_size=10, max_overflow=30, pool_pre_ping=True)
        engine = create_engine(self.url, pool_size=10, max_overflow=30, connect_args={"timeout": _BUSY_SECONDS})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that only reads, from one state of the store."""
        with self._plain_errors(), Session(self.engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that writes alone: committed at the end of the block, or undone if the block raises."""
        with (
            self._plain_errors(),
            self._one_writer,
            self.engine.connect().execution_options(p3o_writes=True) as connection,
            Session(connection, expire_on_commit=False) as session,
        ):
            if not self._is_sqlite:
                session.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            yield session
            session.commit()

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """What the database refuses for reasons that a user can mend, in a line."""
        try:
            yield
        except DBAPIError as error:
            reason = str(error.orig).strip().splitlines()[0]
            if isinstance(error.orig, sqlite3.DatabaseError) and not isinstance(error.orig, sqlite3.IntegrityError):
                raise DatabaseUnavailableError(
                    f"{self.place}: {reason}; choose another --store or free the disk"
                ) from error
            if error.connection_invalidated or (isinstance(error, DatabaseError) and "connection" in reason):
                raise DatabaseUnavailableError(
                    f"{self.place}: {reason}; check that the server is running and the URL is correct"
                ) from error
            raise
        except UnicodeDecodeError as error:  # from sqlite3, for what is no text in its file or in its own complaint
            raise DatabaseUnavailableError(
                f"{self.place}: the file is damaged; restore a copy, or choose another --store"
            ) from error

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def without_password(url: URL | str) -> str:
    """A database URL as it may be shown.

    Raises:
        sqlalchemy.exc.ArgumentError: if it is none.
    """
    return make_url(url).difference_update_query(["password", "sslpassword"]).render_as_string(hide_password=True)


def sqlite_url(path: Path) -> URL:
    """The URL of a store in a file.

    Raises:
        P3OError: if the path is none, or its folder does not exist.
    """
    if not path_is_possible(path):
        raise P3OError(f"{str(path)!r}: not a valid path; it contains characters that no file name can have")
    if not path.parent.is_dir():
        raise P3OError(f"{path.parent}: no such folder; create it first or choose another --store")
    return URL.create("sqlite", database=str(path))


def _prepare_sqlite(connection: Any, record: Any) -> None:  # noqa: ARG001
    # None: Python's module must not begin transactions of its own, later than we say and not IMMEDIATE.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={_BUSY_SECONDS * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("p3o_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
