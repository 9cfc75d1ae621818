"""Head to head: by reward and by judges, as a matrix and pair by pair; at a price on KL; at equal length; and in one order."""

from collections.abc import Sequence
from importlib.util import find_spec

from p3o.evaluation.ranking import Compared, Ranked, bradley_terry_ranking
from p3o.evaluation.winrate import kl_adjusted_win_rates
from p3o.report.blocks import Block, Section, TableBlock
from p3o.report.frontiers import Measure, judge
from p3o.report.numbers import number, percent, signed
from p3o.report.palette import Palette
from p3o.report.rundata import Comparison, Response, RunData
from p3o.report.tables import Cell, Table, head_to_head_table, policy_name

_SFT = "sft"


def head_to_head_section(data: RunData, palette: Palette) -> Section:
    """Win rates by every criterion that the run holds."""
    title = "Head to head"
    if not data.comparisons:
        why = "Left out: head_to_head.json is missing or empty; it is written after the last evaluation."
        return Section("headtohead", title, why)
    intro = (
        "Each of two policies answers the same held-out prompts once. The higher reward, or the judge, decides "
        "the winner; a tie counts one half. The bar shows the 95\N{NO-BREAK SPACE}% interval; if it crosses the "
        "middle, these prompts do not show which policy is better."
    )
    blocks: list[Block] = []
    for name, found in _criteria(data).items():
        if len(policies(found)) > 2:
            blocks.append(TableBlock(matrix_table(data, found, palette), f"{name}: row against column"))
        blocks.append(
            TableBlock(head_to_head_table(data, found, palette), f"{name}: pair by pair", folded=bool(blocks))
        )
        if any(c.length_controlled for c in found):
            blocks.append(
                TableBlock(
                    trust_table(data, found, palette), f"{name}: at equal length, and how reliable the verdicts are"
                )
            )
            if any(c.by_length for c in found):
                by_length = length_table(data, found, palette)
                blocks.append(TableBlock(by_length, f"{name}: by the difference of lengths, A minus B", folded=True))
        if ranked := ranking(data, found):
            blocks.append(TableBlock(ranking_table(data, ranked, palette), f"{name}: Bradley–Terry ranking"))
    if adjusted := price_table(data, palette):
        blocks.append(TableBlock(adjusted, f"By {_reward_name(judge(data))} reward, with a price on KL"))
    return Section("headtohead", title, intro, blocks)


def policies(found: Sequence[Comparison]) -> list[str]:
    """Everyone who was compared, SFT last."""
    names = dict.fromkeys(name for c in found for name in (c.a, c.b))
    return sorted(names, key=lambda name: name == _SFT)


def matrix_table(data: RunData, found: Sequence[Comparison], palette: Palette) -> Table:
    """How often the policy of the row beats that of the column, with the 95 % interval."""
    cells = {(c.a, c.b): c for c in [*(c.mirrored() for c in found), *found]}
    names = policies(found)
    rows = [
        [_named(data, a, palette), *(Cell(_matrix_cell(cells.get((a, b)), same=a == b)) for b in names)] for a in names
    ]
    return Table(["wins of", *(policy_name(data, b, palette) for b in names)], rows, frozenset({"wins of"}))


def trust_table(data: RunData, found: Sequence[Comparison], palette: Palette) -> Table:
    """The length-controlled rate beside the raw one, and the rates that show whether the judge can be believed."""
    rows = []
    for c in found:
        controlled = c.length_controlled
        rows.append(
            [
                _named(data, c.a, palette),
                _named(data, c.b, palette),
                Cell(f"{percent(c.win_rate, 1)}"),
                Cell(
                    f"{percent(controlled.win_rate, 1)} ({_limits(controlled.low, controlled.high)})"
                    if controlled
                    else "–",
                    interval=(controlled.low, controlled.win_rate, controlled.high) if controlled else None,
                ),
                Cell(percent(c.flip_rate, 1)),
                Cell(percent(c.first_position_rate, 1)),
                Cell(f"{c.invalid} / {c.failed}"),
            ]
        )
    head = ["A", "against B", "A wins", "A wins at equal length", "flips", "first chosen", "invalid / failed"]
    return Table(head, rows, frozenset({"A", "against B"}))


def length_table(data: RunData, found: Sequence[Comparison], palette: Palette) -> Table:
    """Win rates in bins of the length difference."""
    rows = [
        [
            _named(data, c.a, palette),
            _named(data, c.b, palette),
            Cell(f"{number(b.low, 0)} to {number(b.high, 0)} {c.length_unit or ''}".rstrip()),
            Cell(
                f"{percent(b.win_rate.win_rate)} ({_limits(b.win_rate.low, b.win_rate.high)})",
                interval=(b.win_rate.low, b.win_rate.win_rate, b.win_rate.high),
            ),
        ]
        for c in found
        for b in c.by_length
    ]
    return Table(["A", "against B", "longer by", "A wins"], rows, frozenset({"A", "against B"}))


def ranking(data: RunData, found: Sequence[Comparison]) -> list[Ranked]:
    """All policies in one order; empty for fewer than three, without evalica, or where no chain of pairs connects them."""
    if len(policies(found)) < 3 or find_spec("evalica") is None:
        return []
    rows = _judged_rows(data, found[0].judge) if found[0].judge else _reward_rows(data, found)
    names = {name for row in rows for name in (row.a, row.b)}
    try:
        return bradley_terry_ranking(rows, baseline=_SFT if _SFT in names else None, resamples=200) if rows else []
    except ValueError:
        return []


