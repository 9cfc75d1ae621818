"""The scaling plan's pictures: throughput, where a step's time goes, memory of a rank, and growth with K and lengths."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from p3o.bench.look import dressed
from p3o.bench.plan_cost import METHODS

COLOURS = ("#7a4fc9", "#1d5fd1", "#2f8f4e", "#e08a5b", "#cf4a2b", "#8a94a0", "#c9a227", "#3aa6b9", "#5b6470", "#b0578d")
GB = 1e9
_MEMORY_MODEL, _MEMORY_RANKS = "8B", 8
_POWERS = alt.Axis(values=[8, 16, 32, 64, 128, 256, 512], grid=False)


def write_charts(results: Mapping[str, Any], folder: Path) -> None:
    """Write plan.svg and plan.png."""
    chart = plan_chart(results)
    chart.save(folder / "plan.svg")
    chart.save(folder / "plan.png", scale_factor=1.5)


def plan_chart(results: Mapping[str, Any]) -> alt.VConcatChart:
    """All pictures on one sheet."""
    rows = [
        alt.hconcat(throughput(results), growing(results), spacing=28),
        alt.hconcat(times(results), memory(results), spacing=28).resolve_scale(color="independent"),
        alt.hconcat(group_sizes(results), lengths(results), spacing=28).resolve_scale(color="independent"),
    ]
    chart: alt.VConcatChart = dressed(alt.vconcat(*rows, spacing=30).resolve_scale(color="independent"))
    return chart.configure_title(fontWeight="normal", anchor="start")


def throughput(results: Mapping[str, Any]) -> alt.Chart:
    """Tokens per second on more and more GPUs, the batch staying as it is."""
    rows = [row for row in results["plans"] if row["fits"] and row["method"] == "p3o" and row["turns"] != "apart"]
    chart: alt.Chart = _lines(rows, "the same batch, asynchronous (dashed: in turns on the same GPUs)").encode(
        strokeDash=alt.StrokeDash("turns:N", sort=["asynchronous", "together"], legend=None)
    )
    return chart


def growing(results: Mapping[str, Any]) -> alt.Chart:
    """The same with prompts in proportion to the GPUs."""
    return _lines(
        [row for row in results["growing_batch"] if row["fits"]], "prompts in proportion to GPUs, asynchronous"
    )


def times(results: Mapping[str, Any]) -> alt.Chart:
    """Seconds of sampling, learning and pushing in turns, and of an asynchronous step, of the 8B model."""
    parts = {"sampling": "sampling_seconds", "learning": "learning_seconds", "push": "push_seconds"}
    rows = [
        {"GPUs": row["gpus"], "part": part, "seconds": row[key]}
        for row in results["plans"]
        if row["fits"] and (row["model"], row["method"], row["turns"]) == ("8B", "p3o", "together")
        for part, key in parts.items()
    ]
    chart: alt.Chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("GPUs:O", title="GPUs", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("seconds:Q", title="seconds of a step"),
            color=_colour("part", list(parts)),
            order=alt.Order("order:Q"),
        )
        .properties(width=330, height=230, title="8B, P3O, sampling and learning in turns on the same GPUs")
    )
    return chart


def memory(results: Mapping[str, Any]) -> alt.Chart:
    """Bytes of one learner's rank by what they are for."""
    chosen = [row for row in results["memory"] if (row["model"], row["ranks"]) == (_MEMORY_MODEL, _MEMORY_RANKS)]
    parts = list(dict.fromkeys(part for row in chosen for part in row["parts"]))
    rows = [
        {"method": METHODS[row["method"]].name, "part": part, "GB": size / GB, "order": parts.index(part)}
        for row in chosen
        for part, size in row["parts"].items()
    ]
    chart: alt.Chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar()
        .encode(
            y=alt.Y("method:N", title=None, sort=[method.name for method in METHODS.values()]),
            x=alt.X("GB:Q", title="GB of each rank"),
            color=_colour("part", parts),
            order=alt.Order("order:Q"),
        )
        .properties(width=330, height=230, title=f"{_MEMORY_MODEL}, learner of {_MEMORY_RANKS} ranks")
    )
    return chart


def group_sizes(results: Mapping[str, Any]) -> alt.Chart:
    """Seconds of learning from as many responses in larger and larger groups."""
    rows = [
        {"K": row["responses"], "method": METHODS[row["method"]].name, "seconds": row["learning_seconds"]}
        for row in results["group_sizes"]
    ]
    names = list(dict.fromkeys(row["method"] for row in rows))
    chart: alt.Chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("K:O", title="K, the number of responses staying the same", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("seconds:Q", title="seconds of learning"),
            color=_colour("method", names),
        )
        .properties(width=330, height=230, title="8B, learner of 32 ranks: what a shared prompt saves")
    )
    return chart


def lengths(results: Mapping[str, Any]) -> alt.Chart:
    """Seconds of an asynchronous step as responses and prompts get longer."""
    rows = [
        {"response": row["response_tokens"], "prompt": str(row["prompt_tokens"]), "seconds": row["seconds"]}
        for row in results["lengths"]
        if row["fits"]
    ]
    chart: alt.Chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("response:Q", scale=alt.Scale(type="log", base=2), title="response tokens"),
            y=alt.Y("seconds:Q", scale=alt.Scale(type="log"), title="seconds of a step"),
            color=_colour("prompt", list(dict.fromkeys(row["prompt"] for row in rows)), title="prompt tokens"),
        )
        .properties(width=330, height=230, title="8B on 64 GPUs, asynchronous")
    )
    return chart


def _lines(rows: Sequence[Mapping[str, Any]], title: str) -> alt.Chart:
    kept = ("model", "gpus", "tokens_per_second", "turns")
    data = [{name: row[name] for name in kept if name in row} for row in rows]
    chart: alt.Chart = (
        alt.Chart(alt.Data(values=data))
        .mark_line(point=True)
        .encode(
            x=alt.X("gpus:Q", scale=alt.Scale(type="log", base=2), axis=_POWERS, title="GPUs"),
            y=alt.Y("tokens_per_second:Q", scale=alt.Scale(type="log"), title="response tokens per second"),
            color=_colour("model", list(dict.fromkeys(str(row["model"]) for row in rows))),
        )
        .properties(width=330, height=230, title=title)
    )
    return chart


def _colour(field: str, names: Sequence[str], title: str | None = None) -> alt.Color:
    return alt.Color(f"{field}:N", scale=alt.Scale(domain=list(names), range=list(COLOURS[: len(names)])), title=title)
