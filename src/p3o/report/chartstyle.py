"""What every chart has in common: its data apart from its marks, its size, axes and fonts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import altair as alt

from p3o.report.palette import Palette

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Drawing:
    """A chart whose layers name their data (``alt.NamedData``), and the rows under those names.

    The rows stay outside the Altair objects, which copy and validate all they hold at every step of building.
    """

    chart: alt.LayerChart
    rows: Mapping[str, Rows]

    def specification(self, palette: Palette, *, height: int, width: int | None = None) -> dict[str, Any]:
        """Vega-Lite in the house style. Without a width the chart fills its column of the page. Sizes in pixels."""
        sized = self.chart.properties(
            width="container" if width is None else width,
            height=height,
            autosize={"type": "fit", "contains": "padding"},
            config=_config(palette),
        )
        specification: dict[str, Any] = sized.to_dict()
        return specification | {"datasets": {name: [_short(row) for row in rows] for name, rows in self.rows.items()}}


def _config(palette: Palette) -> dict[str, Any]:
    axis = {
        "labelColor": palette.muted,
        "titleColor": palette.ink,
        "gridColor": palette.grid,
        "domainColor": palette.grid,
        "tickColor": palette.grid,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelFlush": False,
        "tickCount": 6,
    }
    return {
        "background": palette.background,
        "padding": palette.padding,
        "font": palette.font,
        "view": {"stroke": None},
        "axis": axis,
        "legend": {"labelColor": palette.ink, "titleColor": palette.ink, "labelFontSize": 12, "symbolSize": 80},
    }


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    """Six significant digits: a chart shows three."""
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in row.items()}
