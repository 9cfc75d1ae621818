"""The page that compares several runs: frontiers over β and seeds with bands, areas, differences at equal KL."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from p3o.evaluation.dominance import Interval, student_interval
from p3o.files import write_text
from p3o.report.blocks import Block, Facts, Figure, Page, Panel, Section, TableBlock
from p3o.report.charts import KL_TITLE, VALUE_TITLES
from p3o.report.chartstyle import Drawing
from p3o.report.frontiers import Measure, value_of
from p3o.report.numbers import listed, number, signed, with_error
from p3o.report.page import render_page
from p3o.report.palette import Palette, page_palette
from p3o.report.runset import (
    MethodFrontier,
    RunPolicy,
    RunSet,
    largest_common_kl,
    method_frontiers,
    paired_comparisons,
    read_runs,
    sft_value,
)
from p3o.report.tables import Cell, Table


def build_comparison(runs: Sequence[Path], target: Path) -> Path:
    """Write one page that compares these run folders and return its path.

    Raises:
        P3OError: if a file of a run is missing or garbled, there is nothing to compare, or the page cannot be written.
    """
    found = read_runs(runs)
    palette = page_palette(found.algorithms)
    page = Page(
        title=f"{len(found.runs)} runs compared",
        status="",
        summary=_summary(found, palette),
        sections=comparison_sections(found, palette),
        palette=palette,
        names={},
        algorithms={},
    )
    write_text(target, render_page(page))
    return target


def comparison_sections(runs: RunSet, palette: Palette) -> list[Section]:
    """Every section, in the order of the page."""
    return [_frontiers(runs, palette), _dominance(runs, palette), _policies(runs, palette), _runs(runs)]


def band_chart(found: Sequence[MethodFrontier], measure: Measure, palette: Palette) -> Drawing:
    """Each algorithm's hull, mean over seeds, with its 95 % band, and the last policies behind it as faint marks."""
    bands = [
        {"series": palette.label(f.algorithm), "kl": float(kl), "value": float(mean)}
        | ({"low": float(low), "high": float(high)} if f.band.seeds > 1 else {})
        for f in found
        for kl, mean, low, high in zip(f.band.kl, f.band.mean, f.band.low, f.band.high, strict=True)
    ]
    points = [
        _point(policy, measure, palette) for f in found for policy in f.policies if value_of(policy.last, measure)
    ]
    names = [f.algorithm for f in found]
    colour = alt.Color(
        "series:N",
        title=None,
        scale=alt.Scale(domain=[palette.label(n) for n in names], range=[palette.colours[n] for n in names]),
        legend=alt.Legend(orient="top", direction="horizontal", columns=0) if palette.legend else None,
    )
    shape = alt.Shape(
        "series:N",
        title=None,
        legend=None,
        scale=alt.Scale(domain=[palette.label(n) for n in names], range=[palette.series[n].shape for n in names]),
    )
    x = alt.X("kl:Q", title=KL_TITLE, scale=alt.Scale(zero=True, nice=True))
    y = alt.Scale(zero=False, nice=True)
    title = VALUE_TITLES[measure]
    band = alt.Chart(alt.NamedData("bands"))
    layers = [
        *(
            [band.mark_area(opacity=0.16).encode(x, alt.Y("low:Q", title=title, scale=y), colour, y2="high:Q")]
            if any(f.band.seeds > 1 for f in found)
            else []
        ),
        alt.Chart(alt.NamedData("points"))
        .mark_point(filled=True, size=26, opacity=0.5)
        .encode(
            x,
            alt.Y("value:Q", title=title, scale=y),
            colour,
            shape,
            tooltip=[
                alt.Tooltip("series:N", title="Algorithm"),
                alt.Tooltip("beta:Q", title="β"),
                alt.Tooltip("seed:Q", title="Seed"),
                alt.Tooltip("run:N", title="Run"),
                alt.Tooltip("kl:Q", title="KL, nats", format=".2f"),
                alt.Tooltip("value:Q", title="Reward", format=".3f"),
            ],
        ),
        band.mark_line(strokeWidth=2.2).encode(x, alt.Y("value:Q", title=title, scale=y), colour),
    ]
    return Drawing(alt.layer(*layers), {"bands": bands, "points": points})


