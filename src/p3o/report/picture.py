"""Charts as files of their own, for a README or a paper: the frontier alone, or every chart with its data as CSV."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert

from p3o.errors import P3OError
from p3o.files import make_folder, plain_os_errors, write_text
from p3o.report.blocks import Figure, Section
from p3o.report.charts import frontier_chart
from p3o.report.comparison import comparison_sections
from p3o.report.frontiers import frontiers, judge
from p3o.report.palette import picture_palette
from p3o.report.reading import read_run
from p3o.report.runset import read_runs
from p3o.report.sections import all_sections, yardsticks

WIDTH = 640
"""Of an exported chart, in pixels."""


def draw_frontier(run: Path, target: Path) -> Path:
    """Draw the KL–reward frontier of a run, in gold reward where it exists, as ``.svg``, ``.png`` or ``.pdf``.

    Raises:
        P3OError: another ending, a run without evaluated policies, a bad run folder or an unwritable target.
    """
    if target.suffix not in (".svg", ".png", ".pdf"):
        raise P3OError(f"{target}: unknown kind of picture; end the name in .svg, .png or .pdf")
    data = read_run(run)
    measure = judge(data)
    found = frontiers(data, measure)
    if not found:
        raise P3OError(
            f"{run / 'metrics.jsonl'}: has no evaluation of a trained policy, so there is no frontier to draw; "
            f"run p3o evaluate first"
        )
    palette = picture_palette(data.algorithms)
    drawing = frontier_chart(found, yardsticks(data, measure), measure, palette, legend=True)
    specification = drawing.specification(palette, width=720, height=420)
    _write_picture(specification, target)
    return target


def export_charts(runs: Sequence[Path], folder: Path) -> list[Path]:
    """Write every chart of the report of these runs as SVG, PNG and PDF, and its data as CSV, into a folder.

    Files are named after the section and the chart: ``frontier_gold_reward.svg``. A chart of several layers of data has a CSV
    for each: ``frontier_gold_reward.points.csv``. Returns what was written.

    Raises:
        P3OError: as the report does, or if the folder cannot be written.
    """
    sections = _drawn_alone(runs)
    make_folder(folder)
    written: list[Path] = []
    for section in sections:
        for panel in (panel for block in section.blocks if isinstance(block, Figure) for panel in block.panels):
            # A name may come twice in a section (the losses of two stages).
            stem = base = f"{section.id}_{_file_name(panel.heading)}"
            count = 1
            while any(path.name == f"{stem}.svg" for path in written):
                count += 1
                stem = f"{base}_{count}"
            for ending in (".svg", ".png", ".pdf"):
                written.append(folder / f"{stem}{ending}")
                _write_picture(dict(panel.specification) | {"width": WIDTH}, written[-1])
            for name, rows in panel.specification["datasets"].items():
                if rows:
                    written.append(folder / f"{stem}.{name}.csv")
                    write_text(written[-1], as_csv(rows))
    return written


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a head of all their names; what a row lacks is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _drawn_alone(runs: Sequence[Path]) -> list[Section]:
    """The sections of the report, their charts in literal colours and with legends of their own."""
    if len(runs) > 1:
        found = read_runs(runs)
        return comparison_sections(found, picture_palette(found.algorithms))
    data = read_run(runs[0])
    return all_sections(data, picture_palette(data.algorithms))


def _write_picture(specification: dict[str, Any], target: Path) -> None:
    if target.suffix == ".svg":
        write_text(target, vl_convert.vegalite_to_svg(specification))
        return
    if target.suffix == ".png":
        content = vl_convert.vegalite_to_png(specification, scale=2)
    else:
        content = vl_convert.vegalite_to_pdf(specification)
    with plain_os_errors(target, "written"):
        target.write_bytes(content)


def _file_name(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", heading.lower()).strip("_")
