"""Ray Train as the engine: workers that run the same function, watched from here, started again when one is lost.

Ray brings the processes together (torch.distributed is ready when the work begins), notices lost ones and starts again, with
fewer if it may. State is not its business: the work saves checkpoints of its own in the run's folder, which all hosts must
see, and goes on from them when it is told that this is not the first attempt.
"""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p3o.distributed import LostProcessError
from p3o.errors import P3OError, first_line
from p3o.files import remove
from p3o.scale.ray_cluster import cluster
from p3o.scale.ray_config import EngineConfig
from p3o.scale.ray_post import Lull, News, Outcome, Post, Teller, cause_of, in_words, stops_when_asked
from p3o.stopping import Stopped, note_signals
from p3o.training.progress import Progress

LOOK_SECONDS = 0.25
"""Between two looks of the driver at what its workers say."""

WAKE_SECONDS = 10.0
"""A call of Ray's notices within a second or two that Ray is not there any more; longer is not waited for."""

DEAF_SECONDS = 15.0
"""When no worker has asked for so long, there is none that could save anything: a stop is then at once."""


@dataclass(frozen=True)
class Seat:
    """A worker's place in an attempt.

    Attributes:
        rank: 0 … size − 1.
        size: number of workers of this attempt.
        attempt: 0 at first; more, and there may be a checkpoint to go on from.
    """

    rank: int
    size: int
    attempt: int


Work = Callable[[Seat, Progress], None]
"""What every worker does. It must be importable on their hosts: a module's function, or a functools.partial of one."""


class LostWorkersError(P3OError):
    """Workers failed more often than they may."""


@contextmanager
def connected(engine: EngineConfig, progress: Progress) -> Iterator[Any]:
    """Inside, ``ray`` (which this gives) is connected to the engine's cluster; the user is told which, and when.

    Raises:
        P3OError: if there is no cluster.
    """
    progress.print(f"engine: Ray, {'on this machine' if engine.address is None else f'cluster at {engine.address}'}")
    began = time.monotonic()
    try:
        # Ray prints what it has to say of its nodes; standard output is the command's own.
        with redirect_stdout(sys.stderr), cluster(engine) as ray:
            progress.print(f"engine: connected after {time.monotonic() - began:.0f} s")
            yield ray
    finally:
        # A call that was left alone ends when Ray does; one that wakes while the interpreter ends takes the process down.
        for thread in threading.enumerate():
            if isinstance(thread, _Fit):
                thread.join(WAKE_SECONDS)


def run_on_ray(
    ray: Any,
    work: Work,
    engine: EngineConfig,
    *,
    folder: Path,
    use_gpu: bool,
    progress: Progress,
    collective_seconds: float,
) -> None:
    """Do the work in as many workers as the engine says, and come back when it is done.

    Args:
        ray: connected.
        work: of one worker.
        engine: how many, where, and what to do about failures.
        folder: for files of Ray's own, on storage that this host can write; removed at the end.
        use_gpu: whether workers get GPUs where the cluster has any and the engine does not say.
        progress: shows what the first worker says.
        collective_seconds: time limit of a collective of torch.distributed.

    Raises:
        P3OError: of a worker; or if the cluster has gone, has no room, or there is no end of failures.
        Stopped: after SIGINT or SIGTERM, when the workers have saved their state.
    """
    resources = _resources(ray, engine, use_gpu)
    # The driver's host has the actor: while it lives there is somebody to tell.
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    post = ray.remote(num_cpus=0, scheduling_strategy=here)(Post).remote()
    progress.print(
        f"engine: starting {_count(engine)} with "
        f"{', '.join(f'{amount:g} {name}' for name, amount in resources.items())} each"
    )
    settings = {"work": work, "post": post, "folder": os.getcwd()}
    try:
        trainer = _trainer(engine, settings, resources, folder, post, collective_seconds)
        _follow(ray, _Fit(trainer.fit), post, engine, progress)
    finally:
        remove(folder)


