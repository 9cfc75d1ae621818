"""What a section of the page is made of. Each block has a template of its own, ``block_<kind>.html``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from markupsafe import Markup

from p3o.report.palette import Palette
from p3o.report.rundata import Sample
from p3o.report.tables import Table
from p3o.report.texts import Shown


@dataclass(frozen=True)
class Panel:
    """One chart (Vega-Lite) with its heading; ``description`` is what a screen reader says."""

    heading: str
    specification: Mapping[str, Any]
    description: str

    @property
    def script(self) -> Markup:
        """Vega-Lite JSON for a script element, which no text inside it can end: there is no "<" left."""
        return Markup(json.dumps(self.specification, separators=(",", ":")).replace("<", "\\u003c"))


@dataclass(frozen=True)
class Figure:
    """Charts side by side (``columns`` of them where there is room) under one legend of algorithms."""

    kind: ClassVar[str] = "figure"
    panels: list[Panel]
    legend: list[str]
    caption: str = ""
    columns: int = 2


@dataclass(frozen=True)
class TableBlock:
    """A table under its heading; ``folded`` leaves only the heading to see until it is clicked."""

    kind: ClassVar[str] = "table"
    table: Table
    heading: str = ""
    folded: bool = False


@dataclass(frozen=True)
class TextsBlock:
    """Prompts with their responses, before and after."""

    kind: ClassVar[str] = "texts"
    shown: Sequence[Shown]


@dataclass(frozen=True)
class FollowedBlock:
    """One prompt through the training of each policy."""

    kind: ClassVar[str] = "followed"
    samples: Mapping[str, Sequence[Sample]]


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    heading: str
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """Text as it stands in a file, behind a line to click."""

    kind: ClassVar[str] = "code"
    heading: str
    text: str


Block = Figure | TableBlock | TextsBlock | FollowedBlock | Facts | Code


@dataclass(frozen=True)
class Section:
    """A section of the page. Without blocks, ``intro`` says why there are none."""

    id: str
    title: str
    intro: str
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """Everything that the template prints. ``names`` and ``algorithms`` are by policy; ``status`` is "" if all is well."""

    title: str
    status: str
    summary: str
    sections: list[Section]
    palette: Palette
    names: Mapping[str, str]
    algorithms: Mapping[str, str | None]
