"""Which stages go to workers, and what becomes of them there. In the place of Ray stands a function that does the work here."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.models.families import FAMILIES

from p3o.cli import main
from p3o.distributed import LostProcessError
from p3o.errors import P3OError
from p3o.files import write_jsonl
from p3o.scale import ray_cluster, ray_engine
from p3o.scale.ray_engine import Seat
from p3o.stopping import ask_to_stop
from p3o.training.online import OnlineTrainer
from p3o.training.reward_model import RewardTrainer
from p3o.training.sft import SFTTrainer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CONFIG = """
model: model
data: {demonstrations: demonstrations.jsonl, prompts: prompts.jsonl, heldout_prompts: prompts.jsonl}
threads: 1
device: cpu
sft: {steps: 4, batch_size: 4}
sampling: {prompts: 8, labeller: {kind: function, function: "here_it_is:longer"}}
reward: {train: {steps: 3, batch_size: 4}}
rl:
  training: {steps: 2, prompts_per_step: 2, max_new_tokens: 8}
  runs: {p3o_v2: {algorithm: p3o_v2}}
evaluation: {prompts: 2, every: 2, best_of: []}
checkpoints: {every: 1}
"""
MODULE = """
def longer(prompts, responses_a, responses_b):
    return [1.0 if len(a) >= len(b) else -1.0 for a, b in zip(responses_a, responses_b)]


def reward(prompts, responses):
    return [float(len(response)) for response in responses]
