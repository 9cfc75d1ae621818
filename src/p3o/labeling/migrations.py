"""Schema versions of a store, and the way from each to the next.

A store says in its settings which version it is. Opening an older one takes all missing steps in one transaction: it ends up
at the newest version or stays as it was. Version 0 is an empty database.

A step that is released is never changed: when the tables get a second version, the first step's tables are frozen beside it
as they were, and the second step alters them.
"""

from collections.abc import Callable

from sqlalchemy import Connection, inspect, text

from p3o.errors import P3OError
from p3o.labeling.tables import Table

Step = Callable[[Connection], None]


def _first_tables(connection: Connection) -> None:
    Table.metadata.create_all(connection)


STEPS: tuple[Step, ...] = (_first_tables,)
"""``STEPS[v]`` brings a store from version v to version v + 1."""


def schema_version(connection: Connection) -> int:
    """The version that a database says it has; 0 if it has no settings table."""
    if not inspect(connection).has_table("setting"):
        return 0
    value = connection.execute(text("SELECT value FROM setting WHERE name = 'schema_version'")).scalar()
    return int(value or 0)


def migrate(connection: Connection, place: str, steps: tuple[Step, ...] = STEPS) -> int:
    """Bring a database to the newest version inside the connection's transaction; returns the version it had.

    Raises:
        P3OError: if the store is newer than this version of p3o, or the database holds tables that are not a store's.
    """
    version = schema_version(connection)
    if version > len(steps):
        raise P3OError(
            f"{place}: was written by a newer version of p3o (schema {version}; this version knows {len(steps)}); update p3o, "
            "or choose another --store"
        )
    if version == 0 and (foreign := inspect(connection).get_table_names()):
        raise P3OError(
            f"{place}: is a database, but not a labelling store (table '{foreign[0]}'); choose another --store"
        )
    for step in steps[version:]:
        step(connection)
    if version < len(steps):
        connection.execute(text("DELETE FROM setting WHERE name = 'schema_version'"))
        connection.execute(
            text("INSERT INTO setting (name, value) VALUES ('schema_version', :version)"), {"version": str(len(steps))}
        )
    return version
