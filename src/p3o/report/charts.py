"""The charts of policies as points, as Altair objects. Colours and shapes come from the palette."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

from p3o.report.chartstyle import Drawing, Rows
from p3o.report.frontiers import Frontier, Measure
from p3o.report.palette import Palette

KL_TITLE = "KL to the SFT model, nats per response"
VALUE_TITLES: Mapping[Measure, str] = {
    "reward": "Proxy reward, mean per response",
    "gold": "Gold reward, mean per response",
}
_Z95 = 1.96


@dataclass(frozen=True)
class Yardstick:
    """Something to hold the algorithms against: a point where it has a KL, a level line where it has none."""

    label: str
    value: float
    value_se: float
    kl: float | None


def frontier_chart(
    found: Sequence[Frontier],
    yardsticks: Sequence[Yardstick],
    measure: Measure,
    palette: Palette,
    *,
    legend: bool = False,
) -> Drawing:
    """KL–reward frontier: points along training with 95 % intervals, the fit a·√KL + b·KL, and the yardsticks."""
    points = [_point_row(point, frontier.algorithm, palette) for frontier in found for point in frontier.points]
    fits, yardstick_rows = _fit_rows(found, palette), _yardstick_rows(yardsticks)
    base = alt.Chart(alt.NamedData("points"))
    x = alt.X("kl:Q", title=KL_TITLE, scale=alt.Scale(zero=True, nice=True))
    y = alt.Y("value:Q", title=VALUE_TITLES[measure], scale=alt.Scale(zero=False, nice=True))
    colour = _colour(found, palette, legend)
    bars = base.mark_rule(strokeWidth=1, opacity=0.45).encode(colour)
    marks = base.mark_point(filled=True, opacity=0.95, strokeWidth=1.2).encode(
        x,
        y,
        colour,
        _shape(found, palette, legend),
        size=alt.condition("datum.last", alt.value(110), alt.value(38)),
        tooltip=_tooltips(measure),
    )
    layers = [
        *([_fit_layer(colour)] if fits else []),
        bars.encode(
            x=alt.X("kl_low:Q", title=KL_TITLE), x2="kl_high:Q", y=alt.Y("value:Q", title=VALUE_TITLES[measure])
        ),
        bars.encode(x=alt.X("kl:Q", title=KL_TITLE), y=alt.Y("low:Q", title=VALUE_TITLES[measure]), y2="high:Q"),
        marks,
        *_yardstick_layers(yardstick_rows, palette),
    ]
    return Drawing(alt.layer(*layers), {"points": points, "fits": fits} | yardstick_rows)


def proxy_gold_chart(found: Sequence[tuple[Frontier, Frontier]], palette: Palette) -> Drawing:
    """Gain in gold against gain in proxy reward over the SFT model, along training; bending down is over-optimisation.

    Gains, because a reward model's offset means nothing. ``found`` pairs each algorithm's proxy and gold frontier.
    """
    rows = []
    for proxy, gold in found:
        golds = {(point.policy, point.step): point for point in gold.points}
        starts = {point.policy: (point, golds.get((point.policy, point.step))) for point in reversed(proxy.points)}
        for point in sorted(proxy.points, key=lambda point: point.step):
            judged, (start, start_gold) = golds.get((point.policy, point.step)), starts[point.policy]
            if judged is None or start_gold is None:
                continue
            gain = judged.value - start_gold.value
            rows.append(
                _point_row(point, proxy.algorithm, palette)
                | {
                    "proxy": point.value - start.value,
                    "gold": gain,
                    "gold_low": gain - _Z95 * judged.value_se,
                    "gold_high": gain + _Z95 * judged.value_se,
                }
            )
    base = alt.Chart(alt.NamedData("points"))
    x = alt.X("proxy:Q", title="Proxy reward gained over SFT")
    y_title = "Gold reward gained over SFT"
    series = [proxy for proxy, _ in found]
    colour = _colour(series, palette, legend=False)
    path = base.mark_line(strokeWidth=1.6, opacity=0.8).encode(
        x, alt.Y("gold:Q", title=y_title), colour, detail="policy:N", order="step:Q"
    )
    bars = base.mark_rule(opacity=0.4).encode(x, alt.Y("gold_low:Q", title=y_title), colour, y2="gold_high:Q")
    marks = base.mark_point(filled=True, opacity=0.95).encode(
        x,
        alt.Y("gold:Q", title=y_title),
        colour,
        _shape(series, palette, legend=False),
        size=alt.condition("datum.last", alt.value(110), alt.value(38)),
        tooltip=[
            alt.Tooltip("series:N", title="Algorithm"),
            alt.Tooltip("step:Q", title="Step"),
            alt.Tooltip("proxy:Q", title="Proxy gain", format=".3f"),
            alt.Tooltip("gold:Q", title="Gold gain", format=".3f"),
            alt.Tooltip("kl:Q", title="KL, nats", format=".2f"),
        ],
    )
    return Drawing(alt.layer(path, bars, marks), {"points": rows})


def shift_chart(
    plain: Sequence[Frontier], shifted: Sequence[tuple[float, Frontier]], measure: Measure, palette: Palette
) -> Drawing:
    """The same algorithms without (solid, filled) and with (dashed, hollow) a per-prompt offset on their rewards."""
    rows = []
    for shift, frontier in [*((0.0, frontier) for frontier in plain), *shifted]:
        for point in sorted(frontier.points, key=lambda point: point.step):
            row = _point_row(point, frontier.algorithm, palette)
            rows.append(
                row | {"offset": _offset_label(shift), "shifted": shift != 0, "curve": f"{point.policy} {shift}"}
            )
    offsets = list(dict.fromkeys(row["offset"] for row in rows))
    base = alt.Chart(alt.NamedData("points")).encode(
        alt.X("kl:Q", title=KL_TITLE),
        alt.Y("value:Q", title=VALUE_TITLES[measure], scale=alt.Scale(zero=False)),
        _colour(plain, palette, legend=False),
        detail="curve:N",
        tooltip=[*_tooltips(measure), alt.Tooltip("offset:N", title="Offsets")],
    )
    path = base.mark_line(strokeWidth=1.6).encode(
        order="step:Q",
        strokeDash=alt.StrokeDash(
            "offset:N",
            title=None,
            scale=alt.Scale(domain=offsets, range=[[1, 0], [5, 4], [2, 3], [8, 3]][: len(offsets)]),
            legend=alt.Legend(orient="top", symbolStrokeColor=palette.ink, symbolSize=600, labelLimit=0),
        ),
    )
    shape = _shape(plain, palette, legend=False)
    solid = base.transform_filter("!datum.shifted").mark_point(filled=True, size=38, opacity=0.95).encode(shape)
    hollow = base.transform_filter("datum.shifted").mark_point(filled=False, size=90, strokeWidth=1.4).encode(shape)
    return Drawing(alt.layer(path, solid, hollow), {"points": rows})


def _yardstick_rows(yardsticks: Sequence[Yardstick]) -> dict[str, Rows]:
    levels = [{"value": y.value, "label": y.label} for y in yardsticks if y.kl is None]
    marks = [
        {
            "kl": y.kl,
            "value": y.value,
            "low": y.value - _Z95 * y.value_se,
            "high": y.value + _Z95 * y.value_se,
            "label": y.label,
        }
        for y in yardsticks
        if y.kl is not None
    ]
    return {"levels": levels, "marks": marks}


def _yardstick_layers(rows: Mapping[str, Rows], palette: Palette) -> list[alt.Chart]:
    layers = []
    if rows["levels"]:
        level = alt.Chart(alt.NamedData("levels")).encode(alt.Y("value:Q"))
        label = level.encode(x=alt.value("width"), text="label:N")
        layers += [
            level.mark_rule(strokeDash=[4, 4], color=palette.muted, opacity=0.8),
            *_haloed(label, palette, align="right", baseline="bottom", dx=-2, dy=-4),
        ]
    if rows["marks"]:
        tooltip = [
            alt.Tooltip("label:N", title="Yardstick"),
            alt.Tooltip("kl:Q", title="KL, nats", format=".2f"),
            alt.Tooltip("value:Q", title="Reward", format=".3f"),
        ]
        mark = alt.Chart(alt.NamedData("marks")).encode(alt.X("kl:Q"), tooltip=tooltip)
        above, beside = (mark.encode(alt.Y(edge), text="label:N") for edge in ("high:Q", "value:Q"))
        layers += [
            mark.mark_rule(color=palette.ink, opacity=0.6).encode(alt.Y("low:Q"), y2="high:Q"),
            mark.mark_point(shape="stroke", size=160, color=palette.ink, strokeWidth=2).encode(alt.Y("value:Q")),
            *_haloed(above.transform_filter("datum.kl > 0"), palette, align="center", baseline="bottom", dx=0, dy=-3),
            *_haloed(beside.transform_filter("datum.kl == 0"), palette, align="left", baseline="middle", dx=12, dy=2),
        ]
    return layers


def _haloed(label: alt.Chart, palette: Palette, **place: Any) -> list[alt.Chart]:
    """Text over an edge in the colour of the ground, legible where curves pass behind it."""
    halo = label.mark_text(fontSize=11, stroke=palette.ground, strokeWidth=4, strokeJoin="round", **place)
    return [halo, label.mark_text(fontSize=11, color=palette.ink, **place)]


def _fit_rows(found: Sequence[Frontier], palette: Palette) -> Rows:
    rows: Rows = []
    for frontier in found:
        if frontier.fit is None:
            continue
        # Even steps in √KL, where the curve bends most near 0.
        kls = np.linspace(0.0, np.sqrt(frontier.largest_kl), 48) ** 2
        label = palette.label(frontier.algorithm)
        rows += [
            {"series": label, "kl": float(kl), "value": float(value)}
            for kl, value in zip(kls, frontier.fit.predict(kls), strict=True)
        ]
    return rows


def _fit_layer(colour: alt.Color) -> alt.Chart:
    line = alt.Chart(alt.NamedData("fits")).mark_line(strokeWidth=1.8, opacity=0.7)
    return line.encode(alt.X("kl:Q"), alt.Y("value:Q"), colour)


def _point_row(point: Any, algorithm: str, palette: Palette) -> dict[str, Any]:
    return {
        "series": palette.label(algorithm),
        "policy": point.policy,
        "step": point.step,
        "beta": point.beta,
        "kl": point.kl,
        "kl_low": max(point.kl - _Z95 * point.kl_se, 0.0),
        "kl_high": point.kl + _Z95 * point.kl_se,
        "value": point.value,
        "low": point.value - _Z95 * point.value_se,
        "high": point.value + _Z95 * point.value_se,
        "last": point.last,
    }


def _tooltips(measure: Measure) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("series:N", title="Algorithm"),
        alt.Tooltip("policy:N", title="Run"),
        alt.Tooltip("beta:Q", title="β"),
        alt.Tooltip("step:Q", title="Step"),
        alt.Tooltip("kl:Q", title="KL, nats", format=".2f"),
        alt.Tooltip("value:Q", title="Gold reward" if measure == "gold" else "Proxy reward", format=".3f"),
    ]


def _colour(found: Sequence[Frontier], palette: Palette, legend: bool) -> alt.Color:
    names = [frontier.algorithm for frontier in found]
    scale = alt.Scale(domain=[palette.label(n) for n in names], range=[palette.colours[n] for n in names])
    return alt.Color("series:N", title=None, scale=scale, legend=_legend() if legend or palette.legend else None)


def _shape(found: Sequence[Frontier], palette: Palette, legend: bool) -> alt.Shape:
    names = [frontier.algorithm for frontier in found]
    scale = alt.Scale(domain=[palette.label(n) for n in names], range=[palette.series[n].shape for n in names])
    return alt.Shape("series:N", title=None, scale=scale, legend=_legend() if legend or palette.legend else None)


def _legend() -> alt.Legend:
    return alt.Legend(orient="top", direction="horizontal", columns=0)


def _offset_label(shift: float) -> str:
    return "no offsets" if shift == 0 else f"offsets, s.d. {shift:g}"
