"""A judge's verdicts on the policies of a contest, and what they add up to: rows of judgements.jsonl and head_to_head.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from p3o.errors import P3OError
from p3o.evaluation.contest import Contest, LengthUnit
from p3o.evaluation.length_control import LengthBin, LengthControlled, length_controlled_win_rate, win_rate_by_length
from p3o.evaluation.ranking import Compared, Ranked, bradley_terry_ranking
from p3o.evaluation.winrate import HeadToHead, head_to_head_by_prompt
from p3o.feedback.judge import Answer, Judge, Verdict, VerdictRates, verdict_rates
from p3o.feedback.judge.verdicts import Advance, unwatched
from p3o.files import open_for_reading, read_jsonl, write_json, write_jsonl

JUDGEMENTS_FILE, HEAD_TO_HEAD_FILE = "judgements.jsonl", "head_to_head.json"
BY_JUDGE = "judge"


@dataclass(frozen=True)
class Judged:
    """Verdicts on A against B.

    Attributes:
        numbers: of the prompts, one for each verdict.
        alone: prompts that only one of the two had answered; they were not judged.
        result, length_controlled, by_length: over the pairs with a verdict; None where there is none.
        unit: of the lengths.
    """

    a: str
    b: str
    numbers: list[int]
    verdicts: list[Verdict]
    alone: int
    rates: VerdictRates
    result: HeadToHead | None
    length_controlled: LengthControlled | None
    by_length: list[LengthBin]
    unit: LengthUnit


def texts_of(contest: Contest, pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[str], list[str]]:
    """Prompts, responses of A and responses of B of all pairs in a row, as a judge takes them."""
    rows = [
        (contest.prompts[n], contest.entries[a][n].response, contest.entries[b][n].response)
        for a, b in pairs
        for n in contest.shared(a, b)
    ]
    prompts, left, right = ([row[place] for row in rows] for place in range(3))
    return prompts, left, right


def judge_contest(
    contest: Contest, pairs: Sequence[tuple[str, str]], judge: Judge, *, advance: Advance = unwatched
) -> list[Judged]:
    """Have every pair judged on every prompt that both answered, in one call, so that one limit of cost holds for all.

    Raises:
        P3OError: as the judge does.
    """
    verdicts = iter(judge.compare(*texts_of(contest, pairs), advance=advance))
    return [_summed_up(contest, a, b, [next(verdicts) for _ in contest.shared(a, b)]) for a, b in pairs]


def rank(contest: Contest, judged: Sequence[Judged], *, baseline: str) -> list[Ranked]:
    """All policies in one order, by Bradley–Terry; empty for fewer than three, without evalica, or where no chain of pairs
    connects them."""
    rows = [
        Compared(pair.a, pair.b, contest.prompts[number], verdict.preference)
        for pair in judged
        for number, verdict in zip(pair.numbers, pair.verdicts, strict=True)
        if verdict.preference is not None
    ]
    names = {name for row in rows for name in (row.a, row.b)}
    if len(names) < 3 or find_spec("evalica") is None:
        return []
    try:
        return bradley_terry_ranking(rows, baseline=baseline if baseline in names else None)
    except ValueError:  # no chain of comparisons connects them
        return []


def write_judgements(folder: Path, judged: Sequence[Judged], *, judge: str, date: str) -> None:
    """Put the verdicts into the folder, in the place of earlier ones of this judge on the same pairs.

    Rows of other judges, of other pairs and by reward stay. Both files appear whole or not at all.

    Raises:
        P3OError: if a file that is there cannot be read, or the system refuses to write.
    """
    done = {frozenset((pair.a, pair.b)) for pair in judged}

    def stays(row: Mapping[str, Any]) -> bool:
        return row.get("judge") != judge or frozenset((row.get("a"), row.get("b"))) not in done

    judgements, results = folder / JUDGEMENTS_FILE, folder / HEAD_TO_HEAD_FILE
    rows = [row for row in read_jsonl(judgements) if stays(row)] if judgements.exists() else []
    rows += [_judgement(pair, index, judge) for pair in judged for index in range(len(pair.verdicts))]
    before = [row for row in _read_list(results) if stays(row)]
    write_jsonl(judgements, rows)
    write_json(results, before + [_result(pair, judge, date) for pair in judged if pair.result is not None])


def _summed_up(contest: Contest, a: str, b: str, verdicts: list[Verdict]) -> Judged:
    numbers = contest.shared(a, b)
    decided = [(n, v.preference) for n, v in zip(numbers, verdicts, strict=True) if v.preference is not None]
    rates, alone = verdict_rates(verdicts), contest.alone(a, b)
    if not decided:
        return Judged(a, b, numbers, verdicts, alone, rates, None, None, [], contest.unit)
    signs = [float(np.sign(preference)) for _, preference in decided]
    # Pairs on equal prompts share what the prompt does to them.
    prompts = [contest.prompts[n] for n, _ in decided]
    result = head_to_head_by_prompt(signs, prompts)
    difference = [contest.entries[a][n].length - contest.entries[b][n].length for n, _ in decided]
    controlled = length_controlled_win_rate(signs, difference, prompts=prompts)
    bins = win_rate_by_length(signs, difference, prompts=prompts)
    return Judged(a, b, numbers, verdicts, alone, rates, result, controlled, bins, contest.unit)


def _judgement(pair: Judged, index: int, judge: str) -> dict[str, Any]:
    verdict = pair.verdicts[index]
    row = {"a": pair.a, "b": pair.b, "prompt_index": pair.numbers[index], "judge": judge}
    row |= {"preference": verdict.preference, "outcome": verdict.outcome, "reasons": list(verdict.reasons)}
    shown = (("a", verdict.forward), ("b", verdict.backward))
    return row | {"answers": [_answer(first, answer) for first, answer in shown if answer is not None]}


def _answer(first: str, answer: Answer) -> dict[str, Any]:
    """One order: which response was shown first, which position was chosen, by whom, or why there is no answer."""
    told = {"error": answer.error} if answer.error else {}
    served = {"served_by": answer.served_by} if answer.served_by else {}
    return {"shown_first": first, "choice": answer.choice} | served | told


def _result(pair: Judged, judge: str, date: str) -> dict[str, Any]:
    assert pair.result is not None
    assert pair.length_controlled is not None
    served = sorted({x.served_by for v in pair.verdicts for x in (v.forward, v.backward) if x and x.served_by})
    bins = [{"low": b.low, "high": b.high} | {"win_rate": asdict(b.result)} for b in pair.by_length]
    row = {"a": pair.a, "b": pair.b, "by": BY_JUDGE, "judge": judge, "served_by": served, "date": date}
    counts = {name: value for name, value in asdict(pair.rates).items() if name not in ("wins", "ties", "losses")}
    return (
        row
        | asdict(pair.result)
        | counts
        | {
            "length_controlled": asdict(pair.length_controlled),
            "by_length": bins,
            "length_unit": pair.unit,
            "unpaired": pair.alone,
        }
    )


def _read_list(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with open_for_reading(path) as file:
        try:
            rows = json.load(file)
        except ValueError as error:
            raise P3OError(f"{path}: not valid JSON; remove it and run p3o evaluate again") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise P3OError(f"{path}: not a list of comparisons; remove it and run p3o evaluate again")
    return rows
