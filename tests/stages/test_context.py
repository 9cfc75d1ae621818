"""What the trainings of a run share: of the best model that was seen, only this training's."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from p3o.config import RunConfig
from p3o.distributed import World, within
from p3o.errors import P3OError
from p3o.stages.context import RunContext
from p3o.training.checkpoint import State
from p3o.training.progress import Nowhere, Progress
from p3o.training.tracking import RunFolder


class Counter:
    """A trainer that counts."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total

    def step(self) -> dict[str, int | float]:
        self.done += 1
        return {}

    def divert(self, attempt: int) -> None:
        raise AssertionError("nothing fails here")

    def state_dict(self) -> State:
        return {"done": self.done}

    def load_state_dict(self, state: State) -> None:
        self.done = state["done"]


def train(
    output: Path, name: str, best: str, values: Sequence[float], *, until: int | None = None, **more: Any
) -> None:
    """A training whose evaluation after each step is one of these values; ended ``until`` that step as by a kill."""
    resume, keeps = more.get("resume", False), more.get("keeps", True)
    if not (output / "x").exists():
        RunFolder.create(output, "x", config="", seed=0, threads=1)
    config = RunConfig.model_validate({"device": "cpu", "checkpoints": {"best": keeps, "every": 1}})
    run = RunContext(config, RunFolder.open(output, "x"), Progress(Nowhere()), resume=resume)
    save = lambda model, tokenizer, target: (target / "model").write_text(f"{len(values)} values")  # noqa: E731
    run.__dict__ |= {"tokenizer": None, "models": SimpleNamespace(save=save)}

    def tell(step: int, _: Mapping[str, int | float]) -> bool:
        run.keep_best(best, step, {"seen": values[step - 1]}, lambda row: row["seen"], nn.Identity())
        return step == until

    never = lambda row: False  # noqa: E731
    run.fit(name, Counter(len(values)), tell, advance=lambda *_, **__: None, rolls_back=False, owns=never)


def kept(output: Path, best: str) -> tuple[int, float]:
    record = json.loads((output / "x" / "best" / best / "best.json").read_bytes())
    return record["step"], record["value"]


@pytest.mark.parametrize(("name", "best"), [("sft", "sft"), ("reward", "reward_model"), ("rl/ppo", "rl/ppo")])
def test_a_training_done_again_keeps_its_own_best_model(tmp_path: Path, name: str, best: str) -> None:
    """On other data, say, where the loss is higher throughout: the best one so far is that of a model nobody asked for."""
    train(tmp_path, name, best, [-1.0, -0.5, -0.7])
    assert kept(tmp_path, best) == (2, -0.5)
    train(tmp_path, name, best, [-1.4, -1.2])
    assert kept(tmp_path, best) == (2, -1.2)
    assert (tmp_path / "x" / "best" / best / "model").read_text() == "2 values"
    train(tmp_path, name, best, [-1.1], keeps=False)
    assert not (tmp_path / "x" / "best" / best).exists()


def test_a_resumed_training_keeps_the_best_so_far(tmp_path: Path) -> None:
    train(tmp_path, "reward", "reward_model", [0.5, 0.9, 0.6, 0.7], until=3)
    train(tmp_path, "reward", "reward_model", [0.5, 0.9, 0.6, 0.7], resume=True)
    assert kept(tmp_path, "reward_model") == (2, 0.9)


def test_several_processes_cannot_share_a_gpu(tmp_path: Path) -> None:
    """All models would be on one GPU, and nccl refuses it in words of its own."""
    RunFolder.create(tmp_path, "x", config="", seed=0, threads=1)
    config = RunConfig.model_validate({"device": "cuda:1"})
    with within(World(size=2)), pytest.raises(P3OError, match="device: cuda:1 names one GPU, but 2 processes"):
        RunContext(config, RunFolder.open(tmp_path, "x"), Progress(Nowhere()))


@pytest.mark.parametrize("engine", [{}, {"name": "ray", "workers": 2}], ids=["torchrun", "ray"])
def test_what_cannot_sample_ahead_is_refused_before_the_first_stage(tmp_path: Path, engine: dict[str, Any]) -> None:
    RunFolder.create(tmp_path, "x", config="", seed=0, threads=1)
    settings = {"device": "cpu", "embedded": {}, "sft": {}, "parallel": {"mode": "fsdp"}, "engine": engine}
    runs = {"rl": {"training": {"max_staleness": 1}, "runs": {"mine": {"algorithm": "p3o_v2"}}}}
    config = RunConfig.model_validate(settings | runs)
    with within(World(size=1 if engine else 2)):
        run = RunContext(config, RunFolder.open(tmp_path, "x"), Progress(Nowhere()))
        with pytest.raises(P3OError, match=r"rl\.runs\.mine: rl\.training\.max_staleness: with parallel\.mode: fsdp"):
            run.check()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            {"lora": {"save": "merged"}},
            "lora.save: a sharded model cannot be saved merged; choose lora.save: adapter, or parallel.mode: data",
        ),
        (
            {"sft": {"optimiser": "adamw_8bit"}},
            "sft.optimiser: adamw_8bit cannot be sharded; use adamw, or parallel.mode: data",
        ),
        (
            {"reward": {"train": {"optimiser": "adamw_8bit"}}},
            "reward.train.optimiser: adamw_8bit cannot be sharded; use adamw, or parallel.mode: data",
        ),
        (
            {"rl": {"training": {"optimiser": "paged_adamw_8bit"}}},
            "rl.runs.p3o_v2: rl.training.optimiser: paged_adamw_8bit cannot be sharded; use adamw, or parallel.mode: data",
        ),
    ],
    ids=["merged", "sft", "reward", "rl"],
)
def test_what_cannot_be_sharded_is_refused_before_the_first_stage(
    tmp_path: Path, more: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunFolder.create(tmp_path, "x", config="", seed=0, threads=1)
    settings: dict[str, Any] = {"device": "cpu", "embedded": {}, "sft": {}, "parallel": {"mode": "fsdp"}} | more

    def check(size: int = 1, stages: Sequence[str] = ("sft", "sample", "reward", "rl"), **changed: Any) -> None:
        config = RunConfig.model_validate(settings | changed)
        with within(World(size=size)):
            RunContext(config, RunFolder.open(tmp_path, "x"), Progress(Nowhere()), stages).check()

    for changed in ({"engine": {"name": "ray", "workers": 2}}, {"parallel": {"mode": "fsdp", "processes": 2}}):
        with pytest.raises(P3OError) as error:
            check(**changed)
        assert str(error.value) == told
    with pytest.raises(P3OError) as error:
        check(2)
    assert str(error.value) == told
    check()
    check(2, parallel={"mode": "data"})
    check(2, stages=["sample", "evaluate"])
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun has it when --dry-run asks
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(P3OError) as error:
        check()
    assert str(error.value) == told
