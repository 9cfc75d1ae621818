"""What is said of an engine, what is refused, and what reaches Ray; no Ray is started."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from p3o.cli import main
from p3o.cli.engine import on_workers, require_one_process
from p3o.cli.settings import Asked, resolve
from p3o.config import RunConfig
from p3o.config_loading import load_config
from p3o.distributed import LostProcessError
from p3o.errors import P3OError
from p3o.scale import ray_cluster, ray_engine
from p3o.scale.ray_cluster import LOOPBACK, _environment, _reach, cluster
from p3o.scale.ray_config import RECOUNT_SECONDS, EngineConfig
from p3o.scale.ray_engine import LostWorkersError, _explained
from p3o.scale.ray_post import Lull, Outcome, Post, Teller, in_words, stops_when_asked
from p3o.stopping import ask_to_stop, note_signals
from p3o.training.progress import Progress


def settings(*overrides: str) -> RunConfig:
    """A configuration with these settings of the engine."""
    return load_config(None, ["model=somewhere", *overrides], RunConfig)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine={workers: 2}"], "workers: 2 workers need an engine that starts them"),
        (["engine={address: 'a:1'}"], "address: only name: ray"),
        (["engine={name: ray, workers: 2, min_workers: 3}"], "min_workers: 3 is more than workers: 2"),
        (["engine={name: slurm}"], "'engine.name'"),
        (["engine={name: ray, workers: 0}"], "'engine.workers'"),
        (["engine={name: ray, start_seconds: 0}"], "'engine.start_seconds'"),
        (["engine={name: ray, worker: 2}"], "did you mean 'workers'"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(P3OError, match=message):
        settings(*overrides)


def test_resources_of_a_worker_are_in_rays_words() -> None:
    assert EngineConfig().resources_per_worker == {"CPU": 1}
    engine = EngineConfig(name="ray", cpus_per_worker=4, gpus_per_worker=0.5)
    assert engine.resources_per_worker == {"CPU": 4, "GPU": 0.5}


@pytest.mark.parametrize(
    ("name", "stages", "elsewhere"),
    [
        ("local", None, False),
        ("ray", None, True),
        ("ray", ["sft"], True),
        ("ray", ["reward"], True),
        ("ray", ["rl"], True),
        ("ray", ["sample"], False),
        ("ray", ["evaluate"], False),
    ],
)
def test_only_ray_takes_stages_away_and_only_those_that_train(
    monkeypatch: pytest.MonkeyPatch, name: str, stages: list[str] | None, elsewhere: bool
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(ray_cluster, "find_spec", lambda package: asked.append(package) or package)
    with on_workers(settings(f"engine={{name: {name}}}"), stages, resume=False) as workers:
        assert (workers is not None) == bool(asked) == elsewhere


@pytest.mark.parametrize("command", ["run", "sft", "reward", "rl"])
def test_without_ray_there_is_one_line_that_tells_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert main([command, "--config", "demo_quick", "--name", "x", "--engine", "ray", "--workers", "2"]) == 2
    assert (
        capsys.readouterr().err == "error: engine ray: the package ray is not installed; run: pip install 'p3o[ray]'\n"
    )
    assert not (tmp_path / "runs" / "x").exists()


def test_workers_without_an_engine_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rl", "--config", "demo_quick", "--workers", "2"]) == 2
    assert "workers: 2 workers need an engine that starts them; use name: ray (--engine ray)" in capsys.readouterr().err


def asked(folder: Path, **more: Any) -> Asked:
    """`p3o rl` on the run of this folder."""
    common: dict[str, Any] = {"config": None, "overrides": (), "given": {}, "name": folder.name, "overwrite": False}
    return Asked("rl", **(common | {"output": folder.parent} | more))


@pytest.fixture
def on_two_workers(tmp_path: Path) -> Path:
    """The folder of a run that was begun on two workers of a cluster."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.yaml").write_text(
        "name: x\nmodel: m\ndata: {prompts: p.jsonl}\nreward: {function: 'a:b'}\n"
        "engine: {name: ray, workers: 2, address: 'head:6379'}\n"
    )
    (tmp_path / "x" / "run.json").write_text('{"seconds": {}}')
    return tmp_path / "x"


def test_the_engine_of_a_folder_stays_and_local_forgets_all_of_it(on_two_workers: Path) -> None:
    assert resolve(asked(on_two_workers)).settings.engine.workers == 2
    assert resolve(asked(on_two_workers, given={"engine": "local"})).settings.engine == EngineConfig()


def test_a_resumed_run_may_have_another_engine_and_nothing_else(on_two_workers: Path) -> None:
    resumed = resolve(asked(on_two_workers, resume=True))
    assert resumed.settings.engine == EngineConfig(name="ray", workers=2, address="head:6379")
    assert resolve(asked(on_two_workers, resume=True, given={"engine": "local"})).settings.engine == EngineConfig()
    assert resolve(asked(on_two_workers, resume=True, given={"workers": 4})).settings.engine.workers == 4
    with pytest.raises(P3OError, match="seed"):
        resolve(asked(on_two_workers, resume=True, given={"seed": 1, "engine": "local"}))


def test_ray_under_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    require_one_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(P3OError, match="2 processes were already started here"):
        require_one_process()


@pytest.mark.parametrize("address", ["nowhere", "host:", ":1", "host:0", "host:99999", "host:x", "ray://host:10001"])
def test_an_address_has_a_host_and_a_port(address: str) -> None:
    with pytest.raises(P3OError, match="is not HOST:PORT of a Ray head"):
        _reach(address, 1.0)


def test_nobody_there_is_told_at_once() -> None:
    pytest.importorskip("ray")
    engine = EngineConfig(name="ray", address=f"{LOOPBACK}:1")
    with (
        pytest.raises(P3OError, match=r"no Ray head answers at 127.0.0.1:1 .*ray start --head --port 1"),
        cluster(engine),
    ):
        pass


