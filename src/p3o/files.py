"""Reading and writing files so that a failure is one clear line and never leaves a half-written file as if it were whole.

Every function here turns an operating system's refusal into a ``P3OError`` that names the path, the reason in plain words
and what to do about it.
"""

import errno
import json
import math
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from p3o.errors import P3OError

_PLAIN_WORDS = {
    errno.ENOSPC: "the disk is full; free some space or choose a folder on another disk",
    errno.EDQUOT: "your disk quota is used up; free some space or choose a folder on another disk",
    errno.EFBIG: "the file would be larger than this system allows; raise the limit (ulimit -f) or choose another disk",
    errno.EACCES: "permission denied; change the permissions or choose another place",
    errno.EPERM: "not permitted; change the permissions or choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EISDIR: "it is a folder; name a file",
    errno.ENOTDIR: "a part of the path is a file, not a folder; correct the path",
    errno.ENOENT: "no such file or folder; check the path",
    errno.EEXIST: "it already exists; choose another name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
}
# Libraries written in Rust (safetensors, tokenizers) report the system's error number only in their message.
_RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)")

_NO_UTF8 = "backslashreplace"
"""Half of a surrogate pair (a server's reply may hold one) has no UTF-8: it becomes \\udXXX, which JSON reads as it was."""


@contextmanager
def plain_os_errors(path: Path, action: str) -> Iterator[None]:
    """Within this block, a system error becomes ``P3OError("PATH: cannot be ACTION: reason; what to do")``.

    Args:
        path: what the block reads or writes, as the user named it.
        action: a past participle: "read", "written".
    """
    try:
        yield
    except P3OError:
        raise
    except Exception as error:
        reason = plain_reason(error) or (error.strerror if isinstance(error, OSError) else None)
        if reason is None:
            raise
        raise P3OError(f"{path}: cannot be {action}: {reason}") from error


def plain_reason(error: Exception) -> str | None:
    """Why the system refused and what to do about it; None if the error is not one of those a user can mend."""
    if isinstance(error, OSError):
        return _PLAIN_WORDS.get(error.errno or 0)
    match = _RUST_OS_ERROR.search(str(error))
    return _PLAIN_WORDS.get(int(match.group(1))) if match else None


@contextmanager
def open_for_reading(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes.

    Raises:
        P3OError: if it is missing, a folder or unreadable.
    """
    if not path_is_possible(path):
        raise P3OError(f"{str(path)!r}: not a valid path; it contains characters that no file name can have")
    with plain_os_errors(path, "read"), path.open("rb") as file:
        yield file


def path_is_possible(path: Path) -> bool:
    """Whether the system could take this as a path at all: no null byte, nothing that cannot be encoded."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def make_folder(path: Path) -> None:
    """Create a folder with its parents; nothing happens if it is there.

    Raises:
        P3OError: if the system refuses.
    """
    with plain_os_errors(path, "created"):
        path.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing happens if it is not there.

    Raises:
        P3OError: if the system refuses.
    """
    with plain_os_errors(path, "removed"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file or nothing: under a temporary name beside it, then renamed over it.

    Raises:
        P3OError: if the system refuses; a file that stood there before is then untouched.
    """
    temporary = _temporary_sibling(path)
    try:
        with plain_os_errors(path, "written"):
            with temporary.open("w", encoding="utf-8", errors=_NO_UTF8, newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):  # gone after a success; after a failure the first error is the one to show
            temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all.

    Raises:
        P3OError: if the system refuses, or a number is NaN or infinite.
    """
    write_text(path, _dumps(path, value, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON Lines, whole or not at all.

    Raises:
        P3OError: if the system refuses, or a number is NaN or infinite.
    """
    write_text(path, "".join(_dumps(path, row) + "\n" for row in rows))


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row as one line of JSON. Floats keep every digit (their ``repr``).

    Raises:
        P3OError: if the system refuses (the file then ends with its last whole line), or a number is NaN or infinite.
    """
    line = (_dumps(path, row) + "\n").encode(errors=_NO_UTF8)
    with plain_os_errors(path, "written"), path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            while line:  # an unbuffered write may take only a part of it, on a disk that is filling up
                line = line[file.write(line) :]
        except OSError:
            with suppress(OSError):  # the first error is the one to show
                file.truncate(end)
            raise


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file that this package wrote.

    Raises:
        P3OError: if the file cannot be read, or a line is not a whole JSON object.
    """
    rows = []
    with open_for_reading(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise P3OError(f"{path}:{number}: not a complete JSON object; remove the line") from error
            if not isinstance(row, dict):
                raise P3OError(f"{path}:{number}: not a JSON object; remove the line")
            rows.append(row)
    return rows


def drop_torn_line(path: Path) -> int:
    """Cut off a last line that has no end: a process was killed while it wrote it. Returns how many bytes went.

    Raises:
        P3OError: if the system refuses.
    """
    with plain_os_errors(path, "written"):
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
    return len(content) - whole


def _dumps(path: Path, value: Any, indent: int | None = None) -> str:
    for name, number in _numbers(value, ""):
        if not math.isfinite(number):
            raise P3OError(
                f"{path.name}: '{name}' is {number}; nothing was written. Training has probably diverged: lower "
                f"the learning rate or check the rewards"
            )
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Every float inside a JSON value, with the dotted name of its place."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{name}[{index}]")


@contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path`` to fill: renamed to ``path`` if the block succeeds, removed if it fails.

    Args:
        path: the folder to appear, whole.
        replace: whether a folder of that name may be replaced; it is removed only after the new one is complete.

    Raises:
        P3OError: if the system refuses, or ``path`` exists and ``replace`` is False.
    """
    if path.exists() and not replace:
        raise P3OError(f"{path}: already exists; choose another name or remove it")
    temporary, previous = _temporary_sibling(path), _temporary_sibling(path, "old")
    try:
        with plain_os_errors(path, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(temporary)  # of a killed process that had our number, as in a container each one may
            temporary.mkdir()
            yield temporary
            # A folder cannot be renamed over a full one, so the old one steps aside first.
            if path.exists():
                path.rename(previous)
            temporary.rename(path)
    except BaseException:
        if previous.exists() and not path.exists():
            previous.rename(path)
        raise
    finally:
        for leftover in (temporary, previous):
            shutil.rmtree(leftover, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Put right what the writes of a killed process left in a folder and below.

    A folder that had stepped aside for one that never came is put back; what was unfinished is removed. Only for a folder in
    which nobody else writes.

    Raises:
        P3OError: if the system refuses.
    """
    for leftover in sorted(folder.rglob(".*")):
        match = re.fullmatch(r"\.(.+)\.\d+\.(tmp|old)", leftover.name)
        if match is not None:
            target = leftover.with_name(match[1])
            with plain_os_errors(leftover, "removed"):
                if match[2] == "old" and not target.exists():
                    leftover.rename(target)
                else:
                    remove(leftover)


def _temporary_sibling(path: Path, ending: str = "tmp") -> Path:
    """A hidden name in the same folder (so that a rename is atomic), of this thread alone."""
    return path.with_name(f".{path.name}.{threading.get_native_id()}.{ending}")
