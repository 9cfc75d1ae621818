"""Stages on workers of an engine: what the command hands over, and what each worker does."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p3o.config import RunConfig
    from p3o.pipeline import Elsewhere
    from p3o.scale.ray_engine import Seat
    from p3o.stages.context import RunContext
    from p3o.training.progress import Progress

RAY_FILES = ".ray"
"""In the run's folder while Ray trains: what its controller writes."""


def require_one_process() -> None:
    """Check that the engine is not asked by each of several processes.

    Raises:
        P3OError: if torchrun or Slurm started this process among others.
    """
    from p3o.errors import P3OError

    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise P3OError(
            f"engine: ray starts its own workers, but {os.environ['WORLD_SIZE']} processes were already started "
            f"here; run p3o without torchrun, or use --engine local"
        )


@contextmanager
def on_workers(settings: "RunConfig", stages: Sequence[str] | None, *, resume: bool) -> "Iterator[Elsewhere | None]":
    """What has the stages that train done by workers of the engine; None if this process does all of them.

    Args:
        settings: of the run.
        stages: that the command does; None: all.
        resume: whether they go on where an earlier attempt stopped.

    Raises:
        P3OError: if the engine's package is missing; now, before anything is trained.
    """
    if settings.engine.name == "local":
        yield None
        return
    from p3o.pipeline import TRAINING_STAGES
    from p3o.scale.ray_cluster import require_ray

    if stages is not None and set(stages).isdisjoint(TRAINING_STAGES):
        yield None
        return
    require_ray()
    with OnRay(resume=resume) as workers:
        yield workers


class OnRay:
    """Has stages done by workers of Ray.

    The first of them connects to the cluster, which stays until the ``with`` block ends or one of them fails: it takes long to
    start one. Workers are started for each call.

    Args:
        resume: whether the stages go on where an earlier attempt stopped.
    """

    def __init__(self, *, resume: bool) -> None:
        self._resume = resume
        self._cluster = ExitStack()
        self._ray: Any = None

    def __enter__(self) -> "OnRay":
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.close()

    def __call__(self, run: "RunContext", stages: Sequence[str]) -> None:
        """These stages, in workers; what they wrote of the run is read again.

        Raises:
            P3OError: of a worker, or if it cannot have workers.
            Stopped: after a signal, when the workers have saved their state.
        """
        import torch

        from p3o.scale.ray_engine import connected, run_on_ray

        config, folder = run.config, run.folder
        work = partial(
            _stages_of_worker,
            config,
            tuple(stages),
            folder.path.parent,
            folder.path.name,
            self._resume,
            folder.overwrites,
        )
        try:
            if self._ray is None:
                self._ray = self._cluster.enter_context(connected(config.engine, run.progress))
            torch.cuda.empty_cache()  # of stages that were done here; the workers may have the same GPU
            run_on_ray(
                self._ray,
                work,
                config.engine,
                folder=folder.path / RAY_FILES,
                use_gpu=config.device == "auto" or config.device.startswith("cuda"),
                progress=run.progress,
                collective_seconds=60 * config.parallel.timeout_minutes,
            )
        except BaseException:
            self._cluster.close()  # of workers that still run, none writes any more
            raise
        finally:
            folder.refresh()


def _stages_of_worker(
    settings: "RunConfig",
    stages: tuple[str, ...],
    output: Path,
    name: str,
    resume: bool,
    overwrite: bool,
    seat: "Seat",
    progress: "Progress",
) -> None:
    """These stages as torchrun's processes would do them, in a worker; from what there is if an earlier attempt was lost."""
    from p3o import pipeline
    from p3o.distributed import started
    from p3o.errors import P3OError
    from p3o.training.following import open_together
    from p3o.training.tracking import RUN_FILE, RunFolder

    if not (output / name / RUN_FILE).is_file():
        raise P3OError(
            f"{(output / name).absolute()}: not on the worker's host {os.uname().nodename}; --output must name a folder on "
            "storage that all hosts of the cluster share"
        )
    with started(settings.parallel, use_gpu=settings.device not in ("cpu", "mps")):
        folder = open_together(lambda: RunFolder.open(output, name, overwrite=overwrite))
        # A stage that is to be done again may still be done: then the attempt that was lost had not begun with it.
        begun = seat.attempt > 0 and not (overwrite and any(map(folder.done, stages)))
        pipeline.run(settings, folder=folder, stages=stages, progress=progress, resume=resume or begun)
