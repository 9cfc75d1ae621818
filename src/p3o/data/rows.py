"""What may be wrong with a row of data, what is done about it, and how it is counted.

A bad row stops the run or is dropped, as ``data.bad_rows`` says. A dropped row is counted by its reason in a ``RowReport`` and
the first of them are kept with their place, so that nothing disappears without a word.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from p3o.errors import P3OError
from p3o.files import write_json

Policy = Literal["stop", "skip"]
"""What a bad row does: end the run with an error that names it, or be dropped and counted."""

SHOWN = 20
"""So many dropped rows are kept with their place and problem; the others are counted only."""


class BadRowError(Exception):
    """A row that cannot be used.

    Attributes:
        reason: a short name to count by, the same for all rows of that kind.
        problem: what is wrong with this row and what to do about it.
    """

    def __init__(self, reason: str, problem: str) -> None:
        super().__init__(problem)
        self.reason, self.problem = reason, problem


class OtherTaskError(BadRowError):
    """A sound row that belongs to another task than the adapter's: left out and counted under either policy."""


@dataclass(frozen=True)
class RawRow:
    """A row as its source holds it.

    Attributes:
        place: "file:line", or "source:row N" where there are no lines.
        columns: by name; or what is wrong, if the source could not even be parsed there.
    """

    place: str
    columns: Mapping[str, Any] | BadRowError


@dataclass
class RowReport:
    """What became of the rows of one source.

    Attributes:
        source: as the configuration names it.
        kind: prompts, demonstrations or preferences.
        policy: what a bad row does.
        read: rows found.
        dropped: how many were dropped, by reason.
        first: the first of them, each "place: problem".
    """

    source: str
    kind: str
    policy: Policy = "stop"
    shown: int = SHOWN
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    @property
    def kept(self) -> int:
        """Rows that are used."""
        return self.read - self.dropped.total()

    def drop(self, place: str, bad: BadRowError) -> None:
        """Count a row as dropped.

        Raises:
            P3OError: in place of that, if bad rows stop the run.
        """
        told = f"{place}: {bad.problem}"
        if self.policy == "stop" and not isinstance(bad, OtherTaskError):
            raise P3OError(told) from bad
        self.dropped[bad.reason] += 1
        if len(self.first) < self.shown:
            self.first.append(told)

    def refuse_if_empty(self) -> None:
        """Nothing happens if a row is left.

        Raises:
            P3OError: if none is, with the reasons and the first dropped row.
        """
        if self.kept == 0:
            if self.read == 0:
                raise P3OError(f"{self.source}: has no rows")
            first = f"; the first one: {self.first[0]}" if self.first else ""
            raise P3OError(f"{self.source}: all {self.read} rows were dropped ({self.reasons()}){first}")

    def reasons(self) -> str:
        """The counts by reason, the most frequent first: "3 too long, 1 empty"."""
        return ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())

    def summary(self) -> str:
        """One line for the terminal."""
        line = f"{self.kind}: {self.kept} of {self.read} rows of {self.source}"
        return f"{line}; dropped {self.reasons()}" if self.dropped else line

    def record(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "source": self.source,
            "kind": self.kind,
            "bad_rows": self.policy,
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(self.dropped.most_common()),
            "first_dropped": list(self.first),
        }


def write_row_reports(path: Path, reports: Iterable[RowReport]) -> None:
    """Write the reports as one JSON file, whole or not at all; those of other sources that stand there already stay.

    Raises:
        P3OError: if the system refuses.
    """
    records = [report.record() for report in reports]
    if not records:
        return
    told = {(record["source"], record["kind"]) for record in records}
    before = json.loads(path.read_bytes()) if path.exists() else []
    write_json(path, [record for record in before if (record["source"], record["kind"]) not in told] + records)
