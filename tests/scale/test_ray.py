"""RL on workers of Ray Train: equal to one process, whatever is killed; on a cluster that listens on the loopback."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.scale.runs import (
    LONG,
    STEPS,
    assert_equal,
    copy,
    done,
    environment,
    kill_a_worker,
    metrics,
    prepare,
    rl,
    wait_for_checkpoint,
)

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

RUNS = (
    "--set",
    "rl.runs={p3o_v2: {algorithm: p3o_v2}, online_dpo: {algorithm: online_dpo}, "
    "ppo: {algorithm: ppo, training: {critic_learning_rate: 1.0e-3, critic_warmup_steps: 1}}}",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what RL begins from."""
    return prepare(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def short(base: Path) -> Path:
    """Three algorithms on one process."""
    folder = copy(base, "short")
    assert done(folder, *RUNS).returncode == 0
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a cluster that all tests of this file share, and the environment to connect with."""
    env = environment(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # listen on the loopback only
        RAY_USAGE_STATS_ENABLED="0",
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port", str(port)]
    command += ["--num-cpus", "2", "--include-dashboard", "false", "--disable-usage-stats"]
    command += ["--object-store-memory", str(128 * 2**20)]
    with tempfile.TemporaryDirectory(prefix="p3o-ray-", ignore_cleanup_errors=True) as session:
        process = subprocess.Popen(
            [*command, "--temp-dir", session], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + 120
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, "ray start has ended"
                assert time.monotonic() < deadline, "ray start does not answer"
                time.sleep(0.5)
            yield f"127.0.0.1:{port}", env
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def long(base: Path, cluster: tuple[str, dict[str, str]]) -> Path:
    """The undisturbed run on two workers that others must end equal to."""
    folder = copy(base, "long")
    assert done(folder, *LONG, *two_workers(cluster), env=cluster[1]).returncode == 0
    return folder


def two_workers(cluster: tuple[str, dict[str, str]]) -> tuple[str, ...]:
    """Options of a run on the shared cluster."""
    return ("--engine", "ray", "--workers", "2", "--ray-address", cluster[0])


@pytest.mark.parametrize("mode", ["data", "fsdp"])
def test_two_workers_do_what_one_process_does(
    base: Path, short: Path, cluster: tuple[str, dict[str, str]], mode: str
) -> None:
    folder = copy(base, mode)
    result = done(folder, *RUNS, *two_workers(cluster), "--set", f"parallel.mode={mode}", env=cluster[1])
    assert result.returncode == 0, result.stderr
    shared = {"data": "each with the whole models", "fsdp": "sharded"}[mode]
    [told] = [line for line in result.stderr.splitlines() if line.startswith("rl ppo: layout shared")]
    assert told.endswith(f"; 2 processes, {shared}")
    assert_equal(short, folder)
    assert not (folder / ".ray").exists()


def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint_and_nothing_else(
    base: Path, long: Path, cluster: tuple[str, dict[str, str]]
) -> None:
    folder = copy(base, "killed")
    process = subprocess.Popen(
        rl(folder, *LONG, *two_workers(cluster)),
        env=cluster[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_checkpoint(folder, 10, process)
    kill_a_worker(cluster[1]["RAY_AUTH_TOKEN"])
    _, told = process.communicate(timeout=500)
    assert process.returncode == 0, told
    assert "engine: failure 1 (of 3 allowed)" in told
    assert "engine: attempt 2, 2 workers" in told
    assert "rl/p3o_v2: going on after step" in told
    assert_equal(long, folder)


def test_when_no_failure_is_allowed_the_run_says_how_to_go_on(base: Path, cluster: tuple[str, dict[str, str]]) -> None:
    folder = copy(base, "given_up")
    command = rl(folder, *LONG, *two_workers(cluster), "--set", "engine.max_failures=0")
    process = subprocess.Popen(command, env=cluster[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(folder, 5, process)
    kill_a_worker(cluster[1]["RAY_AUTH_TOKEN"])
    _, told = process.communicate(timeout=500)
    assert process.returncode == 2, told
    last = told.splitlines()[-1]
    assert last.startswith("error: engine: workers were lost 1 times, more than engine.max_failures = 0")
    assert last.endswith("go on from the last checkpoint with --resume")


def test_ctrl_c_on_two_workers_then_resume_on_one_process(base: Path, long: Path) -> None:
    """On a cluster that p3o starts by itself; Ctrl-C reaches all processes of the terminal."""
    folder = copy(base, "stopped")
    process = subprocess.Popen(
        rl(folder, *LONG, "--engine", "ray", "--workers", "2"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_checkpoint(folder, 10, process)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 130, told
    assert "error: stopped by SIGINT after step" in told.splitlines()[-1]
    steps = sum(row["stage"] == "rl" for row in metrics(folder))
    assert 10 <= steps < STEPS
    result = done(folder, "--resume", "--engine", "local")
    assert result.returncode == 0, result.stderr
    assert f"rl/p3o_v2: going on after step {steps}" in result.stderr
    assert sum(row["stage"] == "rl" for row in metrics(folder)) == STEPS
    assert_equal(long, folder, until=min(steps + 5, STEPS))
