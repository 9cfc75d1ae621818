"""Joining the other processes: what torchrun, Slurm or Ray said in the environment becomes a ``World``."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from p3o.distributed.meeting import Meeting, meet
from p3o.distributed.settings import ParallelConfig
from p3o.distributed.world import World, within
from p3o.errors import P3OError

SIZE, RANK, LOCAL_RANK, RESTARTS = "WORLD_SIZE", "RANK", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"
_PATIENCE = timedelta(days=30)


@contextmanager
def started(settings: ParallelConfig, *, use_gpu: bool = True) -> Iterator[World]:
    """Inside, ``world()`` is all processes that were started together; one process stays by itself.

    A process group that is there already (Ray Train makes one) is used and left; else one is made and taken down at the end.

    Args:
        settings: the time limit, and how many processes there must be.
        use_gpu: whether tensors will be on GPUs, if there are any; each process then takes the one of its local rank.

    Raises:
        P3OError: if the processes cannot meet, or are not as many as they must be.
    """
    known = dist.is_initialized()
    size = dist.get_world_size() if known else _number(SIZE, 1)
    if settings.processes is not None and size != settings.processes:
        raise P3OError(
            f"parallel.processes: {settings.processes} processes must train together, but there is "
            f"{'only this one' if size == 1 else f'a world of {size}'}; start it with torchrun, see docs/scale.md"
        )
    if size == 1:
        with within(World(attempt=_number(RESTARTS, 0))) as found:
            yield found
        return
    limit = timedelta(minutes=settings.timeout_minutes)
    gpu = use_gpu and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(_own_gpu())
    met = None
    if not known:
        try:
            met = _meet("cpu:gloo,cuda:nccl" if gpu else "gloo", limit)
        except (RuntimeError, ValueError) as error:
            raise P3OError(
                f"the {size} processes cannot meet ({str(error).splitlines()[0][:200]}); check MASTER_ADDR, MASTER_PORT and "
                "the firewall between the hosts"
            ) from error
    try:
        control, patient = (dist.new_group(backend="gloo", timeout=time) for time in (limit, _PATIENCE))
        found = World(dist.get_rank(), size, control, patient, attempt=0 if met is None else met.attempt)
        with within(found):
            _check(found)
            yield found
    finally:
        if not known:
            dist.destroy_process_group()


def announced() -> tuple[int, int]:
    """This process's rank and how many there are, as the environment says; nobody is met.

    Raises:
        P3OError: if it says what is no number.
    """
    return _number(RANK, 0), _number(SIZE, 1)


def _meet(backend: str, limit: timedelta) -> Meeting:
    """Make the process group, under a name that no earlier start of these processes has left anything under."""
    store, rank, size = next(rendezvous("env://", timeout=limit))
    met = meet(store, rank, size, restarts=_number(RESTARTS, 0), limit=limit)
    dist.init_process_group(backend, store=PrefixStore(met.name, store), rank=rank, world_size=size, timeout=limit)
    return met


def _own_gpu() -> int:
    """The GPU of this process's local rank; the only one, where it was started with one in sight.

    Raises:
        P3OError: if the host has fewer GPUs than processes.
    """
    rank, there = _number(LOCAL_RANK, 0), torch.cuda.device_count()
    if there > 1 and rank >= there:
        raise P3OError(
            f"this is process {rank + 1} on a host with {there} GPUs, but each process needs its own; start fewer on each host "
            "(torchrun --nproc-per-node), or choose device: cpu"
        )
    return rank if there > 1 else 0


def _check(found: World) -> None:
    """Everyone has been heard, once."""
    ranks = found.gather(found.rank)
    if ranks != list(range(found.size)):
        raise P3OError(f"the processes do not agree on who they are: ranks {ranks}")


def _number(name: str, default: int) -> int:
    """A whole number in the environment.

    Raises:
        P3OError: if it is none.
    """
    text = os.environ.get(name, "").strip() or str(default)
    try:
        return int(text)
    except ValueError as error:
        raise P3OError(f"the environment variable {name} is {text!r}, not a whole number") from error
