"""Ray clusters on this machine whose processes can be told from all others, to be cut off and to be looked for afterwards."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from tests.scale.runs import environment

MARK = "P3O_TEST_MARK"
"""The variable that processes inherit from who started them."""

LOOPBACK = "127.0.0.1"


def new_mark() -> str:
    """One that nobody else has."""
    return secrets.token_hex(8)


def processes(mark: str) -> list[psutil.Process]:
    """Those that live with this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:  # it has ended, or is somebody else's
            continue
    return found


def workers(mark: str) -> list[psutil.Process]:
    """Those of them that do what Ray Train says: its controller, its workers, and the actor that takes their news."""
    found = []
    for process in processes(mark):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and any(name in title for name in ("RayTrainWorker", "TrainController", "Post")):
            found.append(process)
    return found


def kill_a_worker(mark: str) -> None:
    """End one worker of Ray Train, as the kernel would."""
    trains = [process for process in workers(mark) if "RayTrainWorker" in " ".join(process.cmdline())]
    assert trains, "no worker of Ray Train runs here"
    trains[0].kill()


def listeners(mark: str) -> list[tuple[str, str]]:
    """The sockets on which these processes listen, as (program, address)."""
    found = []
    for process in processes(mark):
        try:
            # Ray appends to an actor's name the method that it is in.
            name = Path(process.cmdline()[0]).name.partition(".")[0]
            found += [
                (name, one.laddr.ip) for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN
            ]
        except (psutil.Error, IndexError):  # it has ended
            continue
    return found


def assert_none(find: Callable[[str], list[psutil.Process]], mark: str, seconds: float = 90) -> None:
    """None is found, or soon none is."""
    deadline = time.monotonic() + seconds
    while left := find(mark):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.2)


class Node:
    """A node of a cluster: a Python program and all that it has started.

    Args:
        command: what the program is given.
        env: its environment.
    """

    def __init__(self, command: Sequence[str], env: dict[str, str]) -> None:
        self.mark = new_mark()
        self._process = subprocess.Popen(
            [sys.executable, *command],
            env=env | {MARK: self.mark},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def lives(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def cut(self) -> None:
        """End all of it at once, as a power cut would."""
        while found := processes(self.mark):
            for process in found:
                os.kill(process.pid, signal.SIGKILL)
            if not self.lives():
                break
        self._process.wait(30)
        assert_none(processes, self.mark)

    def stop(self) -> None:
        """End it as its host's service would; nothing of it is left."""
        self._process.terminate()
        self._process.wait(60)
        assert_none(processes, self.mark)


class Cluster:
    """A head, and nodes that come and go.

    Attributes:
        address: HOST:PORT.
        env: of those who connect to it.
    """

    def __init__(self) -> None:
        self.env = environment(
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=secrets.token_hex(32),
            RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # listen on the loopback only
            RAY_USAGE_STATS_ENABLED="0",
            GLOO_SOCKET_IFNAME="lo",
        )
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            self._port = probe.getsockname()[1]
        self.address = f"{LOOPBACK}:{self._port}"
        self._nodes: list[Node] = []

    @property
    def head(self) -> Node:
        """The node that knows the others."""
        return self._nodes[0]

    def begin(self, folder: Path, cpus: int) -> None:
        """Start the head, with its files in this folder."""
        command = [
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            "--disable-usage-stats",
            "--include-dashboard",
            "false",
        ]
        command += ["--head", "--node-ip-address", LOOPBACK, "--port", str(self._port), "--num-cpus", str(cpus)]
        # Ports from Ray's range would be those of the other nodes, too.
        command += ["--min-worker-port", "0", "--max-worker-port", "0", "--object-store-memory", str(128 * 2**20)]
        self._start(*command, "--temp-dir", str(folder))
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((LOOPBACK, self._port)) == 0:
                    return
            assert self.head.lives(), "ray start has ended"
            assert time.monotonic() < deadline, "ray start does not answer"
            time.sleep(0.2)

    def join(self, cpus: int = 1) -> Node:
        """One more node."""
        return self._start(str(Path(__file__).with_name("loopback_node.py")), self.address, str(cpus))

    def stop(self) -> None:
        """End the nodes that are left, the head last."""
        for node in reversed(self._nodes):
            if node.lives():
                node.stop()

    def _start(self, *command: str) -> Node:
        self._nodes.append(Node(command, self.env))
        return self._nodes[-1]


@contextmanager
def started(cpus: int) -> Iterator[Cluster]:
    """A cluster whose head has so many CPUs, for the time of the block; its files are in a folder of its own, and removed."""
    # Sockets have paths of at most 107 characters: not in pytest's folder. Ray opens its folder to everybody: one within ours.
    with tempfile.TemporaryDirectory(prefix="p3o-ray-", ignore_cleanup_errors=True) as private:
        cluster = Cluster()
        try:
            cluster.begin(Path(private) / "ray", cpus)
            yield cluster
        finally:
            cluster.stop()
