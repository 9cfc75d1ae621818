"""The last table in the terminal: what the report says, in one screen."""

from pathlib import Path

from rich import box
from rich.table import Table

from p3o.report.frontiers import judge, value_of
from p3o.report.numbers import number, percent, with_error
from p3o.report.palette import page_palette
from p3o.report.reading import read_run
from p3o.report.rundata import Evaluation, RunData
from p3o.report.tables import decoding_name, policy_name


def terminal_summary(run: Path) -> Table:
    """A table of the SFT yardsticks and every trained policy at its last step.

    Columns: (proxy) reward, gold reward where it exists, KL in nats per response (full-vocabulary estimator), tokens, and
    the win rate against SFT samples with its 95 % interval.

    Raises:
        P3OError: if a file of the run is missing or garbled.
    """
    data = read_run(run)
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"{data.info.name}: final policies on held-out prompts",
        title_justify="left",
    )
    table.add_column("policy", no_wrap=True)
    for head in _heads(data):
        table.add_column(head, justify="right", no_wrap=True)
    rows = [row for row in data.evaluations if row.algorithm is None]
    trained = [row for policy in data.trained_policies if (row := data.last(policy))]
    for row in rows:
        table.add_row(*_cells(data, row))
    if rows:
        table.add_section()
    for row in trained:
        table.add_row(*_cells(data, row))
    return table


def _heads(data: RunData) -> list[str]:
    gold = ["gold"] if data.has_gold else []
    return ["reward", *gold, "KL, nats", "tokens", "beats SFT"]


def _cells(data: RunData, row: Evaluation) -> list[str]:
    name = policy_name(data, row.policy, page_palette(data.algorithms))
    gold = value_of(row, "gold") or (None, None)
    return [
        name if row.decoding == "sample" else f"{name}, {decoding_name(row)}",
        with_error(row.reward, row.reward_se),
        *([with_error(*gold)] if data.has_gold else []),
        number(row.kl, 2) if row.kl is not None and row.decoding == "sample" else "–",
        number(row.length, 1),
        _wins(data, row),
    ]


def _wins(data: RunData, row: Evaluation) -> str:
    found = [c for c in data.comparisons if c.a == row.policy and c.b == "sft" and row.algorithm is not None]
    if not found:
        return ""
    best = next((c for c in found if c.by == judge(data)), found[0])
    return f"{percent(best.win_rate)} ({number(100 * best.low, 0)}–{number(100 * best.high, 0)})"
