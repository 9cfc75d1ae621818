"""Optional trackers: what goes into metrics.jsonl also goes to TensorBoard, Weights & Biases or trackio.

Each is an extra, imported when it is asked for. metrics.jsonl stays the record; a tracker is a view of it. Nothing leaves the
machine unless ``online`` is set: wandb then runs in its offline mode and trackio with its local database, whatever their
environment variables say.

Series are named after the rows: ``rl/p3o_v2/reward`` is the reward of the run p3o_v2 in the stage rl.
"""

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from p3o.errors import P3OError

PROJECT = "p3o"
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRACKIO_DESTINATIONS = (
    "TRACKIO_SPACE_ID",
    "TRACKIO_SERVER_URL",
    "TRACKIO_DATASET_ID",
    "TRACKIO_BUCKET_ID",
    "TRACKIO_WEBHOOK_URL",
)


@runtime_checkable
class Tracker(Protocol):
    """Where rows of metrics go beside metrics.jsonl."""

    def log(self, row: Mapping[str, Any], /) -> None:
        """Take in one row of metrics.jsonl."""
        ...

    def close(self) -> None:
        """Write out what is pending."""
        ...


def series(row: Mapping[str, Any]) -> str:
    """The name that the numbers of a row share: stage, then run or policy, then the decoding unless it is sampling."""
    parts = [row["stage"], row.get("run") or row.get("policy"), row.get("decoding")]
    return "/".join(str(part) for part in parts if part not in (None, "sample"))


def numbers(row: Mapping[str, Any]) -> dict[str, int | float]:
    """What of a row is a number to plot: everything numeric but the step."""
    return {
        name: value
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


class TensorBoardTracker:
    """Event files under ``folder/tensorboard``, a directory for each series, so that runs lie over each other in one chart."""

    def __init__(self, folder: Path) -> None:
        _extra("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._new_writer = SummaryWriter
        self._folder = folder / "tensorboard"
        self._writers: dict[str, Any] = {}

    def log(self, row: Mapping[str, Any]) -> None:
        """A scalar for each number of the row."""
        name, step = series(row), int(row.get("step", 0))
        if name not in self._writers:
            # A stage that is done again begins its steps anew: TensorBoard is told to forget those of the earlier attempt.
            self._writers[name] = self._new_writer(str(self._folder / name), purge_step=step)
        for metric, value in numbers(row).items():
            self._writers[name].add_scalar(f"{row['stage']}/{metric}", value, step)

    def close(self) -> None:
        """Flush the event files."""
        for writer in self._writers.values():
            writer.close()


class WandbTracker:
    """A run of Weights & Biases, kept under ``folder/wandb``; `wandb sync` sends it later."""

    def __init__(self, folder: Path, *, online: bool, settings: Mapping[str, Any]) -> None:
        wandb = _extra("wandb")
        self._run = wandb.init(
            project=PROJECT,
            name=folder.name,
            dir=str(folder),
            config=dict(settings),
            mode="online" if online else "offline",
        )
        self._known: set[str] = set()

    def log(self, row: Mapping[str, Any]) -> None:
        """The numbers of the row against the step of their own series: wandb's own step may only grow."""
        name = series(row)
        if name not in self._known:
            self._known.add(name)
            self._run.define_metric(f"{name}/*", step_metric=f"{name}/step")
        self._run.log({f"{name}/step": row.get("step", 0)} | _named(row))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class TrackioTracker:
    """A run of trackio, in its local database (`trackio show`); with ``online`` on the Space that TRACKIO_SPACE_ID names."""

    def __init__(self, folder: Path, *, online: bool, settings: Mapping[str, Any]) -> None:
        trackio = _extra("trackio")
        if online:
            self._run = trackio.init(project=PROJECT, name=folder.name, config=dict(settings), embed=False)
            return
        kept = {name: os.environ.pop(name) for name in _TRACKIO_DESTINATIONS if name in os.environ}
        try:
            self._run = trackio.init(project=PROJECT, name=folder.name, config=dict(settings), embed=False)
        finally:
            os.environ.update(kept)

    def log(self, row: Mapping[str, Any]) -> None:
        """The numbers of the row, with the step of their own series beside them."""
        self._run.log({f"{series(row)}/step": row.get("step", 0)} | _named(row))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


@contextmanager
def open_trackers(
    names: Sequence[str], *, folder: Path, online: bool, settings: Mapping[str, Any]
) -> Iterator[list[Tracker]]:
    """The trackers of these names, closed at the end whatever happens.

    Args:
        names: of "tensorboard", "wandb" and "trackio".
        folder: the run's; its name becomes the name of the run.
        online: whether wandb and trackio may send anything.
        settings: the resolved configuration, shown beside the run.

    Raises:
        P3OError: if an extra is not installed, or ``online`` is set on a machine that was told to stay offline.
    """
    require_trackers(names, online=online)
    with ExitStack() as stack:
        trackers: list[Tracker] = []
        for name in names:
            tracker: Tracker
            if name == "tensorboard":
                tracker = TensorBoardTracker(folder)
            elif name == "wandb":
                tracker = WandbTracker(folder, online=online, settings=settings)
            else:
                tracker = TrackioTracker(folder, online=online, settings=settings)
            stack.callback(tracker.close)
            trackers.append(tracker)
        yield trackers


def require_trackers(names: Sequence[str], *, online: bool) -> None:
    """Check that these trackers can be opened.

    Raises:
        P3OError: if an extra is not installed, or ``online`` is set on a machine that was told to stay offline.
    """
    if online and set(names) & {"wandb", "trackio"}:
        for variable in _OFFLINE_VARIABLES:
            if os.environ.get(variable, "").lower() in ("1", "true", "yes", "on"):
                raise P3OError(f"tracking_online: {variable} is set; unset it, or set tracking_online to false")
    for name in names:
        _extra(name)


def _named(row: Mapping[str, Any]) -> dict[str, int | float]:
    return {f"{series(row)}/{metric}": value for metric, value in numbers(row).items()}


def _extra(name: str) -> Any:
    """The module of an extra.

    Raises:
        P3OError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        problem = "is not installed" if error.name == name else f"cannot be imported ({error})"
        raise P3OError(f"tracking: {name} {problem}; pip install 'p3o[{name}]', or remove it from tracking") from error
