"""Quantities along training, a line per run."""

from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt
import numpy as np

from p3o.report.chartstyle import Drawing
from p3o.report.palette import Palette

LONGEST_LINE = 240
"""Points of a training curve; longer ones are averaged over consecutive steps."""
SMOOTHED = 0.04
"""Share of a training curve on either side of a point that its moving mean covers."""


@dataclass(frozen=True)
class Line:
    """A curve of one run: an algorithm's colour (or ink, for None), x and y."""

    algorithm: str | None
    run: str
    x: Sequence[float]
    y: Sequence[float]


def curve_chart(
    lines: Sequence[Line], palette: Palette, *, y_title: str, y_format: str = "", x_title: str = "Step"
) -> Drawing:
    """One quantity along training: each run's values, faint, and their moving mean."""
    rows = [
        {"series": palette.label(line.algorithm) if line.algorithm else line.run, "run": line.run} | point
        for line in lines
        for point in _curve_points(line)
    ]
    colours = {
        (palette.label(line.algorithm) if line.algorithm else line.run): (
            palette.colours[line.algorithm] if line.algorithm else palette.ink
        )
        for line in lines
    }
    own_legend = alt.Legend(orient="top", direction="horizontal", columns=0) if palette.legend else None
    y_axis = alt.Axis(format=y_format) if y_format else alt.Undefined
    y = alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=False), axis=y_axis)
    chart = alt.Chart(alt.NamedData("points")).encode(
        alt.X("x:Q", title=x_title, axis=alt.Axis(tickMinStep=1, format="~s")),
        alt.Color(
            "series:N",
            title=None,
            legend=own_legend,
            scale=alt.Scale(domain=list(colours), range=list(colours.values())),
        ),
        detail="run:N",
        tooltip=[
            alt.Tooltip("series:N", title="Run"),
            alt.Tooltip("x:Q", title=x_title),
            alt.Tooltip("y:Q", title=y_title, format=".4g"),
            alt.Tooltip("mean:Q", title="moving mean", format=".4g"),
        ],
    )
    smooth = alt.Y("mean:Q", title=y_title, axis=y_axis)
    layers = alt.layer(
        chart.mark_line(strokeWidth=1, opacity=0.25).encode(y),
        chart.mark_line(strokeWidth=1.8).encode(smooth),
        chart.mark_point(size=90, opacity=0).encode(smooth),  # unseen, wide enough for a finger to hit
    )
    return Drawing(layers, {"points": rows})


def _curve_points(line: Line) -> list[dict[str, float]]:
    """Points of a curve with their moving mean over SMOOTHED of the line on either side, fewer at its ends.

    A long line is cut to LONGEST_LINE means over consecutive steps, so that nothing is left out.
    """
    parts = min(len(line.x), LONGEST_LINE)
    x, y = ([float(part.mean()) for part in np.array_split(np.asarray(values), parts)] for values in (line.x, line.y))
    reach = int(SMOOTHED * parts)
    means = [float(np.mean(y[max(i - reach, 0) : i + reach + 1])) for i in range(parts)]
    return [{"x": a, "y": b, "mean": c} for a, b, c in zip(x, y, means, strict=True)]
