"""The staleness benchmark: who samples in which step, what a lag does not change, and the numbers of its tables."""

import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from p3o.algorithms import make_algorithm
from p3o.bench import staleness
from p3o.bench.bandit import ShiftedBandit
from p3o.bench.methods import METHODS, TASKS, Task, schedule_of
from p3o.bench.problems import Point, Rollout
from p3o.bench.staleness import COMPARED, LAGS, ON, Variant, describe, is_blind, late_arms, measure, variants
from p3o.bench.staleness_report import staleness_chart, staleness_tables
from p3o.bench.train import Arm, Schedule, train
from p3o.bench.tune import read_settings

SHORT = Schedule(samples=256, batch=32, responses=2, epochs=2, minibatches=2, evaluations=8)
BANDIT = partial(ShiftedBandit, shift=0.0)


class Watched(ShiftedBandit):
    """Remembers which parameters sampled and which were evaluated."""

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__(seeds, shift=0.0)
        self.sampled: list[Tensor] = []
        self.evaluated: list[Tensor] = []

    def sample(self, policy: Tensor, prompts: Tensor, responses: int) -> Rollout:
        self.sampled.append(policy.clone())
        return super().sample(policy, prompts, responses)

    def evaluate(self, policy: Tensor) -> Point:
        self.evaluated.append(policy.detach().clone())
        return super().evaluate(policy)


@pytest.mark.parametrize("lags", [(0,), (2,), (0, 1, 3)])
def test_each_arm_samples_by_its_own_policy_of_so_many_steps_ago(lags: tuple[int, ...]) -> None:
    problems: list[Watched] = []

    def build(seeds: Sequence[int]) -> Watched:
        problems.append(Watched(seeds))
        return problems[-1]

    every_step = Schedule(samples=256, batch=32, evaluations=64)
    algorithm = make_algorithm("p3o_v2")
    train(build, [Arm(algorithm, 0.1, lag=lag) for lag in lags], (5,), every_step)
    (problem,) = problems
    assert len(problem.sampled) == 8
    assert len(problem.evaluated) == 9, "before every step and after the last"
    for step, policies in enumerate(problem.sampled):
        for arm, lag in enumerate(lags):
            assert torch.equal(policies[arm], problem.evaluated[max(0, step - lag)][arm])


def test_arms_of_other_lags_do_not_change_an_arm() -> None:
    algorithm = make_algorithm("p3o_v2")
    together = train(BANDIT, [Arm(algorithm, 0.1, lag=lag) for lag in (0, 1, 4)], (5, 6), SHORT)
    for i, lag in enumerate((0, 1, 4)):
        alone = train(BANDIT, [Arm(algorithm, 0.1, lag=lag)], (6,), SHORT)
        assert torch.allclose(together.reward[i, 1], alone.reward[0, 0], atol=1e-6)
    assert not torch.allclose(together.reward[0], together.reward[2], atol=1e-3)


def test_without_a_lag_there_is_nothing_to_correct() -> None:
    algorithm = make_algorithm("p3o_v2")
    curves = train(BANDIT, [Arm(algorithm, 0.1, corrected=corrected) for corrected in (True, False)], (5,), SHORT)
    assert torch.equal(curves.reward[0], curves.reward[1])


@pytest.mark.parametrize("method", COMPARED)
def test_blind_methods_are_those_whose_losses_do_not_read_the_behaviour_policy(method: str) -> None:
    setting, task = read_settings()["bandit_0", method], TASKS["bandit_0"]
    short = Schedule(**{**vars(schedule_of(task, setting)), "samples": 640})
    late = [Variant("corrected", 2), Variant("uncorrected", 2)]
    curves = train(task.build, late_arms(METHODS[method], task, setting, late), (5,), short)
    assert torch.equal(curves.reward[0::2], curves.reward[1::2]) == is_blind(METHODS[method], setting)


def test_online_dpo_is_blind_and_p3o_r_where_its_settings_have_no_clip() -> None:
    chosen = read_settings()
    blind = {(m, t) for m in COMPARED for t in ON if is_blind(METHODS[m], chosen[t, m])}
    assert blind == {("online_dpo", t) for t in ON} | {("p3o_r", "bandit_0"), ("p3o_r", "factorised_80")}


