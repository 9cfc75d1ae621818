"""``p3o bench frontier`` end to end, on a table cut down to three methods and a few batches."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from p3o.bench import frontier
from p3o.bench.factorised import Factorised
from p3o.bench.methods import METHODS, TASKS, tuned_on


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three methods, two batches, short factorised responses, no child processes (they would read the whole table again)."""
    methods = dict(METHODS)
    for name in set(METHODS) - {"ppo", "ppo_replay", "p3o_r"}:
        del METHODS[name]
    for name, task in TASKS.items():
        build = partial(Factorised, length=3) if name.startswith("factorised") else task.build
        monkeypatch.setitem(TASKS, name, replace(task, build=build, samples=128, betas=task.betas[:1]))
    monkeypatch.setattr(frontier, "EVALUATION_SEEDS", (1, 2))

    def one_after_another(work: Callable[[Any], Any], jobs: Sequence[Any], *_: object) -> list[Any]:
        return [work(job) for job in jobs]

    monkeypatch.setattr(frontier, "_in_parallel", one_after_another)
    yield
    METHODS.clear()  # in the old order, in which tables are shown
    METHODS.update(methods)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_main_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frontier.main(tmp_path / "frontier.json", full=False, output=tmp_path / "out")
    results = json.loads((tmp_path / "frontier.json").read_text())
    assert results["seeds"] == [1, 2]
    assert set(results["results"]) == {"ppo", "ppo_replay", "p3o_r"}
    assert results["summary"]["best_relative"]["name"] == "p3o_r"  # the only relative one of the three
    shift = results["summary"]["shift"]["p3o_r"]
    assert shift["0"] == shift["1"] == shift["10"] == shift["100"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "frontier.json",
        "frontier.csv",
        "frontier.svg",
        "frontier.png",
    }
    assert "P3O-R" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_full_repeats_the_sweep_and_runs_what_it_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontier, "FULL_EVALUATION_SEEDS", (1, 2, 3))
    frontier.main(None, full=True, output=tmp_path)
    results = json.loads((tmp_path / "frontier.json").read_text())
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert results["seeds"] == [1, 2, 3]
    tuned = {(row["task"], row["method"]): row["setting"] for row in settings["chosen"]}
    assert set(tuned) == {(task, method) for method in METHODS for task in TASKS if tuned_on(method, task) == task}
    for (task, method), setting in tuned.items():
        rows = [row for row in settings["sweep"] if (row["task"], row["method"]) == (task, method)]
        assert max(rows, key=lambda row: row["mean"])["mean"] == next(
            row["mean"] for row in rows if row["setting"] == setting
        )
        assert results["results"][method][task]["setting"]["learning_rate"] == setting["learning_rate"]
