"""Trackers: the rows arrive as they are, extras are asked for by name, and nothing goes out unasked.

TensorBoard is read back in tests/test_cli_real.py too; wandb and trackio are stood in for by modules that record their calls.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from p3o.errors import P3OError
from p3o.training.trackers import Tracker, numbers, open_trackers, series
from p3o.training.tracking import RunFolder

ROWS: list[dict[str, Any]] = [
    {"stage": "rl", "run": "ppo", "algorithm": "ppo", "beta": 0.1, "step": 1, "reward": 0.5, "updates": 3},
    {"stage": "rl", "run": "ppo", "algorithm": "ppo", "beta": 0.1, "step": 2, "reward": 0.75, "updates": 4},
    {"stage": "evaluate", "policy": "sft", "step": 0, "decoding": "greedy", "reward": 1.5, "algorithm": None},
]


class Recorder(ModuleType):
    """Stands in for wandb and trackio: ``init`` gives a run, every call is kept with the environment of that moment."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any]] = []
        self.run = SimpleNamespace(
            define_metric=lambda name, step_metric: self.calls.append(("define", (name, step_metric))),
            log=lambda metrics: self.calls.append(("log", metrics)),
            finish=lambda: self.calls.append(("finish", None)),
        )

    def init(self, **settings: Any) -> SimpleNamespace:
        self.calls.append(("init", settings | {"space": os.environ.get("TRACKIO_SPACE_ID")}))
        return self.run


def recorder(name: str, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    module = Recorder(name)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def open_one(name: str, folder: Path, *, online: bool = False) -> Any:
    return open_trackers([name], folder=folder, online=online, settings={"seed": 3})


def test_names_and_numbers_of_rows() -> None:
    assert [series(row) for row in ROWS] == ["rl/ppo", "rl/ppo", "evaluate/sft/greedy"]
    assert series({"stage": "evaluate", "policy": "ppo", "decoding": "sample"}) == "evaluate/ppo"
    assert series({"stage": "sft", "step": 1}) == "sft"
    assert numbers(ROWS[0]) == {"beta": 0.1, "reward": 0.5, "updates": 3}
    assert numbers({"stage": "x", "ok": True, "text": "a", "none": None}) == {}


def test_a_run_folder_hands_its_rows_on(tmp_path: Path) -> None:
    seen: list[Mapping[str, Any]] = []
    with RunFolder.create(tmp_path, "a", config="", seed=0, threads=1) as folder:
        folder.trackers = [SimpleNamespace(log=seen.append, close=lambda: None)]
        for row in ROWS:
            folder.metrics(row)
    assert seen == ROWS


def test_tensorboard_holds_every_number(tmp_path: Path) -> None:
    with open_one("tensorboard", tmp_path) as trackers:
        assert isinstance(trackers[0], Tracker)
        for row in ROWS:
            trackers[0].log(row)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "rl" / "ppo"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["rl/beta", "rl/reward", "rl/updates"]
    assert [(event.step, event.value) for event in events.Scalars("rl/reward")] == [(1, 0.5), (2, 0.75)]
    greedy = EventAccumulator(str(tmp_path / "tensorboard" / "evaluate" / "sft" / "greedy"))
    greedy.Reload()
    assert [event.value for event in greedy.Scalars("evaluate/reward")] == [1.5]


def test_a_stage_done_again_replaces_its_curve_in_tensorboard(tmp_path: Path) -> None:
    for last in (3, 2):
        with open_one("tensorboard", tmp_path) as [tracker]:
            for step in range(1, last + 1):
                tracker.log({"stage": "sft", "step": step, "loss": 10.0 * last + step})
    events = EventAccumulator(str(tmp_path / "tensorboard" / "sft"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("sft/loss")] == [(1, 21.0), (2, 22.0)]


@pytest.mark.parametrize("online", [False, True])
def test_wandb_is_offline_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, online: bool) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("WANDB_MODE", "online")
    module = recorder("wandb", monkeypatch)
    with open_one("wandb", tmp_path / "first", online=online) as [tracker]:
        tracker.log(ROWS[0])
        tracker.log(ROWS[1])
    (_, settings), *calls = module.calls
    assert settings["mode"] == ("online" if online else "offline")
    assert (settings["project"], settings["name"], settings["dir"]) == ("p3o", "first", str(tmp_path / "first"))
    assert settings["config"] == {"seed": 3}
    assert calls == [
        ("define", ("rl/ppo/*", "rl/ppo/step")),
        ("log", {"rl/ppo/step": 1, "rl/ppo/beta": 0.1, "rl/ppo/reward": 0.5, "rl/ppo/updates": 3}),
        ("log", {"rl/ppo/step": 2, "rl/ppo/beta": 0.1, "rl/ppo/reward": 0.75, "rl/ppo/updates": 4}),
        ("finish", None),
    ]


@pytest.mark.parametrize("online", [False, True])
def test_trackio_sees_no_space_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, online: bool) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/space")
    module = recorder("trackio", monkeypatch)
    with open_one("trackio", tmp_path / "first", online=online) as [tracker]:
        tracker.log(ROWS[2])
    assert module.calls[0][1]["space"] == ("someone/space" if online else None)
    assert os.environ["TRACKIO_SPACE_ID"] == "someone/space"
    assert module.calls[1:] == [
        ("log", {"evaluate/sft/greedy/step": 0, "evaluate/sft/greedy/reward": 1.5}),
        ("finish", None),
    ]


def test_trackers_are_closed_when_the_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = recorder("wandb", monkeypatch)
    with pytest.raises(KeyError), open_one("wandb", tmp_path):
        raise KeyError
    assert module.calls[-1] == ("finish", None)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with (
        pytest.raises(P3OError, match=rf"tracking: {name} is not installed; pip install 'p3o\[{name}\]'"),
        open_one(name, tmp_path),
    ):
        pass


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_an_offline_machine_stays_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = recorder(name, monkeypatch)
    with pytest.raises(P3OError, match="tracking_online: HF_HUB_OFFLINE is set"), open_one(name, tmp_path, online=True):
        pass
    assert module.calls == []
