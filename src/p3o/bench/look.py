"""How every chart of a benchmark looks: white, no frames, quiet axes."""

from typing import TypeVar

import altair as alt

Sheet = TypeVar("Sheet", alt.HConcatChart, alt.VConcatChart)


def dressed(chart: Sheet) -> Sheet:
    """The chart with our background, font and axes."""
    styled: Sheet = (
        chart.configure(background="#ffffff", padding=16, font="sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            labelColor="#5b6470",
            titleColor="#1b1f24",
            gridColor="#e3e6ea",
            domainColor="#e3e6ea",
            titleFontWeight="normal",
        )
    )
    return styled
