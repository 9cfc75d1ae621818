"""The folder of a run: what was asked for, what came of it, and how it ended.

    runs/NAME/
      config.yaml    the resolved configuration
      run.json       name, status (running, complete, failed, interrupted), seed, threads, versions, machine, seconds of stages
      metrics.jsonl  one JSON object a line with its "stage"; no clock times but for two of vLLM servers, so the same
                     seed gives the same file

A folder that holds something is never written over without being asked; and an earlier run, or its settings and status, stand
as they were until ``begin``, which is called when everything that the new one needs was read and found good.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from p3o.errors import P3OError, did_you_mean, shorten
from p3o.files import (
    append_jsonl,
    atomic_directory,
    path_is_possible,
    plain_os_errors,
    write_json,
    write_text,
)
from p3o.training.environment import machine, versions
from p3o.training.growing import drop_rows
from p3o.training.replacing import begun_to_replace, is_half_replaced, replace_content, want_to_replace
from p3o.training.trackers import Tracker

RUN_FILE, CONFIG_FILE, METRICS_FILE = "run.json", "config.yaml", "metrics.jsonl"
NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
"""Of a run, and of an RL run in it: both become folders, and no name may lead out of the one above."""


class RunFolder:
    """The folder of one run. As a context manager it records how the run ended, and goes if nothing was made in it.

    ``RunFolder.create`` makes a new one, ``RunFolder.open`` goes on in one that is there:

        with RunFolder.create(Path("runs"), "first", config=text, seed=0, threads=2) as folder:
            with folder.stage("sft"):
                folder.metrics({"stage": "sft", "step": 0, "loss": 0.7})

    Made by its constructor, it is one to look at: of a dry run, say.

    Attributes:
        path: the folder.
        record: what run.json holds.
        trackers: where rows of metrics go as well; ``open_trackers`` makes and closes them.
        is_ready: whether files may be put there: not in a dry run, nor while a run stands there that is to be replaced.
    """

    def __init__(
        self,
        path: Path,
        record: dict[str, Any],
        *,
        new: bool = False,
        overwrite: bool = False,
        config: str | None = None,
        ready: bool = False,
    ) -> None:
        self.path = path
        self.record = record
        self.trackers: list[Tracker] = []
        self.is_ready = ready
        self._new = new
        self._overwrite = overwrite
        self._config = config
        self._begun = new and ready
        self._saving = Lock()

    @classmethod
    def create(
        cls, output: Path, name: str, *, config: str, seed: int, threads: int, overwrite: bool = False
    ) -> "RunFolder":
        """A new folder ``output/name`` with its config.yaml and run.json. An earlier run stays there until ``begin``.

        Args:
            output: the folder of all runs; created if needed.
            name: one path part.
            config: the resolved configuration as YAML.
            seed: of the whole run.
            threads: number of CPU threads that torch computes with.
            overwrite: whether to remove what an earlier run left under this name. Only a run's folder is ever removed.

        Raises:
            P3OError: if the name is no name, the folder holds something that may not be removed, or the system refuses.
        """
        path = _checked(output, name)
        with plain_os_errors(path, "created"):
            path.mkdir(parents=True, exist_ok=True)
            holds = any(path.iterdir())
        if holds and not overwrite:
            raise P3OError(f"{path}: already exists and is not empty; choose another --name or pass --overwrite")
        if holds and not (path / RUN_FILE).is_file():
            raise P3OError(f"{path}: not a run folder (no {RUN_FILE}), so it was not removed; choose another --name")
        record = {
            "name": name,
            "status": "running",
            "seed": seed,
            "threads": threads,
            "versions": versions(),
            "machine": machine(),
            "seconds": {},
        }
        folder = cls(path, record, new=True, config=config, ready=not holds)
        if holds:
            want_to_replace(path)
        else:
            # Both files at once: a folder with one of them could neither be resumed nor be overwritten. What a link leads to
            # is replaced, not the link.
            with atomic_directory(path.resolve(), replace=True) as temporary:
                folder._write(temporary)
        return folder

    @classmethod
    def open(cls, output: Path, name: str, *, overwrite: bool = False, config: str | None = None) -> "RunFolder":
        """The folder of an earlier run, to go on in. Nothing is written before ``begin``.

        Args:
            output: the folder of all runs.
            name: the run's.
            overwrite: whether ``stage`` may do a stage again that is done already.
            config: the resolved configuration as YAML, where it is not to stay as it is.

        Raises:
            P3OError: if there is no such run.
        """
        path = _checked(output, name)
        if not (path / RUN_FILE).is_file():
            known = [file.parent.name for file in output.glob(f"*/{RUN_FILE}")] if output.is_dir() else []
            advice = (
                did_you_mean(name, known) or "check --name and --output, or start a new run with --model or --config"
            )
            raise P3OError(f"{path}: there is no run (no {RUN_FILE}); {advice}")
        if is_half_replaced(path):
            raise P3OError(
                f"{path}: partly removed, because p3o was stopped while replacing this run with a new one; start "
                f"the new one again with p3o run --overwrite"
            )
        with plain_os_errors(path / RUN_FILE, "read"):
            text = (path / RUN_FILE).read_bytes()
        try:
            record = json.loads(text)
            record["seconds"] = dict(record["seconds"])
            record["warnings"] = list(record.get("warnings", []))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise P3OError(f"{path / RUN_FILE}: not written by p3o; choose another --name") from error
        if overwrite:
            want_to_replace(path)
        return cls(path, record, overwrite=overwrite, config=config, ready=True)

    def begin(self) -> None:
        """Say in run.json and config.yaml that the run goes on; one that is to be replaced is removed now.

        Called again, or of a folder that was made new, it does nothing. ``stage`` and whatever appends a row call it too.

        Raises:
            P3OError: if the system refuses. On a full disk, what is there stays.
        """
        if self._begun:
            return
        self.record["status"] = "running"
        if self._new:
            replace_content(self.path, self._write)
        else:
            if self._config is not None:
                write_text(self.path / CONFIG_FILE, self._config)
            self._save()
        self._begun = self.is_ready = True

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._begun:
            return  # nothing was written, and what is there stays as it was
        if error is None:
            self.record["status"] = "complete"
            self._save()
            return
        if self._new and {file.name for file in self.path.iterdir()} <= {RUN_FILE, CONFIG_FILE}:
            # Bad input, told before the first stage: the same command shall work when it is mended.
            shutil.rmtree(self.path, ignore_errors=True)
            return
        self.record["status"] = "failed" if isinstance(error, Exception) else "interrupted"
        # A full disk refuses this as well; the error that ended the run is the one to show.
        with suppress(P3OError):
            self._save()

    @contextmanager
    def stage(
        self, name: str, *, owns: Callable[[Mapping[str, Any]], bool] | None = None, resume: bool = False
    ) -> Iterator[None]:
        """A stage of the run: its seconds are recorded when it succeeds, and by that it counts as done.

        What an unfinished attempt left in metrics.jsonl is removed first, unless it is to be resumed.

        Args:
            name: of the stage.
            owns: which rows of metrics.jsonl are this stage's; by default those whose "stage" is ``name`` or begins with
                ``name_``.
            resume: whether to go on with what an unfinished attempt left.

        Raises:
            P3OError: if the stage is done already and the folder was not opened with ``overwrite``.
        """
        self.refuse_if_done(name)
        self.begin()
        if not resume:
            mine = owns or (lambda row: row["stage"] == name or row["stage"].startswith(f"{name}_"))
            drop_rows(self.path / METRICS_FILE, mine)
        self.record["seconds"].pop(name, None)
        self._save()
        begun_to_replace(self.path)
        started = time.monotonic()
        spent = self.record.setdefault("unfinished_seconds", {})
        earlier = spent.pop(name, 0.0) if resume else 0.0
        try:
            yield
        except BaseException:
            spent[name] = round(earlier + time.monotonic() - started, 3)
            raise
        spent.pop(name, None)
        self.record["seconds"][name] = round(earlier + time.monotonic() - started, 3)
        self._save()

    @property
    def overwrites(self) -> bool:
        """Whether ``stage`` may do a stage again that is done already."""
        return self._overwrite

    def refresh(self) -> None:
        """Read run.json again: another process has worked in the folder."""
        self.record = RunFolder.open(self.path.parent, self.path.name).record

    def refuse_if_done(self, stage: str) -> None:
        """Check that the stage may be done now.

        Raises:
            P3OError: if it is done already and the folder was not opened with ``overwrite``.
        """
        if self.done(stage) and not self._overwrite:
            raise P3OError(
                f"{self.path}: its stage '{stage}' is already done; choose another --name or pass --overwrite"
            )

    def done(self, stage: str) -> bool:
        """Whether the stage has succeeded in this folder."""
        return stage in self.record["seconds"]

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl, at once on the disk, and hand it to the trackers.

        Raises:
            P3OError: if a number is NaN or infinite, or the system refuses.
        """
        self.begin()
        append_jsonl(self.path / METRICS_FILE, row)
        for tracker in self.trackers:
            tracker.log(row)

    def append(self, file: str, row: Mapping[str, Any]) -> None:
        """Append a row to a JSONL file of the folder.

        Raises:
            P3OError: if a number is NaN or infinite, or the system refuses.
        """
        self.begin()
        append_jsonl(self.path / file, row)

    def warn(self, text: str) -> None:
        """Keep a warning in run.json, under "warnings"; from ``begin`` on."""
        self.record.setdefault("warnings", []).append(text)
        if self._begun:
            self._save()

    @contextmanager
    def directory(self, name: str) -> Iterator[Path]:
        """A folder to save a model in: it appears as ``path/name`` when it is whole, in place of an earlier one.

        Raises:
            P3OError: if the system refuses.
        """
        self.begin()
        with atomic_directory(self.path / name, replace=True) as temporary:
            yield temporary

    def _write(self, folder: Path) -> None:
        write_text(folder / CONFIG_FILE, str(self._config))
        write_json(folder / RUN_FILE, self.record)

    def _save(self) -> None:
        with self._saving:  # a thread that samples ahead warns, too: the older record must not come last
            write_json(self.path / RUN_FILE, self.record)


def free_name(output: Path, name: str) -> str:
    """``name``, or the first of ``name-2``, ``name-3``, … that no folder in ``output`` has."""
    candidates = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(candidate for candidate in candidates if not (output / candidate).exists())


def _checked(output: Path, name: str) -> Path:
    """``output/name``, if the name is one plain path part."""
    if not re.fullmatch(NAME, name):
        raise P3OError(
            f"--name {shorten(name)}: not a valid name for a run; use at most 200 letters, digits, '.', '-' and '_'"
        )
    if not path_is_possible(output):
        raise P3OError(f"--output {str(output)!r}: not a valid path; it contains characters that no file name can have")
    return output / name
