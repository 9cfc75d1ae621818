"""A Ray cluster for the time of a run: the one of an address, or one of this machine's own.

Our own listens on the loopback interface, wants a token that nobody else has seen, and leaves neither a token nor its logs
behind. (What PyTorch's processes find each other by, a store with host names and ports, listens on all interfaces: Ray gives it
no address.) Nothing is sent to anyone: usage statistics and the dashboard are off.
"""

import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from p3o.errors import P3OError, first_line
from p3o.scale.ray_config import EngineConfig

LOOPBACK = "127.0.0.1"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Workers stay in the folder that p3o was called in, where relative paths mean what they say.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Ray's own switches, for this process and what it starts; those of the user's environment come first."""

START_SECONDS = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"

ON_LOOPBACK = {
    # Ray's name for "take 127.0.0.1 as the address of this host": all servers then listen there alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    # Gloo would take the address that this host's name stands for.
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
}
_OBJECT_STORE_BYTES = 128 * 2**20
"""Weights and data go through torch.distributed and files; Ray's store holds our settings."""


def require_ray() -> None:
    """Check that Ray Train is installed.

    Raises:
        P3OError: if it is not.
    """
    if find_spec("ray") is None:
        raise P3OError("engine ray: the package ray is not installed; run: pip install 'p3o[ray]'")


@contextmanager
def cluster(engine: EngineConfig, *, timeout: float = 60.0) -> Iterator[Any]:
    """Inside, ``ray`` (which this gives) is connected: to the engine's address, or to a cluster that ends with the block.

    Args:
        engine: its address, and the workers that there must be room for.
        timeout: seconds to wait for a host and port to answer; Ray itself would wait for minutes.

    Raises:
        P3OError: if it cannot be reached or started, or its token is missing.
    """
    require_ray()
    folder = None
    if engine.address is None:
        folder = Path(tempfile.mkdtemp(prefix="p3o-ray-"))
        given: dict[str, Any] = {
            "num_cpus": max(os.cpu_count() or 1, -int(-engine.workers * engine.cpus_per_worker // 1)),
            # Ray opens its folder to everybody, so it lies in one that is not.
            "_temp_dir": str(folder / "ray"),
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
        settings = QUIET | ON_LOOPBACK
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
            settings = settings | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    else:
        given = {"address": engine.address}
        settings = QUIET
    with _environment(settings | {START_SECONDS: f"{engine.room_seconds:g}"}):
        try:
            ray = _connect(engine, given, timeout)
            try:
                yield ray
            finally:
                ray.shutdown()
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _connect(engine: EngineConfig, given: dict[str, Any], timeout: float) -> Any:
    if engine.address not in (None, "auto", "local"):
        _reach(str(engine.address), timeout)
    with _own_signal_handlers():
        import ray  # here: it reads its environment when it is imported

        try:
            ray.init(**given, log_to_driver=False, logging_level="ERROR", configure_logging=True)
        except Exception as error:  # Ray raises whatever its parts do
            where = "cannot be started here" if engine.address is None else f"at {engine.address} cannot be used"
            raise P3OError(
                f"engine.address: the Ray cluster {where}: {first_line(error)}; docs/scale.md explains addresses and tokens"
            ) from error
    return ray


def _reach(address: str, timeout: float) -> None:
    """Something answers at HOST:PORT.

    Raises:
        P3OError: if the address is none, or nothing does in time.
    """
    import socket

    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address.startswith("ray://") or not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise P3OError(
            f"engine.address: {address!r} is not HOST:PORT of a Ray head (the port that `ray start --head --port` was given; "
            "a ray:// client cannot start workers of Ray Train)"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout).close()
    except OSError as error:
        raise P3OError(
            f"engine.address: no Ray head answers at {address} ({error}); start one with `ray start --head --port {port}`"
        ) from error


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """These variables, where the user has not set them, for the time of the block."""
    missing = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Ray's handler of SIGTERM leaves by sys.exit; ours comes back when the block ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
