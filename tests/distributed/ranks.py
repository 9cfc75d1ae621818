"""Two processes that meet over gloo on the loopback, and do what a function of a test says."""

import json
import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from p3o.distributed import ParallelConfig, started

LIMIT = 400
"""Seconds after which a test gives up on its processes."""


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def on_ranks(work: Callable[..., Any], folder: Path, *arguments: Any, size: int = 2, minutes: float = 1.0) -> list[Any]:
    """What ``work(*arguments)`` returns on each rank, a value of JSON; an exception comes back as "error: …"."""
    context = multiprocessing.get_context("spawn")
    port = free_port()
    processes = [
        context.Process(target=_rank, args=(work, rank, size, port, minutes, folder, arguments)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + LIMIT
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, "a rank hangs"
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(size)]


def _rank(
    work: Callable[..., Any], rank: int, size: int, port: int, minutes: float, folder: Path, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    try:
        with started(ParallelConfig(timeout_minutes=minutes)):
            result = work(*arguments)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        result = f"error: {type(error).__name__}: {error}"
    (folder / f"rank{rank}.json").write_text(json.dumps(result))
