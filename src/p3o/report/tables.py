"""The tables of the report as plain rows; the templates and the terminal only print them."""

from collections.abc import Sequence
from dataclasses import dataclass

from p3o.report.frontiers import Frontier, Measure, OverOptimisation, best_of_n, matched_kl
from p3o.report.numbers import number, percent, signed, with_error
from p3o.report.palette import Palette
from p3o.report.rundata import Comparison, Evaluation, RunData


@dataclass(frozen=True)
class Cell:
    """One cell. ``series`` puts the algorithm's mark before the text; ``interval`` draws low, rate, high in 0–1."""

    text: str
    series: str | None = None
    interval: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Table:
    """A table; columns whose title is in ``words`` are set left, the others right, as numbers are."""

    head: list[str]
    rows: list[list[Cell]]
    words: frozenset[str]


def policy_name(data: RunData, policy: str, palette: Palette) -> str:
    """The algorithm's label, with the run's name where several runs share the algorithm."""
    algorithms = {row.policy: row.algorithm for row in data.evaluations}
    algorithm = algorithms.get(policy)
    if algorithm is None:
        return "SFT" if policy == "sft" else policy
    shared = sum(other == algorithm for other in algorithms.values()) > 1
    return f"{palette.label(algorithm)} ({policy})" if shared else palette.label(algorithm)


def decoding_name(row: Evaluation) -> str:
    """How the responses were drawn, in words."""
    n = best_of_n(row)
    if n is not None:
        return f"best of {n}"
    return {"sample": "sampled", "greedy": "greedy"}.get(row.decoding, row.decoding)


def fit_table(found: Sequence[Frontier], palette: Palette) -> Table:
    """Per algorithm: a and b of the fit, R², and the best reward within the KL budget that all algorithms reached."""
    budget = matched_kl(found)
    matched = f"at KL ≤ {number(budget)}" if budget is not None else "at equal KL"
    rows = [
        [
            Cell(palette.label(f.algorithm), series=f.algorithm),
            Cell(number(f.fit.a if f.fit else None, 3)),
            Cell(number(f.fit.b if f.fit else None, 3)),
            Cell(number(f.fit.r_squared if f.fit else None, 3)),
            Cell(number(f.value_at(budget) if budget is not None else None)),
            Cell(number(f.largest_kl)),
        ]
        for f in found
    ]
    head = ["Algorithm", "a (per √nat)", "b (per nat)", "R²", matched, "largest KL"]
    return Table(head, rows, frozenset({"Algorithm"}))


def over_optimisation_table(data: RunData, found: Sequence[OverOptimisation], palette: Palette) -> Table:
    """Per policy: where gold was highest, where it ended, and whether the fall is more than noise."""
    rows = [
        [
            Cell(policy_name(data, o.policy, palette), series=o.algorithm),
            Cell(with_error(o.peak.gold, o.peak.gold_se)),
            Cell(f"{o.peak.step}"),
            Cell(number(o.peak.kl)),
            Cell(with_error(o.end.gold, o.end.gold_se)),
            Cell(number(o.end.kl)),
            Cell(number(o.fall) if o.fall else "0"),
            Cell("yes" if o.significant else "no"),
        ]
        for o in found
    ]
    head = ["Algorithm", "highest gold", "at step", "at KL", "last gold", "last KL", "fall", "beyond 2 s.e."]
    return Table(head, rows, frozenset({"Algorithm", "beyond 2 s.e."}))


def head_to_head_table(data: RunData, comparisons: Sequence[Comparison], palette: Palette) -> Table:
    """Win rates with their 95 % intervals, and each side's KL and length, as in the paper's Figure 5."""
    algorithms = {row.policy: row.algorithm for row in data.evaluations}
    rows = []
    for c in comparisons:
        a, b = data.last(c.a), data.last(c.b)
        rows.append(
            [
                Cell(policy_name(data, c.a, palette), series=algorithms.get(c.a)),
                Cell(policy_name(data, c.b, palette), series=algorithms.get(c.b)),
                Cell(percent(c.win_rate, 1), interval=(c.low, c.win_rate, c.high)),
                Cell(f"{number(100 * c.low, 1)} to {number(100 * c.high, 1)}"),
                Cell(f"{c.wins} / {c.ties} / {c.losses}"),
                Cell(f"{_of(a, 'kl')} / {_of(b, 'kl')}"),
                Cell(f"{_of(a, 'length', 1)} / {_of(b, 'length', 1)}"),
            ]
        )
    head = ["A", "against B", "A wins", "95 % interval", "won / tied / lost", "KL A / B", "tokens A / B"]
    return Table(head, rows, frozenset({"A", "against B"}))


def evaluation_table(data: RunData, palette: Palette) -> Table:
    """Every evaluation row of the run."""
    gold = data.has_gold
    names = {policy: policy_name(data, policy, palette) for policy in {row.policy for row in data.evaluations}}
    head = ["Policy", "responses", "β", "step", "prompts", "proxy reward", *(["gold reward"] if gold else []), "KL"]
    rows = []
    for row in data.evaluations:
        shown = [
            Cell(names[row.policy], series=row.algorithm),
            Cell(decoding_name(row)),
            Cell("–" if row.beta is None else f"{row.beta:g}"),
            Cell(str(row.step)),
            Cell(str(row.prompts)),
            Cell(with_error(row.reward, row.reward_se)),
            *([Cell(with_error(row.gold, row.gold_se))] if gold else []),
            # Greedy and best-of-n responses are not samples of a policy: averaging their log-ratios gives no KL.
            Cell(with_error(row.kl, row.kl_se) if row.decoding == "sample" else "–"),
            Cell(with_error(row.kl_k1, row.kl_k1_se) if row.decoding == "sample" else "–"),
            Cell(number(row.length, 1)),
            Cell(percent(row.ended, 1)),
        ]
        rows.append(shown)
    return Table([*head, "KL (k1)", "tokens", "ended"], rows, frozenset({"Policy", "responses"}))


def shift_table(
    plain: Sequence[Frontier], shifted: Sequence[tuple[float, Frontier]], measure: Measure, palette: Palette
) -> Table:
    """Last policies without and with per-prompt offsets: value, KL, and whether every point is the same number."""
    by_name = {frontier.algorithm: frontier for frontier in plain}
    value = "gold reward" if measure == "gold" else "proxy reward"
    rows = []
    for shift, frontier in shifted:
        before = by_name.get(frontier.algorithm)
        if before is None:
            continue
        old, new = before.points[-1], frontier.points[-1]
        same = [(p.step, p.kl, p.value) for p in before.points] == [(p.step, p.kl, p.value) for p in frontier.points]
        rows.append(
            [
                Cell(palette.label(frontier.algorithm), series=frontier.algorithm),
                Cell(f"{shift:g}"),
                Cell(with_error(old.value, old.value_se)),
                Cell(with_error(new.value, new.value_se)),
                Cell(signed(new.value - old.value)),
                Cell(number(old.kl)),
                Cell(number(new.kl)),
                Cell("identical at every step" if same else "different"),
            ]
        )
    head = [
        "Algorithm",
        "offset s.d.",
        f"{value}, none",
        f"{value}, offset",
        "change",
        "KL, none",
        "KL, offset",
        "curves",
    ]
    return Table(head, rows, frozenset({"Algorithm", "curves"}))


def _of(row: Evaluation | None, name: str, digits: int = 2) -> str:
    return "–" if row is None else number(getattr(row, name), digits)
