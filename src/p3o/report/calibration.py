"""How far the proxy reward can be trusted on the policies' own responses: agreement, calibration, and whether length fools it.

Pairs are the sampled responses of two policies to one prompt. The truth is the gold reward where there is one, else a judge's
verdicts; pairs on which it is silent are left out. The proxy's own probability that it is right is σ(|difference of rewards|).

N policies make up to N(N − 1)/2 pairs of a prompt, which are not independent: intervals are over prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import altair as alt
import numpy as np

from p3o.evaluation.winrate import HeadToHead, head_to_head_by_prompt
from p3o.report.chartstyle import Drawing
from p3o.report.numbers import number, percent
from p3o.report.palette import Palette
from p3o.report.rundata import Response, RunData
from p3o.report.tables import Cell, Table

BINS = 8
RESAMPLES = 2000
"""Of each interval; a report has a dozen of them."""


@dataclass(frozen=True)
class Checked:
    """One pair of responses to a prompt: how sure the proxy is (½ to 1), whether the truth agrees, and whether the better
    response is the longer one.

    ``better_is_longer`` is None for equal or unknown lengths.
    """

    prompt: int
    confidence: float
    agrees: bool
    better_is_longer: bool | None


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs of like confidence: its mean, the share that the truth agrees with and its 95 % interval."""

    confidence: float
    agreement: float
    low: float
    high: float
    pairs: int


def checked_pairs(data: RunData) -> tuple[str, list[Checked]]:
    """("gold" or the judge's name, the pairs); ("", []) where there is no truth to hold the proxy against."""
    by_prompt: dict[int, dict[str, Response]] = {}
    for row in data.responses:
        if row.decoding == "sample":
            by_prompt.setdefault(row.prompt_index, {})[row.policy] = row
    if data.has_gold:
        found = [
            _check(a, b, a.gold - b.gold)
            for rows in by_prompt.values()
            for a, b in combinations(rows.values(), 2)
            if a.gold is not None and b.gold is not None
        ]
        return "gold", [pair for pair in found if pair is not None]
    name = data.judgements[0].judge if data.judgements else ""
    found = [
        _check(rows[row.a], rows[row.b], row.preference)
        for row in data.judgements
        if row.judge == name and row.preference is not None
        if (rows := by_prompt.get(row.prompt_index)) and row.a in rows and row.b in rows
    ]
    return name, [pair for pair in found if pair is not None]


def calibration_bins(pairs: Sequence[Checked]) -> list[CalibrationBin]:
    """Bins that hold about equally many pairs."""
    ordered = sorted(pairs, key=lambda pair: pair.confidence)
    bins = []
    for part in np.array_split(np.arange(len(ordered)), min(BINS, len(ordered))):
        inside = [ordered[i] for i in part]
        share = agreement(inside)
        mean = float(np.mean([pair.confidence for pair in inside]))
        bins.append(CalibrationBin(mean, share.win_rate, share.low, share.high, len(inside)))
    return bins


def agreement(pairs: Sequence[Checked]) -> HeadToHead:
    """The share of pairs on which the truth agrees, as a win rate; its 95 % interval is over prompts."""
    signs = [1.0 if pair.agrees else -1.0 for pair in pairs]
    return head_to_head_by_prompt(signs, [pair.prompt for pair in pairs], resamples=RESAMPLES)


def expected_calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Mean distance of agreement and confidence, bins weighted by their pairs."""
    total = sum(b.pairs for b in bins)
    return sum(b.pairs * abs(b.agreement - b.confidence) for b in bins) / total


def calibration_chart(bins: Sequence[CalibrationBin], palette: Palette) -> Drawing:
    """Agreement against confidence; on the dashed line the proxy is as sure as it should be."""
    rows = [
        {"confidence": b.confidence, "agreement": b.agreement, "low": b.low, "high": b.high, "pairs": b.pairs}
        for b in bins
    ]
    base = alt.Chart(alt.NamedData("bins"))
    scale = alt.Scale(domain=[0.5, 1.0], nice=False)
    least = min(0.5, *(b.low for b in bins))
    x = alt.X(
        "confidence:Q",
        title="probability of being right according to the proxy",
        scale=scale,
        axis=alt.Axis(format="~%"),
    )
    y_title = "share on which the reference agrees"
    level = alt.Scale(domain=[least, 1.0])
    y = alt.Y("agreement:Q", title=y_title, scale=level, axis=alt.Axis(format="~%"))
    ideal = alt.Chart(alt.NamedData("ideal")).mark_line(strokeDash=[4, 4], color=palette.muted)
    layers = [
        ideal.encode(alt.X("confidence:Q", scale=scale), alt.Y("agreement:Q", scale=level)),
        base.mark_rule(color=palette.ink, opacity=0.5).encode(
            x, alt.Y("low:Q", title=y_title, scale=level), y2="high:Q"
        ),
        base.mark_point(filled=True, size=60, color=palette.ink).encode(
            x,
            y,
            tooltip=[
                alt.Tooltip("confidence:Q", title="confidence", format=".1%"),
                alt.Tooltip("agreement:Q", title="agreement", format=".1%"),
                alt.Tooltip("pairs:Q", title="pairs"),
            ],
        ),
    ]
    ideal_rows = [{"confidence": edge, "agreement": edge} for edge in (0.5, 1.0)]
    return Drawing(alt.layer(*layers), {"bins": rows, "ideal": ideal_rows})


def agreement_table(pairs: Sequence[Checked]) -> Table:
    """Agreement over all pairs, and apart where the better response is the longer or the shorter one."""
    groups = [
        ("all", list(pairs)),
        ("the better response is longer", [pair for pair in pairs if pair.better_is_longer is True]),
        ("the better response is shorter", [pair for pair in pairs if pair.better_is_longer is False]),
    ]
    rows = []
    for name, group in groups:
        if not group:
            continue
        share = agreement(group)
        limits = f"{number(100 * share.low, 1)} to {number(100 * share.high, 1)}"
        shown = Cell(percent(share.win_rate, 1), interval=(share.low, share.win_rate, share.high))
        rows.append([Cell(name), Cell(str(len(group))), shown, Cell(limits)])
    return Table(["Pairs", "number", "proxy agrees", "95 % interval"], rows, frozenset({"Pairs"}))


def _check(a: Response, b: Response, truth: float) -> Checked | None:
    """None where the truth names no better response, the proxy no difference, or a response has no reward."""
    if a.reward is None or b.reward is None:
        return None
    difference = a.reward - b.reward
    if truth == 0 or difference == 0:
        return None
    longer = (
        None if a.length is None or b.length is None or a.length == b.length else (a.length > b.length) == (truth > 0)
    )
    confidence = 1 / (1 + float(np.exp(-min(abs(difference), 700.0))))
    return Checked(a.prompt_index, confidence, (difference > 0) == (truth > 0), longer)
