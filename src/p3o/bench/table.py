"""The benchmark's table in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from p3o.bench.methods import METHODS, PROBLEMS, SHIFTS
from p3o.bench.summary import BASELINE, difference, problem_efficiency


def frontier_table(results: Mapping[str, Any]) -> Group:
    """Efficiency and paired difference to PPO on every problem, and the bandit under shifts; best efficiency first."""
    names = sorted(results["results"], key=lambda name: -_overall(results, name))
    return Group(_efficiency_table(results, names), Text(), _shift_table(results, names), Text(_footnote(results)))


def _overall(results: Mapping[str, Any], name: str) -> float:
    return float(sum(problem_efficiency(results, name, problem).mean() for problem in PROBLEMS))


def _efficiency_table(results: Mapping[str, Any], names: list[str]) -> Table:
    table = Table(
        title="Frontier efficiency, and minus PPO (mean, 95% interval over paired seeds)", title_justify="left"
    )
    table.add_column("method", no_wrap=True)
    for problem in PROBLEMS:
        table.add_column(problem, justify="right", no_wrap=True)
        table.add_column("− PPO", justify="right", no_wrap=True)
    for name in names:
        cells = []
        for problem in PROBLEMS:
            values = problem_efficiency(results, name, problem)
            cells.append(f"{values.mean():.3f} ±{values.std(ddof=1):.3f}")
            gap = difference(results, name, BASELINE, problem)
            cells.append("" if name == BASELINE else f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]")
        table.add_row(METHODS[name].title, *cells)
    return table


def _shift_table(results: Mapping[str, Any], names: list[str]) -> Table:
    table = Table(title="Bandit with per-prompt reward shifts of standard deviation s", title_justify="left")
    table.add_column("method", no_wrap=True)
    for shift in SHIFTS:
        table.add_column(f"s = {shift}", justify="right")
    for name in names:
        shifted = results["summary"]["shift"][name]
        table.add_row(METHODS[name].title, *[f"{shifted[str(shift)]:.3f}" for shift in SHIFTS])
    return table


def _footnote(results: Mapping[str, Any]) -> str:
    return f"{len(results['seeds'])} seeds; 1 is the Gibbs policy's frontier; ± is the standard deviation over seeds."