def test_a_call_of_rays_that_was_left_alone_has_ended_when_the_cluster_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = threading.Event()

    @contextmanager
    def leaving(engine: EngineConfig) -> Iterator[None]:
        yield
        gone.set()

    def call() -> None:
        assert gone.wait(20)
        time.sleep(0.2)  # what notices it needs a moment

    monkeypatch.setattr(ray_engine, "cluster", leaving)
    with ray_engine.connected(EngineConfig(name="ray"), Progress(Teller(None), terminal=False)):
        fit = ray_engine._Fit(call)
        fit.start()
    assert not fit.is_alive()
    assert fit.error is None


def test_the_users_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("P3O_ONE", "theirs")
    monkeypatch.delenv("P3O_TWO", raising=False)
    with _environment({"P3O_ONE": "ours", "P3O_TWO": "ours"}):
        assert (os.environ["P3O_ONE"], os.environ["P3O_TWO"]) == ("theirs", "ours")
    assert (os.environ["P3O_ONE"], "P3O_TWO" in os.environ) == ("theirs", False)


def test_the_post_keeps_lines_once_and_the_first_outcome() -> None:
    post = Post()
    assert [post.attempt(), post.attempt()] == [0, 1]
    post.say("one\ntwo")
    post.finish(Outcome("mistake", "first"))
    post.finish(Outcome("stopped", "second", 15))
    news = post.collect()
    assert news.lines == ["one", "two"]
    assert news.outcome == Outcome("mistake", "first")
    assert post.collect().lines == []
    assert post.stop_asked() is None
    post.ask_to_stop(signal.SIGTERM)
    assert post.stop_asked() == signal.SIGTERM


def test_silence_is_told_once_in_a_while_and_again_after_work() -> None:
    lull = Lull(10)
    told = {seconds: lull.due(seconds) for seconds in (1, 9, 10, 11, 19, 20, 0.2, 8, 12)}
    assert [seconds for seconds, due in told.items() if due] == [10, 20, 12]


def test_only_an_elastic_run_plans_again_from_a_new_count_of_nodes() -> None:
    fixed, elastic = EngineConfig(name="ray", workers=2), EngineConfig(name="ray", workers=2, min_workers=1)
    assert (fixed.is_elastic, fixed.room_seconds) == (False, 180)
    assert (elastic.is_elastic, elastic.room_seconds) == (True, RECOUNT_SECONDS)
    assert not EngineConfig(name="ray", workers=2, min_workers=2).is_elastic
    assert elastic.model_copy(update={"start_seconds": 5}).room_seconds == 5


def test_a_failure_is_told_in_a_line() -> None:
    assert in_words(RuntimeError("Traceback (most recent call last):\n  File x\nKeyError: 'a'\n")) == "KeyError: 'a'"
    unanswered = RuntimeError("A worker health check failed.\nWorker(...)")
    assert in_words(unanswered) == "A worker health check failed."
    unanswered.health_check_failure = RuntimeError("The actor died\nclass_name: W")  # type: ignore[attr-defined]
    assert in_words(unanswered) == "The actor died"
    assert in_words(RuntimeError()) == "RuntimeError"


def test_a_lost_worker_is_told_apart_from_a_mistake_of_ours() -> None:
    exceptions = pytest.importorskip("ray.exceptions")
    from ray.train import WorkerGroupError

    engine = EngineConfig(name="ray", max_failures=0)
    unanswered = RuntimeError("A worker health check failed.")
    unanswered.health_check_failure = exceptions.RayActorError()  # type: ignore[attr-defined]
    left_behind = RuntimeError("Traceback\np3o.distributed.world.LostProcessError: another process has gone")
    for found in (left_behind, LostProcessError("another process has gone")):  # Ray may send either
        told = _explained(WorkerGroupError("", {0: found, 1: unanswered}), engine)
        assert isinstance(told, LostWorkersError)
        assert "last: worker 1: The actor" in str(told)
    ours = WorkerGroupError("", {0: left_behind, 1: RuntimeError("Traceback\nKeyError: 'a'")})
    assert _explained(ours, engine) is ours


def test_progress_reaches_the_driver_in_whole_lines() -> None:
    said: list[str] = []
    teller = Teller(said.append)
    Progress(teller, terminal=False).print("rl: half done")
    teller.write("no end")
    teller.flush()
    assert said == ["rl: half done"]
    Progress(Teller(None), terminal=False).print("to nobody")


def test_a_training_in_a_thread_hears_the_wish_to_stop() -> None:
    wishes: list[int | None] = [None, signal.SIGTERM]
    idle: list[int] = []
    heard: list[Any] = []

    def train() -> None:
        with note_signals() as asked, stops_when_asked(lambda: wishes.pop(0) if wishes else None, idle.append):
            deadline = time.monotonic() + 20
            while not asked and time.monotonic() < deadline:
                time.sleep(0.01)
            heard.extend(asked)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert (heard, idle) == ([signal.SIGTERM], [])


def test_where_nothing_trains_the_wish_is_answered_by_somebody_else() -> None:
    idle: list[int] = []
    answered = threading.Event()

    def answer(number: int) -> None:
        idle.append(number)
        answered.set()

    with stops_when_asked(lambda: signal.SIGINT, answer):
        assert answered.wait(20)
    assert idle[0] == signal.SIGINT
    assert not ask_to_stop(signal.SIGINT)


def test_a_driver_that_has_gone_is_asked_no_more() -> None:
    asked = threading.Event()

    def gone() -> int | None:
        asked.set()
        raise ConnectionError

    with stops_when_asked(gone, lambda number: None):
        assert asked.wait(20)
