"""JSONL files of a run's folder that a training appends to: cut back to whole lines, and to where a checkpoint was written."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from p3o.errors import P3OError
from p3o.files import drop_torn_line, plain_os_errors, read_jsonl, write_jsonl


def drop_torn_lines(folder: Path, files: Sequence[str]) -> list[str]:
    """Cut off the last line of each of these files where it has no end: a process was killed while it wrote it.

    Only for files that this package appends to: a file of the user's may well end without a line feed. Returns what was
    done, a line for each file that was cut.
    """
    told = []
    for name in files:
        path = folder / name
        if path.exists() and (cut := drop_torn_line(path)):
            told.append(
                f"{path}: its last line was incomplete, because a process was killed while writing it; removed {cut} bytes"
            )
    return told


def drop_rows(path: Path, owned: Callable[[Mapping[str, Any]], bool]) -> None:
    """Remove these rows from a file, if it is there."""
    if path.exists():
        rows = read_jsonl(path)
        kept = [row for row in rows if not owned(row)]
        if len(kept) < len(rows):
            write_jsonl(path, kept)


def lengths_of(folder: Path, files: Sequence[str]) -> dict[str, int]:
    """How many bytes these files have, seen on the disk: what ``rewind`` goes back to."""
    found = {}
    for name in files:
        path = folder / name
        if path.exists():
            with plain_os_errors(path, "written"), path.open("rb+") as file:
                os.fsync(file.fileno())
            found[name] = path.stat().st_size
        else:
            found[name] = 0
    return found


def rewind(folder: Path, lengths: Mapping[str, int]) -> None:
    """Cut these files to the lengths that they had at a checkpoint: what came after it is done again.

    Raises:
        P3OError: if a file is shorter than it was.
    """
    for name, length in lengths.items():
        path = folder / name
        size = path.stat().st_size if path.exists() else 0
        if size < length:
            raise P3OError(
                f"{path}: has {size} bytes, but had {length} when the checkpoint was written; it was changed "
                "since, so the run cannot be resumed: restore the file or start again with --overwrite"
            )
        if size > length:
            with plain_os_errors(path, "written"):
                os.truncate(path, length)