def _frontiers(runs: RunSet, palette: Palette) -> Section:
    title = "Reward against KL"
    measures: list[Measure] = ["gold", "reward"] if runs.measure == "gold" else ["reward"]
    panels: list[Panel] = []
    blocks: list[Block] = []
    for measure in measures:
        found = method_frontiers(runs, measure)
        if not found:
            continue
        heading = "Gold reward" if measure == "gold" else "Proxy reward (maximised in training)"
        chart = band_chart(found, measure, palette).specification(palette, height=400)
        panels.append(
            Panel(heading, chart, f"{heading} against KL: a hull with its confidence band for each algorithm")
        )
        table = _area_table(found, largest_common_kl(runs), measure, palette)
        blocks.append(
            TableBlock(table, f"{'Gold' if measure == 'gold' else 'Proxy'} reward: area, best at equal KL, fit")
        )
    if not panels:
        return Section(
            "frontier",
            title,
            "Left out: no algorithm moved away from the SFT model, or the SFT model was not evaluated.",
        )
    intro = (
        "Each line shows the best reward that an algorithm reaches within each KL budget: the concave hull of its "
        "policies over β and training steps, averaged over seeds. The band is the 95\N{NO-BREAK SPACE}% interval "
        "of that mean (Student's t; none with one seed). Each mark is one policy at the end of its training."
    )
    caption = (
        "A hull is a maximum over noisy points and therefore slightly optimistic, more so with more points: "
        "compare algorithms with equal numbers of runs."
    )
    if "reward" in measures and len(runs.runs) > 1:
        caption += (
            " Runs that each trained their own reward model have proxy rewards without a common zero or scale: "
            "they are shifted so that all SFT models have the same value, but not rescaled."
        )
    return Section("frontier", title, intro, [Figure(panels, runs.algorithms, caption, columns=len(panels)), *blocks])


def _dominance(runs: RunSet, palette: Palette) -> Section:
    title = "At equal KL"
    found = paired_comparisons(runs)
    if len(runs.algorithms) < 2:
        return Section("dominance", title, "Left out: there is only one algorithm to show.")
    if not found:
        why = "Left out: the runs were not evaluated on the same held-out prompts, or have no saved responses with their KL."
        return Section("dominance", title, why)
    budgets = next(iter(found.values())).kl
    rows = [
        [
            Cell(palette.label(a), series=a),
            Cell(palette.label(b), series=b),
            *(Cell(_difference(interval)) for interval in (*comparison.difference, comparison.area)),
            Cell("yes" if comparison.dominates else "no"),
        ]
        for (a, b), comparison in found.items()
    ]
    head = ["A", "minus B", *(f"at {number(kl)} nats" for kl in budgets), "mean up to the last", "A leads"]
    intro = (
        f"The best {'gold' if runs.measure == 'gold' else 'proxy'} reward within each KL budget, A minus B, from the policies "
        "at the end of their training. Intervals of 95\N{NO-BREAK SPACE}%: a bootstrap that draws the same prompts for all "
        "policies, and seeds where there are several. A leads if the intervals of all three differences lie above 0."
    )
    if runs.measure == "reward" and len(runs.runs) > 1:
        intro += (
            " Proxy rewards of runs with different reward models are measured from each run's own SFT model, "
            "in each reward model's own scale."
        )
    return Section("dominance", title, intro, [TableBlock(Table(head, rows, frozenset({"A", "minus B"})))])