def _trainer(
    engine: EngineConfig,
    settings: dict[str, Any],
    resources: Mapping[str, int | float],
    folder: Path,
    post: Any,
    collective_seconds: float,
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from p3o.scale.ray_callback import TellFailures

    gpu = resources.get("GPU", 0) > 0
    return TorchTrainer(
        _in_worker,
        train_loop_config=settings,
        # Numbers of the CPU are gathered as well: of both kinds of devices, each by its own library.
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if gpu else "gloo", timeout_s=math.ceil(collective_seconds)
        ),
        scaling_config=ScalingConfig(
            num_workers=(engine.min_workers, engine.workers) if engine.is_elastic else engine.workers,
            use_gpu=gpu,
            resources_per_worker=dict(resources),
            elastic_resize_monitor_interval_s=float(engine.resize_seconds),
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(folder.absolute()),
            # Of the controller: groups that found no room. Elastic ones wait for hosts as long as it takes, and say so.
            failure_config=FailureConfig(
                max_failures=engine.max_failures,
                controller_failure_limit=-1 if engine.is_elastic else engine.max_failures,
            ),
            callbacks=[TellFailures(post, engine.max_failures)],
        ),
    )


def _in_worker(settings: dict[str, Any]) -> None:
    """The function that Ray Train calls in each worker, where torch.distributed is ready."""
    import ray
    import torch.distributed as dist

    post, work = settings["post"], settings["work"]
    first = dist.get_rank() == 0
    say = post.say.remote if first else None

    def finish(outcome: Outcome) -> None:
        ray.get(post.finish.remote(outcome))

    seat = _seat(ray.get(post.attempt.remote()) if first else 0)
    if say is not None:
        say(f"engine: attempt {seat.attempt + 1}, {seat.size} worker{'s' if seat.size > 1 else ''}")
    stops = stops_when_asked(lambda: ray.get(post.stop_asked.remote()), lambda number: finish(_stopped(number)))
    try:
        with _in_folder(settings["folder"]), stops if first else nullcontext():
            work(seat, Progress(Teller(say), terminal=False))
    except Stopped as stop:
        if first:  # the one that writes; the driver ends all workers when it hears of it
            finish(Outcome("stopped", str(stop), stop.signal))
    except LostProcessError:
        raise  # no mistake in what was given: Ray starts all of them again
    except P3OError as error:
        finish(Outcome("mistake", str(error)))
        raise


def _seat(attempt: int) -> Seat:
    """This worker's place; the number of the attempt is the first worker's."""
    import torch
    import torch.distributed as dist

    agreed = torch.tensor([attempt])
    if dist.get_world_size() > 1:
        dist.broadcast(agreed, src=0)
    return Seat(dist.get_rank(), dist.get_world_size(), int(agreed))


@contextmanager
def _in_folder(path: str) -> Iterator[None]:
    """In the driver's working folder, with its modules importable.

    Raises:
        P3OError: if this host does not have it.
    """
    before = os.getcwd()
    try:
        os.chdir(path)
    except OSError as error:
        raise P3OError(
            f"{path}: not on the worker's host {os.uname().nodename} ({error.strerror}); all hosts of the cluster must see the "
            "folder that p3o is called in"
        ) from error
    if path not in sys.path:
        sys.path.insert(0, path)
    try:
        yield
    finally:
        os.chdir(before)


class _Fit(threading.Thread):
    """Ray's blocking call, in a thread: the main one shows progress and takes signals."""

    def __init__(self, fit: Callable[[], Any]) -> None:
        super().__init__(name="ray fit", daemon=True)
        self._fit = fit
        self.error: BaseException | None = None

    def run(self) -> None:
        """Call it and keep what it raised."""
        try:
            self._fit()
        except BaseException as error:  # for the main thread to judge
            self.error = error


