"""Efficiency, intervals, summary and files of the frontier benchmark, against cases worked out by hand."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

from p3o.bench.bandit import ShiftedBandit
from p3o.bench.efficiency import (
    Limit,
    efficiencies,
    efficiency_of_optima,
    frontier_efficiency,
    limits,
    objective_ratio,
    paired_interval,
)
from p3o.bench.methods import METHODS, TASKS, Setting
from p3o.bench.results import assemble, check_writable, write
from p3o.bench.summary import summarise
from p3o.bench.table import frontier_table
from p3o.bench.train import Curves
from p3o.bench.tune import for_all_tasks, read_settings
from p3o.errors import P3OError


def limit() -> Limit:
    kl = np.linspace(0, 4, 400)
    return Limit(1.0, kl, 2.0 * np.sqrt(kl))


def test_the_limit_itself_has_efficiency_one_and_half_the_gain_one_half() -> None:
    ours = limit()
    assert frontier_efficiency(ours.kl, 1.0 + ours.gain, ours) == pytest.approx(1.0, abs=1e-6)
    assert frontier_efficiency(ours.kl, 1.0 + ours.gain / 2, ours) == pytest.approx(0.5, abs=1e-6)


def test_one_point_counts_by_its_chord_and_then_stays_flat() -> None:
    ours = limit()
    gain = np.minimum(ours.grid, 1.0) * 1.5
    expected = float(np.mean(gain / (2 * np.sqrt(ours.grid))))
    assert frontier_efficiency(np.array([0.0, 1.0]), np.array([1.0, 2.5]), ours) == pytest.approx(expected, rel=1e-3)


def test_gibbs_policies_as_curves_are_efficient_and_optimal() -> None:
    seeds, betas = (1, 2), (0.2, 0.5)
    problem = ShiftedBandit(seeds, 0.0)
    start = problem.evaluate(problem.initial_policy())
    points = [start, *(problem.gibbs(beta) for beta in np.geomspace(50, 0.2, 60))]
    kl, reward = (torch.stack([getattr(point, name) for point in points], -1) for name in ("kl", "reward"))
    last = [problem.gibbs(beta) for beta in betas]
    curves = Curves(
        torch.arange(62),
        torch.stack([torch.cat([reward, point.reward.unsqueeze(-1)], -1) for point in last]),
        torch.stack([torch.cat([kl, point.kl.unsqueeze(-1)], -1) for point in last]),
        torch.zeros(2, 2),
        torch.zeros(2, 2),
    )
    build = lambda seeds: ShiftedBandit(seeds, 0.0)  # noqa: E731
    assert efficiencies(build, curves, seeds, betas) == pytest.approx(np.ones((1, 2)), abs=2e-3)
    assert objective_ratio(build, curves, seeds, betas) == pytest.approx(np.ones((2, 2)), abs=1e-9)
    assert len(limits(problem, 0.2)) == 2


def test_optima_alone_are_efficient_where_they_are_dense_and_count_by_their_chords_where_they_are_not() -> None:
    build = lambda seeds: ShiftedBandit(seeds, 0.0)  # noqa: E731
    dense = efficiency_of_optima(build, (1, 2), tuple(np.geomspace(50, 0.2, 60)))
    assert dense == pytest.approx(np.ones(2), abs=2e-3)
    one = build((1,)).gibbs(0.2)
    limit = limits(build((1,)), 0.2)[0]
    chord = (one.reward.item() - limit.reference_reward) * limit.grid / one.kl.item()
    alone = efficiency_of_optima(build, (1,), (0.2,))
    assert alone == pytest.approx([np.mean(chord / limit.gain_at(limit.grid))], rel=1e-6)


def test_paired_interval_is_scipys() -> None:
    differences = np.array([0.1, 0.2, 0.15, 0.05])
    ours = paired_interval(differences)
    low, high = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert (ours.mean, ours.low, ours.high) == pytest.approx((0.125, low, high))


def fake_results() -> dict[str, Any]:
    seeds = (1, 2, 3)
    rank = {name: i for i, name in enumerate(METHODS)}
    measured = [
        {
            "method": method,
            "task": task,
            "efficiency": [0.5 + 0.02 * rank[method] + 0.01 * seed for seed in seeds],
            "kl": [0.5, 1.0],
            "gain": [0.4, 0.6],
            "gibbs_gain": [0.8, 1.0],
            "objective": {"0.1": 0.9},
            "updates": 10.0,
            "responses_learned": 100.0,
        }
        for method in METHODS
        for task in TASKS
    ]
    chosen = {(task, method): Setting(0.1) for task in TASKS for method in METHODS}
    results = assemble(measured, chosen, seeds, dict.fromkeys(TASKS, 0.95), full=False)
    return results | {"summary": summarise(results)}


def test_summary_has_the_agreed_form_and_numbers() -> None:
    summary = fake_results()["summary"]
    assert set(summary) == {"best_relative", "shift"}
    best = summary["best_relative"]
    assert best["name"] == "p3o_r"
    assert set(best) == {"name", "efficiency", "minus_ppo", "minus_ppo_equal_replay"}
    gap = 0.02 * (list(METHODS).index("p3o_r") - list(METHODS).index("ppo"))
    for field in ("minus_ppo", "minus_ppo_equal_replay"):
        assert set(best[field]) == {"bandit", "sequence", "factorised"}
    assert best["minus_ppo"]["sequence"] == pytest.approx({"mean": gap, "low": gap, "high": gap})
    assert set(summary["shift"]) == set(METHODS)
    assert set(summary["shift"]["ppo"]) == {"0", "1", "10", "100"}


def test_files_and_table(tmp_path: Path) -> None:
    results = fake_results()
    write(results, tmp_path / "other.json", tmp_path)
    assert json.loads((tmp_path / "frontier.json").read_text()) == json.loads((tmp_path / "other.json").read_text())
    rows = (tmp_path / "frontier.csv").read_text().splitlines()
    assert rows[0] == "method,task,seed,efficiency"
    assert len(rows) == 1 + len(METHODS) * len(TASKS) * 3
    assert "P3O-R" in (tmp_path / "frontier.svg").read_text()


def test_the_table_is_whole_in_80_columns() -> None:
    results = fake_results()
    with StringIO() as file:
        Console(width=80, file=file).print(frontier_table(results))
        lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    row = next(line for line in lines if line.startswith("P3O-V2, K=8"))
    mean = np.mean(results["results"]["p3o_v2_k8"]["sequence"]["efficiency"])
    assert f"{mean:.3f} ±0.010" in row
    gaps = [line for line in lines if line.startswith("P3O-V2, K=8") and "[" in line]
    gap = 0.02 * (list(METHODS).index("p3o_v2_k8") - list(METHODS).index("ppo"))
    assert f"{gap:+.3f}".replace("0.", ".") in gaps[0]


def test_an_impossible_folder_is_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(P3OError, match="choose another folder"):
        check_writable(None, tmp_path / "file" / "below")


def test_settings_are_there_for_every_method_and_task_and_come_from_the_sweep() -> None:
    settings = read_settings()
    assert set(settings) == {(task, method) for task in TASKS for method in METHODS}
    assert for_all_tasks(settings) == settings