def ranking_table(data: RunData, ranked: Sequence[Ranked], palette: Palette) -> Table:
    """Strengths as log-odds against SFT, or against the mean of all."""
    rows = [
        [
            _named(data, row.name, palette),
            Cell(str(row.rank)),
            Cell(str(row.rank_low) if row.rank_low == row.rank_high else f"{row.rank_low} to {row.rank_high}"),
            Cell(signed(row.strength)),
            Cell(f"{signed(row.low)} to {signed(row.high)}" if row.low < row.high else "by definition"),
        ]
        for row in ranked
    ]
    against = "log-odds against SFT" if any(row.name == _SFT for row in ranked) else "log-odds against the mean"
    return Table(["Policy", "rank", "95 % of ranks", against, "95 % interval"], rows, frozenset({"Policy"}))


def price_table(data: RunData, palette: Palette) -> Table | None:
    """Trained policies against each other by reward − price · KL: at no price, and at the β of their training."""
    by_policy = _sampled(data)
    names = [name for name in data.trained_policies if name in by_policy]
    betas = sorted({row.beta for row in data.evaluations if row.beta})
    if len(names) < 2 or not betas:
        return None
    prices = [0.0, betas[len(betas) // 2]]
    measure = judge(data)
    rows = []
    for place, a in enumerate(names):
        for b in names[place + 1 :]:
            shared = [
                i for i in by_policy[a] if i in by_policy[b] and _scored(by_policy[a][i], by_policy[b][i], measure)
            ]
            left, right = (_rewards_and_kls([by_policy[name][i] for i in shared], measure) for name in (a, b))
            if not shared or left is None or right is None:
                continue
            found = kl_adjusted_win_rates(*left, *right, prices)
            rows.append(
                [
                    _named(data, a, palette),
                    _named(data, b, palette),
                    *(
                        Cell(
                            f"{percent(row.result.win_rate, 1)} ({_limits(row.result.low, row.result.high)})",
                            interval=(row.result.low, row.result.win_rate, row.result.high),
                        )
                        for row in found
                    ),
                ]
            )
    head = ["A", "against B", "A wins, no price on KL", f"A wins, {prices[1]:g} of reward per nat"]
    return Table(head, rows, frozenset({"A", "against B"})) if rows else None


def _criteria(data: RunData) -> dict[str, list[Comparison]]:
    """Comparisons by what decided them, under a name for people: the judging reward, the other, then judges."""
    ordered = sorted({c.by for c in data.comparisons}, key=lambda by: (by != judge(data), by == "judge"))
    found: dict[str, list[Comparison]] = {}
    for by in ordered:
        for c in (c for c in data.comparisons if c.by == by):
            found.setdefault(_criterion(c), []).append(c)
    return found


def _reward_name(by: str) -> str:
    """What the page calls the reward that training maximises, or the gold one."""
    return "proxy" if by == "reward" else by


def _criterion(c: Comparison) -> str:
    if c.judge is None:
        return f"Judged by {_reward_name(c.by)} reward"
    served = f", answered by {', '.join(c.served_by)}" if c.served_by else ""
    return f"Judged by {c.judge}{served}{f', {c.date}' if c.date else ''}"


def _judged_rows(data: RunData, name: str | None) -> list[Compared]:
    return [
        Compared(row.a, row.b, row.prompt_index, row.preference)
        for row in data.judgements
        if row.judge == name and row.preference is not None
    ]


def _reward_rows(data: RunData, found: Sequence[Comparison]) -> list[Compared]:
    by_policy, measure = _sampled(data), found[0].by
    rows = []
    for c in found:
        left, right = by_policy.get(c.a, {}), by_policy.get(c.b, {})
        for index in left.keys() & right.keys():
            a, b = getattr(left[index], measure, None), getattr(right[index], measure, None)
            if a is not None and b is not None:
                rows.append(Compared(c.a, c.b, index, a - b))
    return rows


def _sampled(data: RunData) -> dict[str, dict[int, Response]]:
    """Policy -> prompt -> its sampled response."""
    found: dict[str, dict[int, Response]] = {}
    for row in data.responses:
        if row.decoding == "sample":
            found.setdefault(row.policy, {})[row.prompt_index] = row
    return found


def _scored(a: Response, b: Response, measure: Measure) -> bool:
    return None not in (getattr(a, measure), getattr(b, measure))


def _rewards_and_kls(rows: Sequence[Response], measure: Measure) -> tuple[list[float], list[float]] | None:
    """Both for every row, or None if one of them was not measured."""
    rewards = [row.reward if measure == "reward" else row.gold for row in rows]
    kls = [row.kl for row in rows]
    known = [reward for reward in rewards if reward is not None], [kl for kl in kls if kl is not None]
    return known if len(known[0]) == len(known[1]) == len(rows) else None


def _named(data: RunData, policy: str, palette: Palette) -> Cell:
    algorithm = next((row.algorithm for row in data.evaluations if row.policy == policy), None)
    return Cell(policy_name(data, policy, palette), series=algorithm)


def _matrix_cell(c: Comparison | None, *, same: bool) -> str:
    if c is None:
        return "" if same else "–"
    return f"{percent(c.win_rate)} ({_limits(c.low, c.high)})"


def _limits(low: float, high: float) -> str:
    return f"{number(100 * low, 0)}–{number(100 * high, 0)}"
