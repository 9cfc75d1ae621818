"""The folder of a run on several processes: the first one makes it and writes it, the others follow."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from p3o.distributed.world import world
from p3o.training.tracking import RunFolder


class FollowedFolder(RunFolder):
    """A run's folder as a process sees it that is not the first: it reads, and writes nothing."""

    def begin(self) -> None:
        """From here on the first process writes there."""
        self.is_ready = True

    def __enter__(self) -> "FollowedFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing: the first process records how the run ended."""

    @contextmanager
    def stage(
        self,
        name: str,  # noqa: ARG002 the signature of those that write
        *,
        owns: Callable[[Mapping[str, Any]], bool] | None = None,  # noqa: ARG002
        resume: bool = False,  # noqa: ARG002
    ) -> Iterator[None]:
        """A stage that the first process records."""
        yield

    def refuse_if_done(self, stage: str) -> None:
        """Nothing: the first process looks."""

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def append(self, file: str, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def directory(self, name: str) -> Iterator[Path]:
        """Where the first process saves a model; saving one of several processes writes nothing on the others."""
        yield self.path / name

    def drop_torn_lines(self, files: Sequence[str]) -> list[str]:  # noqa: ARG002
        """Nothing."""
        return []

    def drop_rows(self, file: str, owned: Callable[[Mapping[str, Any]], bool]) -> None:
        """Nothing."""

    def lengths(self, files: Sequence[str]) -> dict[str, int]:  # noqa: ARG002
        """Nothing that anybody writes."""
        return {}

    def rewind(self, lengths: Mapping[str, int]) -> None:
        """Nothing."""


def open_together(make: Callable[[], RunFolder]) -> RunFolder:
    """The folder that the first process makes or opens; on the others, the same to follow.

    Raises:
        P3OError: on all of them, if it cannot be made.
    """
    together = world()
    folder = together.together(lambda: make() if together.first else None)
    told = together.from_first(
        None if folder is None else {"path": str(folder.path), "record": folder.record, "ready": folder.is_ready}
    )
    return FollowedFolder(Path(told["path"]), told["record"], ready=told["ready"]) if folder is None else folder