def _follow(ray: Any, fit: _Fit, post: Any, engine: EngineConfig, progress: Progress) -> None:
    """Show what the workers say until all is done, someone has stopped it, or it has failed for good."""
    asked_at: float | None = None
    lull = Lull(engine.start_seconds)
    with note_signals() as asked:
        fit.start()
        while True:
            running = fit.is_alive()
            news = _collect(ray, post, engine)
            for line in news.lines:
                progress.print(line)
            if news.outcome is not None:
                _raise(news.outcome)
            if not running:
                break
            if lull.due(news.quiet_seconds):
                progress.print(
                    f"engine: no worker has run for {news.quiet_seconds:.0f} s; waiting for room for {_count(engine)} "
                    "(`ray status` shows what the cluster has)"
                )
            if asked and asked_at is None:
                asked_at = time.monotonic()
                post.ask_to_stop.remote(asked[0])
            if asked_at is not None and min(news.quiet_seconds, time.monotonic() - asked_at) > DEAF_SECONDS:
                _raise(_stopped(asked[0]))
            fit.join(LOOK_SECONDS)
    if fit.error is not None:
        raise _explained(fit.error, engine) from fit.error


def _collect(ray: Any, post: Any, engine: EngineConfig) -> News:
    try:
        news: News = ray.get(post.collect.remote(), timeout=60)
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise P3OError(
            f"the Ray cluster{'' if engine.address is None else f' at {engine.address}'} is no longer responding "
            f"({first_line(error)}); continue with --resume when it is back"
        ) from error
    return news


def _raise(outcome: Outcome) -> None:
    if outcome.kind == "stopped":
        raise Stopped(outcome.signal, outcome.text)
    raise P3OError(outcome.text)


def _stopped(number: int) -> Outcome:
    name = signal.Signals(number).name
    return Outcome(
        "stopped", f"stopped by {name} between two trainings; continue from the last checkpoint with --resume", number
    )


def _explained(error: BaseException, engine: EngineConfig) -> BaseException:
    """What Ray's error means for the user; the error itself if it is none of theirs."""
    from ray.exceptions import RayError
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(error, ControllerError):
        return P3OError(
            f"engine: {engine.workers} workers did not start within engine.start_seconds = {engine.start_seconds:g}, "
            f"{engine.max_failures + 1} times over ({first_line(error.controller_failure)}); check the cluster's "
            f"resources with `ray status`, or raise the limit"
        )
    if isinstance(error, WorkerGroupError):
        causes = error.worker_failures
        if all(isinstance(cause_of(cause), RayError) or _lost_a_peer(cause) for cause in causes.values()):
            rank, cause = min(causes.items(), key=lambda item: (not isinstance(cause_of(item[1]), RayError), item[0]))
            return LostWorkersError(
                f"engine: workers were lost {engine.max_failures + 1} times, more than engine.max_failures = "
                f"{engine.max_failures} (last: worker {rank}: {in_words(cause)}); continue from the last "
                f"checkpoint with --resume"
            )
    return error


def _lost_a_peer(error: BaseException) -> bool:
    """Whether a worker failed because another one had gone. Ray sends the error itself, or its traceback."""
    return isinstance(error, LostProcessError) or any(sign in str(error) for sign in _SIGNS_OF_A_LOST_PEER)


_SIGNS_OF_A_LOST_PEER = (
    LostProcessError.__name__,
    "onnection closed by peer",
    "onnection reset by peer",
    "Timed out waiting",
    "ProcessGroup",
)


def _resources(ray: Any, engine: EngineConfig, use_gpu: bool) -> dict[str, int | float]:
    found = engine.resources_per_worker
    if "GPU" not in found and use_gpu and ray.cluster_resources().get("GPU", 0) > 0:
        found["GPU"] = 1
    return found


def _count(engine: EngineConfig) -> str:
    least = engine.min_workers or engine.workers
    return f"{engine.workers} workers" if least == engine.workers else f"{least} to {engine.workers} workers"
