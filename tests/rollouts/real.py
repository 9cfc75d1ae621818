"""A real vLLM server on a CPU for the tests of ``make test-vllm``, which makes its environment: started, waited for, killed."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from p3o.rollouts.http import ServerError
from p3o.rollouts.server import VLLMServer

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
ENVIRONMENT = Path(os.environ.get("P3O_VLLM_ENV") or CACHE / "p3o" / "vllm-0.32.0")
READY = 900.0
"""Seconds for a server to start on a busy machine."""

SETTINGS = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}

needs_vllm = pytest.mark.skipif(
    not (ENVIRONMENT / ".complete").exists(), reason="no vLLM environment; make test-vllm (tools/vllm_env.sh) makes it"
)


class RealServer:
    """``vllm serve`` on loopback, with the same address however often it is started.

    Args:
        model: folder of what it serves, by its path as name.
        folder: for its log.
        arguments: more of the command.
    """

    def __init__(self, model: Path, folder: Path, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self.command = [str(ENVIRONMENT / "bin" / "vllm"), "serve", str(model), "--host", "127.0.0.1"]
        self.command += ["--port", str(self.port), "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16"]
        self.command += arguments
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns at once."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        with self.log.open("ab") as log:
            # A group of its own, so that the engine's processes end with it.
            self.process = subprocess.Popen(
                self.command, env=kept | SETTINGS, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> float:
        """Seconds until it was ready."""
        assert self.process is not None
        started = time.monotonic()
        while time.monotonic() - started < READY:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                VLLMServer(self.url, timeout=2).health()
                return time.monotonic() - started
            except ServerError:
                time.sleep(0.5)
        raise AssertionError(f"not ready in {READY} s: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """With -9, all its processes."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
