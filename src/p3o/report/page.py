"""The report as one HTML file that opens without a network: charts, their library, styles and data inside it."""

from functools import cache
from pathlib import Path

import altair as alt
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from p3o.files import write_text
from p3o.report.blocks import Page
from p3o.report.numbers import number
from p3o.report.palette import SHAPE_PATHS, page_palette
from p3o.report.prose import summary
from p3o.report.reading import read_run
from p3o.report.rundata import RunData
from p3o.report.sections import all_sections
from p3o.report.tables import policy_name


def build_report(run: Path, target: Path | None = None) -> Path:
    """Write the report of a run folder, by default as ``report.html`` into it, and return its path.

    The file makes no network request: its content security policy forbids every source but itself.

    Raises:
        P3OError: if a file of the run is missing or garbled, or the report cannot be written.
    """
    target = target or run / "report.html"
    write_text(target, render(read_run(run)))
    return target


def render(data: RunData) -> str:
    """The page of a run that has been read."""
    algorithms = {row.policy: row.algorithm for row in data.evaluations}
    palette = page_palette(data.algorithms)
    page = Page(
        title=data.info.name,
        status="" if data.info.finished else data.info.status,
        summary=summary(data, palette),
        sections=all_sections(data, palette),
        palette=palette,
        names={policy: policy_name(data, policy, palette) for policy in [*algorithms, "sft"]},
        algorithms=algorithms,
    )
    return render_page(page)


def render_page(page: Page) -> str:
    """A page as one HTML file."""
    return _environment().get_template("report.html").render(page=page, vega=Markup(_vega()))


def _environment() -> Environment:
    """Templates with escaping on for every value: a model's text is never HTML."""
    environment = Environment(
        loader=PackageLoader("p3o.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["shape_paths"] = SHAPE_PATHS
    environment.filters["number"] = number
    return environment


@cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed of the version that Altair writes for, as one script."""
    version = "_".join(alt.SCHEMA_VERSION.split(".")[:2])
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version))
