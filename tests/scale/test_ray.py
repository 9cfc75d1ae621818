"""Workers of Ray: equal to one process, whatever is killed; they listen on the loopback, and leave nothing behind."""

import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.scale.clusters import (
    LOOPBACK,
    MARK,
    Cluster,
    assert_none,
    kill_a_worker,
    listeners,
    processes,
    started,
    workers,
)
from tests.scale.runs import (
    LONG,
    STEPS,
    WHOLE,
    assert_equal,
    begun,
    copy,
    done,
    environment,
    metrics,
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
def short(base: Path) -> Path:
    """Three algorithms on one process."""
    folder = copy(base, "short")
    assert done(folder, *RUNS).returncode == 0
    return folder


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    """One node with two CPUs for all tests of this file."""
    with started(cpus=2) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """The shared cluster, on which nothing trains before and after the test."""
    assert_none(workers, shared.head.mark)
    yield shared
    assert_none(workers, shared.head.mark)


@pytest.fixture(scope="module")
def long(base: Path, shared: Cluster) -> Path:
    """The undisturbed run on two workers that others must end equal to."""
    folder = copy(base, "long")
    assert done(folder, *LONG, *two_workers(shared), env=shared.env).returncode == 0
    return folder


def two_workers(cluster: Cluster) -> tuple[str, ...]:
    """Options of a run on this cluster."""
    return ("--engine", "ray", "--workers", "2", "--ray-address", cluster.address)


def assert_on_loopback(mark: str) -> None:
    """These processes listen on the loopback interface alone; but for the store of PyTorch, which takes no address."""
    found = listeners(mark)
    assert {"raylet", "gcs_server", "ray::RayTrainWorker"} <= {name for name, _ in found}
    elsewhere = [name for name, address in found if address not in (LOOPBACK, f"::ffff:{LOOPBACK}")]
    assert elsewhere == ["ray::RayTrainWorker"]


def test_two_workers_with_shards_do_what_one_process_does(base: Path, short: Path, cluster: Cluster, mark: str) -> None:
    folder = copy(base, "fsdp")
    options = (*RUNS, *two_workers(cluster), "--set", "parallel.mode=fsdp")
    result = done(folder, *options, env=cluster.env | {MARK: mark})
    assert result.returncode == 0, result.stderr
    [told] = [line for line in result.stderr.splitlines() if line.startswith("rl ppo: layout shared")]
    assert told.endswith("; 2 processes, sharded")
    assert_equal(short, folder)
    assert not (folder / ".ray").exists()


def test_two_workers_of_a_whole_run_do_what_one_process_does(tmp_path: Path, cluster: Cluster, mark: str) -> None:
    """Two workers train the SFT model, two others the reward model and the policies; the cluster is connected to once."""
    one, folder = tmp_path / "one", tmp_path / "two"
    result = done(one, *WHOLE, *RUNS, command="run")
    assert result.returncode == 0, result.stderr
    result = done(folder, *WHOLE, *RUNS, *two_workers(cluster), env=cluster.env | {MARK: mark}, command="run")
    assert result.returncode == 0, result.stderr
    told = [line for line in result.stderr.splitlines() if "2 processes" in line or line.startswith("engine: conn")]
    assert [line.partition(":")[0] for line in told] == [
        "engine",
        "sft",
        "reward model",
        "rl p3o_v2",
        "rl online_dpo",
        "rl ppo",
    ]
    assert all(line.endswith("2 processes, each with complete models") for line in told[1:])
    assert_equal(one, folder)
    assert not (folder / ".ray").exists()


def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint_and_nothing_else(
    base: Path, long: Path, cluster: Cluster, mark: str
) -> None:
    folder = copy(base, "killed")
    with begun(folder, *LONG, *two_workers(cluster), env=cluster.env | {MARK: mark}) as process:
        wait_for_checkpoint(folder, 10, process)
        kill_a_worker(cluster.head.mark)
        told, _ = process.communicate(timeout=500)
    assert process.returncode == 0, told
    assert "engine: failure 1 (of 3 allowed)" in told
    assert "engine: attempt 2, 2 workers" in told
    assert "rl/p3o_v2: continuing after step" in told
    assert_equal(long, folder)


def test_when_no_failure_is_allowed_the_run_says_how_to_go_on(base: Path, cluster: Cluster, mark: str) -> None:
    folder = copy(base, "given_up")
    options = (*LONG, *two_workers(cluster), "--set", "engine.max_failures=0")
    with begun(folder, *options, env=cluster.env | {MARK: mark}) as process:
        wait_for_checkpoint(folder, 5, process)
        kill_a_worker(cluster.head.mark)
        told, _ = process.communicate(timeout=500)
    assert process.returncode == 2, told
    last = told.splitlines()[-1]
    assert last.startswith("error: engine: workers were lost 1 times, more than engine.max_failures = 0")
    assert last.endswith("continue from the last checkpoint with --resume")


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_on_two_workers_then_resume_on_one_process(base: Path, long: Path, mark: str) -> None:
    """On a cluster that p3o starts by itself; Ctrl-C reaches all processes of the terminal."""
    folder = copy(base, "stopped")
    with tempfile.TemporaryDirectory(prefix="p3o-") as temporary:
        env = environment(**{MARK: mark, "TMPDIR": temporary})
        with begun(folder, *LONG, "--engine", "ray", "--workers", "2", env=env) as process:
            wait_for_checkpoint(folder, 10, process)
            assert_on_loopback(mark)
            [session] = Path(temporary).glob("p3o-ray-*")
            assert stat.S_IMODE(session.stat().st_mode) == 0o700
            os.killpg(process.pid, signal.SIGINT)
            told, _ = process.communicate(timeout=200)
        assert process.returncode == 130, told
        assert_none(processes, mark)
        assert list(Path(temporary).glob("p3o-*")) == []
    assert "error: stopped by SIGINT after step" in told.splitlines()[-1]
    steps = sum(row["stage"] == "rl" for row in metrics(folder))
    assert 10 <= steps < STEPS
    result = done(folder, "--resume", "--engine", "local")
    assert result.returncode == 0, result.stderr
    assert f"rl/p3o_v2: continuing after step {steps}" in result.stderr
    assert sum(row["stage"] == "rl" for row in metrics(folder)) == STEPS
    assert_equal(long, folder)
