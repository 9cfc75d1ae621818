"""The benchmark's chart: efficiency of every method, and frontiers against the limit."""

from collections.abc import Mapping
from typing import Any

import altair as alt

from p3o.bench.efficiency import paired_interval
from p3o.bench.look import dressed
from p3o.bench.methods import METHODS, PROBLEMS
from p3o.bench.summary import problem_efficiency

SHOWN = ("p3o_r", "ppo_replay", "ppo", "p3o_v2", "online_dpo")
COLOURS = ("#7a4fc9", "#e08a5b", "#cf4a2b", "#1d5fd1", "#2f8f4e")
TASKS_SHOWN = {"bandit_0": "bandit", "sequence": "sequence", "factorised_160": "factorised, 160 tokens"}


def frontier_chart(results: Mapping[str, Any]) -> alt.VConcatChart:
    """Above, efficiency with 95% intervals; below, mean reward gain against KL with the Gibbs limit in grey."""
    return dressed(
        alt.vconcat(_efficiencies(results), _frontiers(results), spacing=28).resolve_scale(color="independent")
    )


def _efficiencies(results: Mapping[str, Any]) -> alt.HConcatChart:
    order = sorted(results["results"], key=lambda name: -problem_efficiency(results, name, "sequence").mean())
    panels = []
    for problem in PROBLEMS:
        rows = []
        for name in order:
            values = problem_efficiency(results, name, problem)
            own = paired_interval(values)
            rows.append({"method": METHODS[name].title, "mean": own.mean, "low": own.low, "high": own.high})
        base = alt.Chart(alt.Data(values=rows)).encode(
            y=alt.Y("method:N", sort=[METHODS[name].title for name in order], title=None)
        )
        scale = alt.Scale(zero=False)
        bar = base.mark_rule(color="#5b6470").encode(x=alt.X("low:Q", scale=scale, title=None), x2="high:Q")
        dot = base.mark_point(filled=True, size=60, opacity=1).encode(
            x=alt.X("mean:Q", scale=scale, title="frontier efficiency"),
            color=alt.condition(alt.datum.method == "P3O-R", alt.value(COLOURS[0]), alt.value("#1b1f24")),
        )
        panels.append((bar + dot).properties(width=200, height=240, title=problem))
    joined: alt.HConcatChart = alt.hconcat(*panels, spacing=16)
    return joined


def _frontiers(results: Mapping[str, Any]) -> alt.HConcatChart:
    shown = [name for name in SHOWN if name in results["results"]]
    titles = [METHODS[name].title for name in shown]
    panels = []
    for task, title in TASKS_SHOWN.items():
        some = results["results"][shown[0]][task]
        limit = [
            {"kl": 0.0, "gain": 0.0},
            *({"kl": k, "gain": g} for k, g in zip(some["kl"], some["gibbs_gain"], strict=True)),
        ]
        rows = [
            {"kl": k, "gain": g, "method": METHODS[name].title}
            for name in shown
            for k, g in zip(results["results"][name][task]["kl"], results["results"][name][task]["gain"], strict=True)
        ]
        x = alt.X("kl:Q", title="KL from the reference, nats")
        gibbs = alt.Chart(alt.Data(values=limit)).mark_line(color="#5b6470", strokeDash=[4, 3]).encode(x=x, y="gain:Q")
        lines = (
            alt.Chart(alt.Data(values=rows))
            .mark_line()
            .encode(
                x=x,
                y=alt.Y("gain:Q", title="reward gain (dashed: the limit)"),
                color=alt.Color(
                    "method:N", scale=alt.Scale(domain=titles, range=list(COLOURS[: len(titles)])), title=None
                ),
            )
        )
        panels.append((gibbs + lines).properties(width=220, height=220, title=title))
    joined: alt.HConcatChart = alt.hconcat(*panels, spacing=16)
    return joined
