"""The paragraph at the top of the report: what the numbers say, in plain words, without taking sides."""

from collections.abc import Sequence

from p3o.report.frontiers import (
    Measure,
    OverOptimisation,
    best_of_n,
    frontiers,
    judge,
    matched_kl,
    over_optimisation,
    value_of,
)
from p3o.report.numbers import listed, number, percent, with_error
from p3o.report.palette import Palette
from p3o.report.rundata import Evaluation, RunData
from p3o.report.tables import policy_name


def summary(data: RunData, palette: Palette) -> str:
    """A few sentences, each left out where its numbers are missing."""
    measure = judge(data)
    sentences = [
        _status(data),
        _what(data, palette),
        _yardsticks(data, measure),
        _ends(data, measure, palette),
        _matched(data, measure, palette),
        _wins(data, measure, palette),
        _over_optimised(data, palette),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _status(data: RunData) -> str:
    if data.info.finished:
        return ""
    state = "has failed" if data.info.status == "failed" else f"is {data.info.status}"
    return f"This run {state}: the report shows its results so far."


def _what(data: RunData, palette: Palette) -> str:
    if not data.algorithms:
        return "No policy was trained by reinforcement learning in this run yet."
    names = listed([palette.label(name) for name in data.algorithms])
    prompts = {row.prompts for row in data.evaluations}
    count = f"{max(prompts)} held-out prompts" if prompts else "held-out prompts"
    if len(data.algorithms) == 1:
        return f"{names} started from a supervised fine-tuned model (SFT) and was evaluated on {count}."
    return f"{names} started from the same supervised fine-tuned model (SFT) and were evaluated on {count}."


def _yardsticks(data: RunData, measure: Measure) -> str:
    sft = data.sft_sample
    if sft is None:
        return ""
    start = value_of(sft, measure)
    if start is None:
        return ""
    others = [(row, value[0]) for row in data.evaluations if row.policy == "sft" and (value := value_of(row, measure))]
    greedy = [f"greedy {number(value)}" for row, value in others if row.decoding == "greedy"]
    best = max(((n, value) for row, value in others if (n := best_of_n(row))), default=None)
    chosen = [f"best of {best[0]} chosen by the proxy {number(best[1])}"] if best else []
    more = f" ({', '.join(greedy + chosen)})" if greedy or chosen else ""
    name = "The gold reward, which training never sees," if measure == "gold" else "The reward"
    return f"{name} is {with_error(*start)} for samples of the SFT model{more}."


def _ends(data: RunData, measure: Measure, palette: Palette) -> str:
    rows = [row for policy in data.trained_policies if (row := data.last(policy)) and value_of(row, measure)]
    ranked = sorted(rows, key=lambda row: -_mean(row, measure))
    if not ranked:
        return ""
    ends = [
        f"{with_error(*value_of(row, measure) or (None, None))} for {policy_name(data, row.policy, palette)} "
        f"at a KL of {number(row.kl)}"
        for row in ranked
    ]
    return f"After training it is {listed(ends)} (± one standard error; KL to SFT in nats per response)."


def _matched(data: RunData, measure: Measure, palette: Palette) -> str:
    found = frontiers(data, measure)
    budget = matched_kl(found)
    if len(found) < 2 or budget is None:
        return ""
    ranked = sorted(((f.value_at(budget), palette.label(f.algorithm)) for f in found), reverse=True)
    values = listed([f"{name} {number(value)}" for value, name in ranked])
    return f"Up to {number(budget)} nats, the largest KL that every algorithm reached, the best values are {values}."


def _wins(data: RunData, measure: Measure, palette: Palette) -> str:
    found = [c for c in data.comparisons if c.b == "sft" and c.by == measure]
    if not found:
        return ""
    rates = [
        f"{policy_name(data, c.a, palette)} {percent(c.win_rate)} ({number(100 * c.low, 0)} to {number(100 * c.high, 0)})"
        for c in sorted(found, key=lambda c: -c.win_rate)
    ]
    return f"Win rates against SFT, prompt by prompt: {listed(rates)}, with 95\N{NO-BREAK SPACE}% intervals."


def _over_optimised(data: RunData, palette: Palette) -> str:
    """The policies whose gold reward fell: over-optimised if the proxy did not fall as well, else badly trained."""
    fallen = [o for o in over_optimisation(data) if o.significant]
    both = [o for o in fallen if o.end.reward < o.peak.reward]
    exploited = [o for o in fallen if o not in both]

    def falls(of: Sequence[OverOptimisation]) -> str:
        return listed([f"{policy_name(data, o.policy, palette)} by {number(o.fall)}" for o in of])

    told = []
    if exploited:
        told.append(
            f"There is over-optimisation: the gold reward ended below its highest point for {falls(exploited)}."
        )
    if both:
        told.append(
            f"The gold reward ended below its highest point and the proxy fell with it (unstable training) for {falls(both)}."
        )
    return " ".join(told)


def _mean(row: Evaluation, measure: Measure) -> float:
    value = value_of(row, measure)
    return value[0] if value else float("-inf")
