"""The chart of ``p3o bench scaling``: one panel for each quantity that is varied, both axes logarithmic."""

from collections.abc import Mapping
from typing import Any

import altair as alt

from p3o.bench.look import dressed
from p3o.bench.speed_scaling import PHASES, TITLES

MODEL = "useful operations, drawn through the last step"
COLOURS = {"whole step": "#1b1f24", "sampling": "#e08a5b", "reference": "#2f8f4e", "training": "#1d5fd1"}


def scaling_chart(results: Mapping[str, Any]) -> alt.VConcatChart:
    """Seconds of a step and of its parts; dashed, how its useful operations grow."""
    panels = [_panel(axis, rows) for axis, rows in results["axes"].items()]
    rows = [alt.hconcat(*panels[i : i + 3], spacing=20) for i in range(0, len(panels), 3)]
    return dressed(alt.vconcat(*rows, spacing=24))


def _panel(axis: str, rows: Any) -> alt.LayerChart:
    names = {"whole step": "step_seconds", **{phase: f"{phase}_seconds" for phase in PHASES}}
    measured = [{"x": row[axis], "seconds": row[key], "part": part} for row in rows for part, key in names.items()]
    scale = rows[-1]["step_seconds"] / rows[-1]["operations"]
    needed = [{"x": row[axis], "seconds": row["operations"] * scale, "part": MODEL} for row in rows]
    x = alt.X(
        "x:Q",
        title=TITLES[axis],
        scale=alt.Scale(type="log", base=2, nice=False, padding=8),
        axis=alt.Axis(values=[row[axis] for row in rows], format="d", grid=False),
    )
    y = alt.Y("seconds:Q", title="seconds", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(format="~g"))
    order = [*COLOURS, MODEL]
    colour = alt.Color(
        "part:N",
        title=None,
        sort=order,
        scale=alt.Scale(domain=order, range=[*COLOURS.values(), "#8a93a0"]),
        legend=alt.Legend(orient="bottom", labelLimit=400, columns=5),
    )
    lines = alt.Chart(alt.Data(values=measured)).mark_line(point=True).encode(x=x, y=y, color=colour)
    dashed = alt.Chart(alt.Data(values=needed)).mark_line(strokeDash=[5, 4]).encode(x=x, y=y, color=colour)
    panel: alt.LayerChart = (lines + dashed).properties(width=210, height=190)
    return panel
