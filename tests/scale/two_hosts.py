"""Two hosts on one machine: network namespaces joined by a virtual cable, which can be cut. Needs root and iproute2.

`python -m tests.scale.two_hosts` runs P3O undisturbed on one process, on both hosts by Ray Train and by torchrun, and on Ray
with one host cut off in the middle, for a moment and for long; it prints what was measured, as docs/scale.md shows it.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.scale.runs import LONG, Listener, assert_equal, copy, environment, metrics, prepare, rl, wait_for_checkpoint

CABLE = "eth0"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT, MEETING_PORT = 6379, 29500


def refusal() -> str | None:
    """Why this machine cannot have virtual hosts; None if it can."""
    if shutil.which("ip") is None:
        return "needs the command ip (Debian: iproute2)"
    name = f"p3o-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode != 0:
        return f"network namespaces are not allowed here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


class Host:
    """A network namespace with an address of its own, and what runs in it."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.inside = ["ip", "netns", "exec", name]

    def cable(self, state: str) -> None:
        """Take the interface "up" or "down"."""
        _do("ip", "-n", self.name, "link", "set", CABLE, state)

    def clear(self) -> None:
        """End what still runs on it."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        for pid in found.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def start(self, command: Sequence[str], env: dict[str, str], log: Path | None = None) -> subprocess.Popen[str]:
        """A process on this host, with its output in a file, or piped."""
        if log is None:
            return subprocess.Popen(
                [*self.inside, *command], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        with log.open("a") as file:
            return subprocess.Popen([*self.inside, *command], env=env, stdout=file, stderr=file, text=True)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts with a cable between them, gone when the block ends."""
    names = [f"p3o-{os.getpid()}-{letter}" for letter in "ab"]
    hosts = [Host(name, address) for name, address in zip(names, ADDRESSES, strict=True)]
    with ExitStack() as stack:
        for host in hosts:
            _do("ip", "netns", "add", host.name)
            stack.callback(_do, "ip", "netns", "del", host.name)
            stack.callback(host.clear)
        _do("ip", "-n", names[0], "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", names[1])
        for host in hosts:
            _do("ip", "-n", host.name, "address", "add", f"{host.address}/24", "dev", CABLE)
            _do("ip", "-n", host.name, "link", "set", "lo", "up")
            host.cable("up")
        yield hosts[0], hosts[1]


@contextmanager
def ray_cluster(hosts: tuple[Host, Host], folder: Path, **switches: str) -> Iterator[dict[str, str]]:
    """A Ray cluster with one CPU on each host. The second host's node is started again when it ends, as a service would be.

    Gives the environment of those that connect to it.
    """
    env = environment(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_USAGE_STATS_ENABLED="0",
        GLOO_SOCKET_IFNAME=CABLE,
        **switches,
    )
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1", "--disable-usage-stats"]
    ray += ["--object-store-memory", str(128 * 2**20)]
    head, node = hosts
    over = threading.Event()
    running: list[subprocess.Popen[str]] = []

    def keep_node() -> None:
        command = [*ray, "--address", f"{head.address}:{PORT}", "--node-ip-address", node.address]
        while not over.is_set():
            process = node.start(command, env, folder / "node.log")
            running.append(process)
            while process.poll() is None and not over.wait(0.5):
                pass
            over.wait(2)

    head_options = ["--head", "--port", str(PORT), "--node-ip-address", head.address, "--include-dashboard", "false"]
    # Sockets have paths of at most 107 characters. Ray opens its folder to everybody: one within ours.
    with tempfile.TemporaryDirectory(prefix="p3o-ray-", ignore_cleanup_errors=True) as private:
        running.append(head.start([*ray, *head_options, "--temp-dir", f"{private}/ray"], env, folder / "head.log"))
        keeper = threading.Thread(target=keep_node)
        keeper.start()
        try:
            yield env
        finally:
            over.set()
            keeper.join()
            for process in reversed(running):
                process.terminate()
            for process in running:
                process.wait(60)


def on_ray(hosts: tuple[Host, Host], folder: Path, env: dict[str, str], *more: str) -> subprocess.Popen[str]:
    """`p3o rl` on the first host, with a worker on each."""
    address = f"{hosts[0].address}:{PORT}"
    command = rl(folder, *LONG, "--engine", "ray", "--workers", "2", "--ray-address", address, *more)
    return hosts[0].start(command, env)


def on_torchrun(hosts: tuple[Host, Host], folder: Path) -> list[subprocess.Popen[str]]:
    """`p3o rl` by torchrun, one process on each host."""
    run = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    run += ["--rdzv-endpoint", f"{hosts[0].address}:{MEETING_PORT}", "--rdzv-id", "p3o"]
    program = rl(folder, *LONG)[1:]
    # Who keeps the store is guessed from host names otherwise, and these hosts share theirs.
    keeps = {hosts[0]: "true", hosts[1]: "false"}
    return [
        host.start(
            [sys.executable, *run, "--rdzv-conf", f"is_host={keeps[host]}", "--local-addr", host.address, *program],
            environment(GLOO_SOCKET_IFNAME=CABLE),
        )
        for host in hosts
    ]


def finished(process: subprocess.Popen[str], seconds: float = 540) -> str:
    """What it printed; it must have succeeded."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output
    return output


def cut_off(host: Host, seconds: float) -> None:
    """No packet to or from this host for a while."""
    host.cable("down")
    time.sleep(seconds)
    host.cable("up")


def measure(folder: Path, cuts: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Every scenario, with its seconds; each must end equal to the one of one process."""
    base = prepare(folder)
    alone = copy(base, "alone")
    began = time.monotonic()
    subprocess.run(rl(alone, *LONG), env=environment(), check=True, capture_output=True)
    yield {"run": "one process", "seconds": round(time.monotonic() - began)}
    with two_hosts() as hosts:
        spread = copy(base, "torchrun")
        began = time.monotonic()
        for process in on_torchrun(hosts, spread):
            finished(process)
        seconds = round(time.monotonic() - began)
        yield {"run": "torchrun, two hosts", "seconds": seconds, "largest difference": assert_equal(alone, spread)}
        with ray_cluster(hosts, folder) as env:
            for cut in (0.0, *cuts):
                called = copy(base, f"cut{cut:g}")
                began = time.monotonic()
                process = on_ray(hosts, called, env, "--set", "parallel.timeout_minutes=1")
                listener = Listener(process)
                events: dict[str, float] = {}
                if cut:
                    wait_for_checkpoint(called, 10, process)
                    events["cut"] = round(time.monotonic() - began)
                    cut_off(hosts[1], cut)
                    events["back"] = round(time.monotonic() - began)
                told = listener.told()
                yield {
                    "run": f"Ray, two hosts, second cut off for {cut:g} s" if cut else "Ray, two hosts",
                    "seconds": round(time.monotonic() - began),
                    "largest difference": assert_equal(alone, called),
                    "steps": sum(row["stage"] == "rl" for row in metrics(called)),
                    "told": told,
                } | events


def _do(*command: str) -> None:
    subprocess.run(command, check=True)


def main() -> None:
    """Measure and print, a line of JSON for each scenario."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--cuts", type=float, nargs="*", default=[5.0, 90.0], help="seconds that the second host is away"
    )
    parser.add_argument("--folder", type=Path, help="where to work; otherwise a folder that is removed")
    options = parser.parse_args()
    if reason := refusal():
        raise SystemExit(reason)
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for row in measure(folder, options.cuts):
            print(json.dumps(row, indent=2), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