def _policies(runs: RunSet, palette: Palette) -> Section:
    gold = runs.measure == "gold"
    head = [
        "Run",
        "policy",
        "algorithm",
        "β",
        "seed",
        "step",
        "proxy",
        *(["gold"] if gold else []),
        "KL",
        "KL (k1)",
        "tokens",
        "ended",
    ]
    rows = []
    for policy in runs.policies:
        row = policy.last
        rows.append(
            [
                Cell(policy.run),
                Cell(policy.name),
                Cell(palette.label(policy.algorithm), series=policy.algorithm),
                Cell("–" if policy.beta is None else f"{policy.beta:g}"),
                Cell(str(policy.seed)),
                Cell(str(row.step)),
                Cell(with_error(row.reward, row.reward_se)),
                *([Cell(with_error(row.gold, row.gold_se))] if gold else []),
                Cell(with_error(row.kl, row.kl_se)),
                Cell(with_error(row.kl_k1, row.kl_k1_se)),
                Cell(number(row.length, 1)),
                Cell(number(row.ended, 3)),
            ]
        )
    table = Table(head, rows, frozenset({"Run", "policy", "algorithm"}))
    intro = "At the end of training, ± one standard error over prompts; KL in nats per response."
    return Section(
        "policies", "All policies", intro, [TableBlock(table, f"{len(rows)} policies", folded=len(rows) > 12)]
    )


def _runs(runs: RunSet) -> Section:
    facts = [(run.folder.name, f"seed {run.info.seed}, {run.info.status}") for run in runs.runs]
    note = f"{runs.shifted} policies trained with per-prompt reward offsets are not included." if runs.shifted else ""
    return Section("runs", "The runs", note, [Facts("Folder, seed, status", facts)])


def _area_table(found: Sequence[MethodFrontier], budget: float, measure: Measure, palette: Palette) -> Table:
    rows = []
    for f in found:
        mean, low, high = student_interval(f.area)
        best = float(np.interp(budget, f.band.kl, f.band.mean))
        rows.append(
            [
                Cell(palette.label(f.algorithm), series=f.algorithm),
                Cell(str(f.band.seeds)),
                Cell(str(len(f.policies))),
                Cell(number(mean, 3) + ("" if np.isnan(low) else f" ({number(low, 3)} to {number(high, 3)})")),
                Cell(number(best)),
                Cell(number(f.fit.a if f.fit else None, 3)),
                Cell(number(f.fit.b if f.fit else None, 3)),
                Cell(number(f.fit.r_squared if f.fit else None, 3)),
            ]
        )
    gain = f"mean {'gold' if measure == 'gold' else 'proxy'} gain, KL ≤ {number(budget)}"
    head = ["Algorithm", "seeds", "policies", gain, f"at KL ≤ {number(budget)}", "a (per √nat)", "b (per nat)", "R²"]
    return Table(head, rows, frozenset({"Algorithm"}))


def _summary(runs: RunSet, palette: Palette) -> str:
    measure = runs.measure
    seeds = len({policy.seed for policy in runs.policies})
    names = listed([palette.label(name) for name in runs.algorithms])
    start = sft_value(runs, measure)
    found = sorted(method_frontiers(runs, measure), key=lambda f: -float(np.mean(f.area)))
    text = f"{names}: {len(runs.policies)} policies from {len(runs.runs)} runs with {seeds} seed{'s' if seeds > 1 else ''}."
    if found and start is not None:
        budget = number(largest_common_kl(runs))
        gains = listed([f"{palette.label(f.algorithm)} {signed(float(np.mean(f.area)))}" for f in found])
        kind = "gold" if measure == "gold" else "proxy"
        text += (
            f" Up to {budget} nats from the SFT model ({kind} reward {number(start)}), the mean gain along "
            f"the frontier is {gains}."
        )
    return text


def _difference(interval: Interval) -> str:
    return f"{signed(interval.value)} ({signed(interval.low)} to {signed(interval.high)})"


def _point(policy: RunPolicy, measure: Measure, palette: Palette) -> dict[str, Any]:
    return {
        "series": palette.label(policy.algorithm),
        "run": f"{policy.run}/{policy.name}",
        "beta": policy.beta,
        "seed": policy.seed,
        "kl": max(policy.last.kl or 0.0, 0.0),
        "value": policy.value(policy.last, measure),
    }
