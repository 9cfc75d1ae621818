"""Names, colours and shapes of the algorithms: the same in every chart, table and text of a report.

A series differs by colour *and* shape, so that the charts survive a grey printer and colour-blind eyes. The HTML report
draws with CSS variables: one SVG follows the reader's light or dark theme, and print, without being drawn again.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Series:
    """How one algorithm looks.

    Attributes:
        name: as in the run folder.
        label: as people write it.
        light, dark: colours on the light and the dark page.
        shape: a Vega mark shape.
    """

    name: str
    label: str
    light: str
    dark: str
    shape: str


_KNOWN = (
    Series("p3o_v2", "P3O-V2", "#1d5fd1", "#6ea8ff", "circle"),
    Series("p3o_v1", "P3O-V1", "#0f9bb5", "#4fd0e3", "square"),
    Series("ppo", "PPO", "#cf4a2b", "#ff8b6b", "triangle-up"),
    Series("online_dpo", "Online DPO", "#2f8f4e", "#6fd08c", "diamond"),
    Series("reinforce", "REINFORCE", "#8a6a3a", "#cbaa74", "triangle-down"),
    Series("ppg", "PPG", "#7a4fc9", "#b597ff", "triangle-right"),
    Series("rloo", "RLOO", "#b8467f", "#f08dbb", "triangle-left"),
    Series("grpo", "GRPO", "#b07d00", "#e8bd4d", "cross"),
    Series("rebel", "REBEL", "#5f6b7a", "#a9b4c2", "diamond"),
)
_FALLBACK_COLOURS = (("#a3269b", "#ec83e5"), ("#0f766e", "#5cc9bf"), ("#7c3a12", "#d99c72"), ("#4d5b00", "#b5c75a"))
_FALLBACK_SHAPES = ("square", "triangle-down", "circle", "cross")

SHAPE_PATHS = {
    "circle": "M8 3a5 5 0 1 0 0 10a5 5 0 1 0 0-10z",
    "square": "M3.5 3.5h9v9h-9z",
    "diamond": "M8 2l6 6l-6 6l-6-6z",
    "cross": "M6 2h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "triangle-up": "M8 2.5l6 10.5h-12z",
    "triangle-down": "M8 13.5l6-10.5h-12z",
    "triangle-right": "M13.5 8l-10.5 6v-12z",
    "triangle-left": "M2.5 8l10.5 6v-12z",
}
"""SVG paths of the shapes in a box of 16 by 16, for the legends of the page."""


@dataclass(frozen=True)
class Palette:
    """Colours to draw with: CSS variables in the page, literal colours in a picture.

    ``ground`` is what lies behind the charts and ``background`` what they paint there themselves. ``legend`` is whether charts
    carry their own, because they stand alone.
    """

    series: dict[str, Series]
    colours: dict[str, str]
    ink: str
    muted: str
    grid: str
    ground: str
    background: str
    padding: int = 4
    legend: bool = False
    font: str = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"

    def label(self, algorithm: str | None) -> str:
        """The algorithm's name as people write it; SFT has none."""
        return "SFT" if algorithm is None else self.series[algorithm].label


def series_of(algorithms: Sequence[str]) -> dict[str, Series]:
    """The look of each algorithm: fixed for known names, from a reserve, in order, for others."""
    known = {series.name: series for series in _KNOWN}
    chosen: dict[str, Series] = {}
    for name in algorithms:
        if name in known:
            chosen[name] = known[name]
            continue
        reserve = sum(other not in known for other in chosen) % len(_FALLBACK_COLOURS)
        light, dark = _FALLBACK_COLOURS[reserve]
        chosen[name] = Series(name, readable(name), light, dark, _FALLBACK_SHAPES[reserve])
    return chosen


def page_palette(algorithms: Sequence[str]) -> Palette:
    """For the HTML page, whose style sheet defines the variables."""
    series = series_of(algorithms)
    colours = {name: f"var(--series-{index})" for index, name in enumerate(series)}
    return Palette(
        series,
        colours,
        ink="var(--ink)",
        muted="var(--muted)",
        grid="var(--line)",
        ground="var(--card)",
        background="transparent",
    )


def picture_palette(algorithms: Sequence[str]) -> Palette:
    """For a picture of its own: on white, since it may be shown on a page of any colour."""
    series = series_of(algorithms)
    colours = {name: look.light for name, look in series.items()}
    return Palette(
        series,
        colours,
        ink="#1b1f24",
        muted="#5b6470",
        grid="#e3e6ea",
        ground="#ffffff",
        background="#ffffff",
        padding=16,
        legend=True,
        font="sans-serif",
    )


def readable(name: str) -> str:
    """``relative_replay`` as "Relative replay", ``p3o_x`` as "P3O x"."""
    words = name.replace("_", " ")
    return re.sub(r"(?i)\bp3o\b", "P3O", words[:1].upper() + words[1:])
