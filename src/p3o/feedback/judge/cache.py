"""Answers that were paid for, in one SQLite file: each is on the disk before the next step is taken.

The key is the judge's model, the prompt with the unordered pair of responses (hashed), which of the two was shown first, and
everything else that shapes an answer (template, temperature, …). Comparing B with A therefore finds the answers to A with B.
The file holds what judges wrote, but neither prompts nor responses nor keys. It also counts the tokens of every answer that was
ever kept, so that a limit of cost holds for all runs and processes that share it.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType

from p3o.errors import P3OError
from p3o.feedback.judge.verdicts import Answer, Choice
from p3o.files import make_folder

ANSWERS_FILE = "judge_answers.sqlite"
"""Of a run: who labels by a judge, who learns from one and who judges a run share it, and with it the limit of cost."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    model TEXT NOT NULL, pair TEXT NOT NULL, shown_first INTEGER NOT NULL, parameters TEXT NOT NULL,
    choice TEXT CHECK (choice IN ('first', 'second')), text TEXT NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, served_by TEXT NOT NULL, lean REAL,
    PRIMARY KEY (model, pair, shown_first, parameters)
) WITHOUT ROWID
"""
_COUNTED = """
CREATE TABLE counted (
    model TEXT PRIMARY KEY, input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Key:
    """Where an answer is kept. ``shown_first`` is 0 if the smaller of the two responses, as text, was shown first."""

    model: str
    pair: str
    shown_first: int
    parameters: str


def key_of(model: str, prompt: str, first: str, second: str, parameters: str) -> Key:
    """The key of a question."""
    smaller, larger = sorted((first, second))
    pair = hashlib.sha256(json.dumps([prompt, smaller, larger]).encode()).hexdigest()
    return Key(model, pair, int(first != smaller), parameters)


class AnswerCache:
    """The file; as a context manager it closes it.

    Args:
        path: created with its folder if needed; ":memory:" keeps nothing.

    Raises:
        P3OError: if it cannot be opened or is no such file.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self._lock = path, Lock()
        if path is not None:
            make_folder(path.parent)
        with _told(self.path):
            self._database = sqlite3.connect(
                path or ":memory:", isolation_level=None, timeout=30.0, check_same_thread=False
            )
            # An answer survives the kill of this process and of the machine; readers do not wait for writers.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute(_SCHEMA)
            if all(name != "lean" for _, name, *_ in self._database.execute("PRAGMA table_info(answers)")):
                self._database.execute("ALTER TABLE answers ADD COLUMN lean REAL")  # a file of an earlier version
        self._begin_counting()

    def __enter__(self) -> "AnswerCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def find(self, keys: Iterable[Key]) -> dict[Key, Answer]:
        """Those of the answers that are there."""
        query = (
            "SELECT choice, text, input_tokens, output_tokens, served_by, lean FROM answers "
            "WHERE model = ? AND pair = ? AND shown_first = ? AND parameters = ?"
        )
        found: dict[Key, Answer] = {}
        with _told(self.path):
            for key in keys:
                row = self._database.execute(query, (key.model, key.pair, key.shown_first, key.parameters)).fetchone()
                if row is not None:
                    choice: Choice | None = row[0]
                    found[key] = Answer(choice, row[1], "", row[2], row[3], row[4], row[5])
        return found

    def keep(self, key: Key, answer: Answer) -> None:
        """Put an answer on the disk, in the place of an earlier one. A failed question has none to keep.

        Raises:
            P3OError: if the system refuses.
        """
        if answer.error:
            return
        row = (key.model, key.pair, key.shown_first, key.parameters, answer.choice, answer.text)
        rest = (answer.input_tokens, answer.output_tokens, answer.served_by, answer.lean)
        count = (
            "INSERT INTO counted VALUES (?, ?, ?) ON CONFLICT (model) DO UPDATE SET "
            "input_tokens = input_tokens + excluded.input_tokens, output_tokens = output_tokens + excluded.output_tokens"
        )
        with self._writing():
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row + rest)
            self._database.execute(count, (key.model, answer.input_tokens, answer.output_tokens))

    def tokens(self, model: str) -> tuple[int, int]:
        """Tokens that this model has read and written for all answers ever kept here, those that were replaced included."""
        with _told(self.path):
            row = self._database.execute(
                "SELECT input_tokens, output_tokens FROM counted WHERE model = ?", (model,)
            ).fetchone()
        return (0, 0) if row is None else (row[0], row[1])

    def _begin_counting(self) -> None:
        """The table of counts; in a file of an earlier version it begins with what the answers there say."""
        with self._writing():
            known = self._database.execute("SELECT 1 FROM sqlite_master WHERE name = 'counted'").fetchone()
            if known is None:
                self._database.execute(_COUNTED)
                self._database.execute(
                    "INSERT INTO counted SELECT model, sum(input_tokens), sum(output_tokens) FROM answers GROUP BY model"
                )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What is done inside is done whole or not at all, and nobody else writes in between: no thread, no process."""
        with _told(self.path), self._lock, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            yield


@contextmanager
def _told(path: Path | None) -> Iterator[None]:
    """Within this block an error of SQLite becomes one line that names the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise P3OError(
            f"{path}: the file of saved answers cannot be used: {error}; move it away, or fix the folder"
        ) from error
