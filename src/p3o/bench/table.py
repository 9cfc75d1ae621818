"""The benchmark's tables in the terminal; none is wider than 80 columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from p3o.bench.methods import METHODS, PROBLEMS, SHIFTS
from p3o.bench.summary import BASELINE, difference, problem_efficiency


def frontier_table(results: Mapping[str, Any]) -> Group:
    """Efficiency and paired difference to PPO on every problem, and the bandit under shifts; best efficiency first."""
    names = sorted(results["results"], key=lambda name: -_overall(results, name))
    footnote = (
        f"{len(results['seeds'])} seeds; 1 is the Gibbs policy's frontier; ± is the standard deviation over seeds."
    )
    return Group(
        _efficiency_table(results, names),
        Text(),
        _difference_table(results, names),
        Text(),
        _shift_table(results, names),
        Text(),
        Text(footnote),
    )


def _overall(results: Mapping[str, Any], name: str) -> float:
    return float(sum(problem_efficiency(results, name, problem).mean() for problem in PROBLEMS))


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _efficiency_table(results: Mapping[str, Any], names: Sequence[str]) -> Table:
    table = _table("Frontier efficiency", tuple(PROBLEMS))
    for name in names:
        each = [problem_efficiency(results, name, problem) for problem in PROBLEMS]
        table.add_row(METHODS[name].title, *[f"{values.mean():.3f} ±{values.std(ddof=1):.3f}" for values in each])
    return table


def _difference_table(results: Mapping[str, Any], names: Sequence[str]) -> Table:
    table = _table("Minus PPO: mean and 95% interval over paired seeds", tuple(PROBLEMS))
    for name in names:
        if name != BASELINE:
            gaps = [difference(results, name, BASELINE, problem) for problem in PROBLEMS]
            table.add_row(METHODS[name].title, *[_interval(gap) for gap in gaps])
    return table


def _shift_table(results: Mapping[str, Any], names: Sequence[str]) -> Table:
    table = _table("Bandit with per-prompt reward shifts of standard deviation s", [f"s = {shift}" for shift in SHIFTS])
    for name in names:
        shifted = results["summary"]["shift"][name]
        table.add_row(METHODS[name].title, *[f"{shifted[str(shift)]:.3f}" for shift in SHIFTS])
    return table


def _interval(gap: Mapping[str, float]) -> str:
    mean, low, high = (f"{gap[name]:+.3f}".replace("0.", ".", 1) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
