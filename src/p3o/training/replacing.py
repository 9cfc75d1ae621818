"""How a run takes the place of an earlier one (`--overwrite`): nothing of the old one goes before the new one can start.

The folder itself is never renamed: it may be a link or a mount, or lie on a file system that renames no folders. The new
files are written into it, under a hidden name that appears when they are whole; then the old content is removed, and the new
files step into its place. Whatever ends the process before that name appears, a full disk say, leaves the old run as it was;
afterwards the folder is one that only another `--overwrite` takes.
"""

import os
from collections.abc import Callable
from pathlib import Path

from p3o.files import atomic_directory, plain_os_errors, remove, write_text

RESTARTS = "TORCHELASTIC_RESTART_COUNT"
"""Where torchrun tells how often it has started a process again."""

_REPLACING = ".replacing"
"""The files of the new run, while the old ones are being removed."""

_WANTED = ".overwrite"
"""The replacing is asked for and has not begun. Kept only under torchrun, for processes that it starts again."""


def replace_content(folder: Path, fill: Callable[[Path], None]) -> None:
    """Remove all that a folder holds, and put new files there.

    Args:
        folder: of the old run.
        fill: writes the new files into the folder that it is given.

    Raises:
        P3OError: if the system refuses.
    """
    new = folder / _REPLACING
    with atomic_directory(new, replace=True) as temporary:
        fill(temporary)
    with plain_os_errors(folder, "replaced"):
        # An old file that has a new one goes when it is replaced: until then it says whose folder this is.
        names = sorted(file.name for file in new.iterdir())
        for old in folder.iterdir():
            if old.name not in (_REPLACING, *names):
                remove(old)
        for name in names:
            (new / name).replace(folder / name)
        new.rmdir()


def is_half_replaced(folder: Path) -> bool:
    """Whether a process was ended while it replaced what stood here."""
    return (folder / _REPLACING).is_dir()


def want_to_replace(folder: Path) -> None:
    """Leave a mark under torchrun, which may start these processes again before they have begun to replace anything."""
    if RESTARTS in os.environ:
        write_text(folder / _WANTED, "")


def begun_to_replace(folder: Path) -> None:
    """Remove the mark: what stands here now is the new work."""
    remove(folder / _WANTED)


def still_to_replace(folder: Path) -> bool:
    """Whether what stands here is what an earlier attempt of these processes was to replace."""
    return (folder / _WANTED).is_file() or is_half_replaced(folder)