def test_the_kl_stop_of_a_late_step_measures_from_its_beginning() -> None:
    """Measured from the policy that sampled, no late step would make its first update."""
    schedule = Schedule(samples=256, batch=32, responses=2, epochs=4, minibatches=1)
    for lag in (0, 3):
        arm = Arm(make_algorithm("p3o_v2"), 0.3, kl_stop=1e-12, lag=lag)
        assert train(BANDIT, [arm], (5,), schedule).updates == schedule.batches


def test_variants_are_all_lags_corrected_and_not() -> None:
    chosen = read_settings()
    late = variants(METHODS["p3o_v2"], chosen["bandit_0", "p3o_v2"], (0, 1, 2, 4, 8))
    assert [v.lag for v in late if v.correction == "corrected"] == [0, 1, 2, 4, 8]
    assert [v.lag for v in late if v.correction == "uncorrected"] == [1, 2, 4, 8]
    assert [v.lag for v in late if v.correction == "unclipped"] == [0, 8]
    assert variants(METHODS["online_dpo"], chosen["bandit_0", "online_dpo"]) == [
        Variant("corrected", lag) for lag in LAGS
    ]


@pytest.mark.slow
def test_without_a_lag_the_number_is_that_of_the_frontier_benchmark() -> None:
    """The committed run of `p3o bench frontier`, seed by seed."""
    committed = json.loads((Path(__file__).parents[2] / "benchmarks/results/frontier.json").read_text(encoding="utf-8"))
    setting, task = read_settings()["bandit_0", "rloo"], TASKS["bandit_0"]
    late = [Variant("corrected", 0), Variant("corrected", 4)]
    measured = measure("rloo", task, setting, committed["seeds"], late, schedule_of(task, setting))
    np.testing.assert_allclose(measured[0], committed["results"]["rloo"]["bandit_0"]["efficiency"], atol=2e-3)


def test_differences_are_paired_by_seed() -> None:
    late = [Variant("corrected", 0), Variant("corrected", 2), Variant("uncorrected", 2)]
    described = describe(late, np.array([[0.5, 0.7, 0.9], [0.4, 0.6, 0.8], [0.5, 0.6, 0.7]]))
    steady, spread = described["corrected"]["2"]["minus_lag_0"], described["uncorrected"]["2"]["minus_lag_0"]
    assert steady["mean"] == pytest.approx(-0.1)
    assert steady["high"] - steady["low"] == pytest.approx(0.0, abs=1e-12), "the seeds differ, their differences do not"
    assert spread["mean"] == pytest.approx(-0.1)
    assert spread["high"] - spread["mean"] == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)  # t of two degrees
    assert described["corrected"]["0"]["minus_lag_0"]["mean"] == 0.0


def test_the_command_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Task(BANDIT, (0.4, 0.8), (0.07,), 256)
    monkeypatch.setitem(TASKS, "bandit_0", small)
    staleness.main(None, output=tmp_path, methods=("rloo", "online_dpo"), tasks=("bandit_0",))
    record = json.loads((tmp_path / "staleness.json").read_text(encoding="utf-8"))
    cells = record["results"]["bandit_0"]["rloo"]
    assert set(cells) == {"corrected", "uncorrected", "unclipped"}
    assert list(cells["corrected"]) == ["0", "1", "2", "4", "8"]
    assert len(cells["corrected"]["8"]["efficiency"]) == len(record["seeds"]) == 5
    assert set(record["results"]["bandit_0"]["online_dpo"]) == {"corrected"}
    assert (tmp_path / "staleness.svg").read_text(encoding="utf-8").startswith("<svg")


def test_tables_fit_a_terminal_and_the_chart_shows_every_cell() -> None:
    record: dict[str, Any] = {"titles": {"p3o_v2": "P3O-V2, K=2", "online_dpo": "Online DPO, K=2"}, "seeds": [1, 2, 3]}
    chosen, rng = read_settings(), np.random.default_rng(0)
    late = {name: variants(METHODS[name], chosen["bandit_0", name], LAGS) for name in ("p3o_v2", "online_dpo")}
    record["results"] = {"bandit_0": {name: describe(each, rng.random((len(each), 3))) for name, each in late.items()}}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(staleness_tables(record))
    lines = console.export_text().splitlines()
    assert any(line.startswith("P3O-V2, K=2") and line.count("±") == 4 for line in lines)
    assert max(map(len, lines)) <= 80
    rows = staleness_chart(record).to_dict()["data"]["values"]
    assert len(rows) == 5 + 5 + 5, "two curves of the first method and one of the second, each from its start"
