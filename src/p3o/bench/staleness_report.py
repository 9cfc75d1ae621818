"""The tables and the chart of ``p3o bench staleness``."""

from collections.abc import Mapping
from typing import Any

import altair as alt
from rich.console import Group
from rich.table import Table
from rich.text import Text

from p3o.bench.look import dressed

COLOURS = ("#7fa8f0", "#1d5fd1", "#7a4fc9", "#cf4a2b", "#8a6d3b", "#2f8f4e")
TITLES = {"bandit_0": "bandit", "factorised_80": "factorised, 80 tokens"}


def staleness_tables(record: Mapping[str, Any]) -> Group:
    """A table a task: efficiency without a lag, and what each lag changes, corrected and not; none wider than 80 columns."""
    parts: list[Table | Text] = []
    for task, methods in record["results"].items():
        lags = list(next(iter(methods.values()))["corrected"])[1:]
        table = Table(
            title=f"{TITLES.get(task, task)}: efficiency, and its change with a lag of d steps",
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        table.add_column("method", no_wrap=True)
        for column in ("ratio to", "d = 0", *lags):
            table.add_column(column, justify="right", no_wrap=True)
        for method, corrections in methods.items():
            for correction, cells in corrections.items():
                title = record["titles"][method] if correction == "corrected" else ""
                start = f"{cells['0']['mean']:.3f}" if "0" in cells else ""
                table.add_row(title, _ratio_to(correction), start, *[_cell(cells.get(lag)) for lag in lags])
        parts += [table, Text()]
    parts.append(
        Text(f"{len(record['seeds'])} seeds; ± is half the 95% interval of differences to d = 0 paired by seed.")
    )
    return Group(*parts)


def _ratio_to(correction: str) -> str:
    return {"corrected": "sampler", "uncorrected": "arrival", "unclipped": "no clip"}[correction]


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    gap = cell["minus_lag_0"]
    return f"{gap['mean']:+.3f}±{gap['high'] - gap['mean']:.3f}".replace("0.", ".")


def staleness_chart(record: Mapping[str, Any]) -> alt.HConcatChart:
    """Efficiency lost against the lag: solid with the ratio to the policy that sampled, dashed with that to the policy at
    arrival; bars are 95% intervals of differences paired by seed."""
    titles = [record["titles"][method] for method in record["titles"]]
    panels = []
    for task, methods in record["results"].items():
        rows = [
            {"method": record["titles"][method], "ratio": ratio, "lag": int(lag), **cell["minus_lag_0"]}
            for method, corrections in methods.items()
            for correction, ratio in (("corrected", "to the sampler"), ("uncorrected", "to the policy at arrival"))
            for lag, cell in ({"0": corrections["corrected"]["0"]} | corrections.get(correction, {})).items()
            if correction in corrections
        ]
        base = alt.Chart(alt.Data(values=rows)).encode(
            x=alt.X(
                "lag:Q",
                title="lag, versions (solid: ratio to the sampler; dashed: arrival)",
                axis=alt.Axis(values=sorted({row["lag"] for row in rows})),
            ),
            color=alt.Color("method:N", scale=alt.Scale(domain=titles, range=list(COLOURS[: len(titles)])), title=None),
        )
        lines = base.mark_line(point=True).encode(
            y=alt.Y("mean:Q", title="change of frontier efficiency"),
            strokeDash=alt.StrokeDash(
                "ratio:N",
                legend=None,
                scale=alt.Scale(domain=["to the sampler", "to the policy at arrival"], range=[[1, 0], [5, 3]]),
            ),
        )
        bars = base.mark_rule(opacity=0.5).encode(y="low:Q", y2="high:Q")
        panels.append((bars + lines).properties(width=230, height=260, title=TITLES.get(task, task)))
    return dressed(alt.hconcat(*panels, spacing=16))