"""
PROMPTS = ["a", "b c d e f g h", "i j", "k l m n o", "p", "a b c", "d e f g", "h i"]
ON_RAY = ("--engine", "ray", "--workers", "2")
STAGES = {"sft", "sample", "reward", "rl", "evaluate", "report"}


class FakeRay:
    """Stands in for Ray: one worker, which is this process, and as many attempts as engine.max_failures allows.

    Attributes:
        told: what was asked of it, in order.
        loses_the_first: whether the first worker is lost before it has done anything.
    """

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.loses_the_first = False

    @contextmanager
    def connected(self, *_: Any) -> Iterator[str]:
        """In the place of ray_engine.connected."""
        self.told.append("connected")
        try:
            yield "the cluster"
        finally:
            self.told.append("left")

    def run_on_ray(self, ray: Any, work: Any, engine: Any, *, progress: Any, **_: Any) -> None:
        """In the place of ray_engine.run_on_ray."""
        assert (ray, self.told.count("connected"), self.told.count("left")) == ("the cluster", 1, 0)
        self.told.append(work.args[1])
        for attempt in range(1 + engine.max_failures):
            try:
                if self.loses_the_first and attempt == 0:
                    lose()
                return work(Seat(0, 1, attempt), progress)
            except LostProcessError:
                progress.print(f"attempt {attempt + 1} was lost")
        raise AssertionError("lost too often")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with config.yaml and what it names; it is the current directory of all tests here, each of which has a run of
    its own there."""
    folder = tmp_path_factory.mktemp("files")
    FAMILIES["llama"].write(folder / "model")
    write_jsonl(folder / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])
    rows = [{"prompt": text, "completion": " ".join(reversed(text))} for text in PROMPTS]
    write_jsonl(folder / "demonstrations.jsonl", rows)
    (folder / "here_it_is.py").write_text(MODULE)
    (folder / "config.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("p3o.pipeline.build_report", lambda path: None)
        patch.setattr("p3o.report.terminal_summary", str)
        yield folder


@pytest.fixture
def ray(files: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """The stand-in."""
    fake = FakeRay()
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: name)
    monkeypatch.setattr(ray_engine, "connected", fake.connected)
    monkeypatch.setattr(ray_engine, "run_on_ray", fake.run_on_ray)
    return fake


@pytest.fixture(scope="module")
def alone(files: Path) -> str:
    """metrics.jsonl of the run without workers."""
    assert main(["run", "--config", "config.yaml", "--name", "alone"]) == 0
    return metrics("alone")


def metrics(name: str) -> str:
    return Path("runs", name, "metrics.jsonl").read_text()


def record(name: str) -> Any:
    return json.loads(Path("runs", name, "run.json").read_text())


def disturb(monkeypatch: pytest.MonkeyPatch, trainer: type, step: int, how: Any) -> None:
    """Call ``how`` before this step of a training, once."""
    calls: list[None] = []
    original = trainer.step  # type: ignore[attr-defined]

    def disturbed(self: Any) -> Any:
        calls.append(None)
        if len(calls) == step:
            how()
        return original(self)

    monkeypatch.setattr(trainer, "step", disturbed)


def lose() -> None:
    raise LostProcessError("another process has gone")


def test_a_run_has_all_its_trainings_done_by_workers_of_one_cluster(ray: FakeRay, alone: str) -> None:
    assert main(["run", "--config", "config.yaml", "--name", "whole", *ON_RAY]) == 0
    assert ray.told == ["connected", ("sft",), ("reward", "rl"), "left"]
    assert metrics("whole") == alone
    assert (record("whole")["status"], set(record("whole")["seconds"])) == ("complete", STAGES)


def test_stage_by_stage_only_what_trains_asks_for_workers(ray: FakeRay, alone: str) -> None:
    assert main(["sft", "--config", "config.yaml", "--name", "staged", *ON_RAY]) == 0
    assert ray.told == ["connected", ("sft",), "left"]
    for stage in ("sample", "reward", "rl", "evaluate"):
        ray.told.clear()
        assert main([stage, "--name", "staged"]) == 0  # the folder knows its engine
        assert ray.told == (["connected", (stage,), "left"] if stage in ("reward", "rl") else [])
    assert metrics("staged") == alone


def test_stages_that_are_skipped_start_no_workers_and_keep_none_apart(
    ray: FakeRay, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--set", "sft=null", "--set", "sampling=null", "--reward-function", "here_it_is:reward")
    assert main(["run", "--config", "config.yaml", "--name", "skipped", *given, *ON_RAY]) == 0
    assert ray.told == ["connected", ("sft", "sample", "reward", "rl"), "left"]
    told = capsys.readouterr().err
    assert all(text in told for text in ("sft: skipped", "sample: skipped", "reward: given")), told
    assert set(record("skipped")["seconds"]) == {"rl", "evaluate", "report"}
    ray.told.clear()
    for stage in ("sample", "reward"):
        assert main([stage, "--name", "skipped"]) == 0
    assert ray.told == []


@pytest.mark.parametrize(
    ("trainer", "step", "begins"),
    [
        (SFTTrainer, 3, "sft: continuing after step 2"),
        (RewardTrainer, 2, "reward: continuing after step 1"),
        (OnlineTrainer, 2, "reward: already done"),
    ],
)
def test_a_lost_worker_costs_any_training_only_what_its_checkpoint_lacks(
    ray: FakeRay,
    alone: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trainer: type,
    step: int,
    begins: str,
) -> None:
    disturb(monkeypatch, trainer, step, lose)
    name = f"lost_{trainer.__name__}"
    assert main(["run", "--config", "config.yaml", "--name", name, *ON_RAY]) == 0
    told = capsys.readouterr().err
    assert told.count("was lost") == 1
    assert begins in told.partition("attempt 1 was lost")[2]
    assert metrics(name) == alone


def test_a_stage_that_is_done_again_begins_anew_though_its_first_worker_was_lost(
    ray: FakeRay, capsys: pytest.CaptureFixture[str]
) -> None:
    """The worker goes before it has begun, while run.json still says that the stage is done."""
    assert main(["sft", "--config", "config.yaml", "--name", "again"]) == 0
    sft = metrics("again")
    ray.loses_the_first = True
    assert main(["sft", "--name", "again", "--overwrite", *ON_RAY]) == 0
    told = capsys.readouterr().err.partition("attempt 1 was lost")[2]
    assert "sft: done in" in told
    assert metrics("again") == sft


def test_ctrl_c_in_fine_tuning_saves_and_another_engine_goes_on(
    ray: FakeRay, alone: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disturb(monkeypatch, SFTTrainer, 2, lambda: ask_to_stop(signal.SIGINT))
    assert main(["run", "--config", "config.yaml", "--name", "stopped", *ON_RAY]) == 130
    assert "stopped by SIGINT after step 2; everything is saved" in capsys.readouterr().err.splitlines()[-1]
    assert ray.told == ["connected", ("sft",), "left"]
    assert record("stopped")["status"] == "interrupted"
    assert main(["run", "--resume", "--name", "stopped", "--engine", "local"]) == 0
    assert "sft: continuing after step 2" in capsys.readouterr().err
    assert metrics("stopped") == alone


def test_a_run_that_is_resumed_starts_workers_for_what_is_left(
    ray: FakeRay, alone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb(monkeypatch, OnlineTrainer, 1, lambda: ask_to_stop(signal.SIGTERM))
    assert main(["run", "--config", "config.yaml", "--name", "resumed", *ON_RAY]) == 143
    ray.told.clear()
    assert main(["run", "--resume", "--name", "resumed"]) == 0
    assert ray.told == ["connected", ("rl",), "left"]
    assert metrics("resumed") == alone


def test_a_mistake_that_a_worker_finds_is_told_when_none_is_left(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mistake() -> None:
        raise P3OError("data: no good")

    disturb(monkeypatch, RewardTrainer, 2, mistake)
    assert main(["run", "--config", "config.yaml", "--name", "mistaken", *ON_RAY]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: data: no good"
    assert ray.told == ["connected", ("sft",), ("reward", "rl"), "left"]
    assert (record("mistaken")["status"], set(record("mistaken")["seconds"])) == ("failed", {"sft", "sample"})
