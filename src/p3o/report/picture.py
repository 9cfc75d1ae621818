"""The frontier as a picture of its own, for a README or a paper."""

from pathlib import Path

import vl_convert

from p3o.errors import P3OError
from p3o.files import plain_os_errors, write_text
from p3o.report.charts import frontier_chart
from p3o.report.frontiers import frontiers, judge
from p3o.report.palette import picture_palette
from p3o.report.reading import read_run
from p3o.report.sections import yardsticks


def draw_frontier(run: Path, target: Path) -> Path:
    """Draw the KL–reward frontier of a run, in gold reward where it exists, as ``.svg`` or ``.png``.

    Raises:
        P3OError: another ending, a run without evaluated policies, a bad run folder or an unwritable target.
    """
    if target.suffix not in (".svg", ".png"):
        raise P3OError(f"{target}: unknown kind of picture; end the name in .svg or .png")
    data = read_run(run)
    measure = judge(data)
    found = frontiers(data, measure)
    if not found:
        raise P3OError(
            f"{run / 'metrics.jsonl'}: holds no evaluation of a trained policy; there is no frontier to draw"
        )
    palette = picture_palette(data.algorithms)
    drawing = frontier_chart(found, yardsticks(data, measure), measure, palette, legend=True)
    specification = drawing.specification(palette, width=720, height=420)
    if target.suffix == ".svg":
        write_text(target, vl_convert.vegalite_to_svg(specification))
    else:
        picture = vl_convert.vegalite_to_png(specification, scale=2)
        with plain_os_errors(target, "written"):
            target.write_bytes(picture)
    return target
