"""Stages on workers of an engine: what the command hands over, and what each worker does."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p3o.config import RunConfig
    from p3o.pipeline import Stage
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
            f"engine: ray starts its own workers, but this is one of {os.environ['WORLD_SIZE']} processes that were started "
            "already; leave torchrun away, or use --engine local"
        )


def stages_elsewhere(settings: "RunConfig", *, resume: bool) -> "Mapping[str, Stage]":
    """The stages that the engine does, each as a function for the pipeline; none if this process does all.

    Raises:
        P3OError: if the engine's package is missing; now, before anything is trained.
    """
    if settings.engine.name == "local":
        return {}
    from p3o.scale.ray_cluster import require_ray

    require_ray()
    return {"rl": partial(_on_ray, resume=resume)}


def _on_ray(run: "RunContext", *, resume: bool) -> None:
    from p3o.scale.ray_engine import run_on_ray

    folder = run.folder
    work = partial(_stage_of_worker, run.config, folder.path.parent, folder.path.name, resume, folder.overwrites)
    try:
        run_on_ray(
            work,
            run.config.engine,
            folder=run.folder.path / RAY_FILES,
            use_gpu=run.config.device == "auto" or run.config.device.startswith("cuda"),
            progress=run.progress,
            collective_seconds=60 * run.config.parallel.timeout_minutes,
        )
    finally:
        run.folder.refresh()


def _stage_of_worker(
    settings: "RunConfig",
    output: Path,
    name: str,
    resume: bool,
    overwrite: bool,
    seat: "Seat",
    progress: "Progress",
) -> None:
    """The RL stage as one process would do it, in a worker; from its checkpoint if an earlier attempt was lost."""
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
        # Still done, from a run that is to be replaced: then the attempt that was lost had not begun with it.
        begun = seat.attempt > 0 and not folder.done("rl")
        pipeline.run(settings, folder=folder, stages=["rl"], progress=progress, resume=resume or begun)
