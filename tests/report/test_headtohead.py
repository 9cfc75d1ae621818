"""Head to head and calibration in the report: what the tables say against the rows they are made of."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest
from tests.report.synthetic_run import write_run

from p3o.report.blocks import Figure, TableBlock
from p3o.report.calibration import (
    Checked,
    agreement,
    agreement_table,
    calibration_bins,
    checked_pairs,
    expected_calibration_error,
)
from p3o.report.headtohead import head_to_head_section, matrix_table, price_table, ranking, trust_table
from p3o.report.palette import page_palette
from p3o.report.reading import read_run
from p3o.report.rundata import Comparison, Evaluation, Judgement, Response, RunData, RunInfo
from p3o.report.sections import reward_model_section

WORDS = {
    "judge": "m (tldr)",
    "served_by": ["m-2026"],
    "date": "2026-11-22",
    "flip_rate": 0.25,
    "first_position_rate": 0.625,
    "invalid": 2,
    "failed": 1,
    "length_controlled": {"win_rate": 0.55, "low": 0.45, "high": 0.65},
    "by_length": [{"low": -9.0, "high": -1.0, "win_rate": {"win_rate": 0.2, "low": 0.1, "high": 0.4}}],
}


def run_of(**fields: object) -> RunData:
    rows = [
        Evaluation(policy=p, algorithm=None if p == "sft" else p, beta=0.1, prompts=9, reward=0.0, kl=1.0)
        for p in ("sft", "ppo", "p3o_v2")
    ]
    info = RunInfo(name="tiny", status="complete", seed=0)
    return RunData(folder=Path("tiny"), info=info, config="", evaluations=rows, **fields)


def compared(a: str, b: str, rate: float, **more: object) -> Comparison:
    numbers = {"wins": 0, "ties": 0, "losses": 0, "win_rate": rate, "low": rate - 0.1, "high": rate + 0.1}
    return Comparison(a=a, b=b, **(numbers | more))


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_the_matrix_shows_each_pair_from_both_sides() -> None:
    found = [compared("ppo", "sft", 0.8), compared("ppo", "p3o_v2", 0.4)]
    data = run_of(comparisons=found)
    table = matrix_table(data, found, page_palette(data.algorithms))
    assert table.head == ["wins of", "PPO", "P3O-V2", "SFT"]
    assert [[plain(cell.text) for cell in row] for row in table.rows] == [
        ["PPO", "", "40 % (30–50)", "80 % (70–90)"],
        ["P3O-V2", "60 % (50–70)", "", "–"],
        ["SFT", "20 % (10–30)", "–", ""],
    ]


def test_a_judge_is_named_with_its_snapshot_date_and_rates() -> None:
    data = run_of(comparisons=[compared("ppo", "sft", 0.6), compared("ppo", "sft", 0.7, by="judge", **WORDS)])
    palette = page_palette(data.algorithms)
    headings = [block.heading for block in head_to_head_section(data, palette).blocks]
    assert "Judged by m (tldr), answered by m-2026, 2026-11-22: pair by pair" in headings
    (row,) = trust_table(data, data.comparisons[1:], palette).rows
    assert [plain(cell.text) for cell in row[2:]] == ["70.0 %", "55.0 % (45–65)", "25.0 %", "62.5 %", "2 / 1"]


def test_a_mirrored_comparison_mirrors_length_too() -> None:
    there = compared("sft", "ppo", 0.7, by="judge", **WORDS)
    back = there.mirrored()
    assert back.length_controlled is not None
    assert back.length_controlled.win_rate == pytest.approx(0.45)
    assert (back.by_length[0].low, back.by_length[0].high, back.by_length[0].win_rate.win_rate) == (1.0, 9.0, 0.8)
    assert back.mirrored().win_rate == pytest.approx(there.win_rate)


def test_the_ranking_of_a_judge_comes_from_its_verdicts() -> None:
    pairs = [("ppo", "sft", 1.0), ("p3o_v2", "sft", 1.0), ("p3o_v2", "ppo", 1.0), ("p3o_v2", "ppo", None)]
    verdicts = [
        Judgement(a=a, b=b, prompt_index=i, judge="m (tldr)", preference=p if i % 4 else 0.0)
        for i in range(20)
        for a, b, p in pairs
    ]
    found = [compared(a, b, 0.8, by="judge", **WORDS) for a, b, _ in pairs[:3]]
    assert [row.name for row in ranking(run_of(judgements=verdicts), found)] == ["p3o_v2", "ppo", "sft"]
    assert ranking(run_of(judgements=verdicts), found[:1]) == []


def response(policy: str, index: int, reward: float, kl: float, gold: float | None = None, length: int = 5) -> Response:
    text = {"policy": policy, "prompt_index": index, "prompt": "p", "response": "r"}
    return Response(**text, reward=reward, kl=kl, gold=gold, length=length)


def test_a_price_on_kl_is_taken_off_both() -> None:
    rows = [response("ppo", i, 1.05, 2.0) for i in range(4)] + [response("p3o_v2", i, 1.0, 1.0) for i in range(4)]
    table = price_table(run_of(responses=rows), page_palette(["ppo", "p3o_v2"]))
    assert table is not None
    assert [plain(cell.text)[:5] for cell in table.rows[0][2:]] == ["100.0", "0.0 %"]
    assert table.head[-1] == "A wins, 0.1 of reward per nat"
    assert price_table(run_of(responses=rows[:4]), page_palette(["ppo"])) is None


def test_every_table_calls_the_reward_by_one_name() -> None:
    """The proxy, on a page without a gold reward; its key in the files is `reward`."""
    rows = [response(name, i, 1.0, 1.0) for name in ("ppo", "p3o_v2") for i in range(4)]
    data = run_of(responses=rows, comparisons=[compared("ppo", "p3o_v2", 0.5, by="reward")])
    section = head_to_head_section(data, page_palette(["ppo", "p3o_v2"]))
    headings = [block.heading for block in section.blocks if isinstance(block, TableBlock)]
    assert len(headings) >= 2
    assert all("proxy reward" in heading for heading in headings), headings


def test_calibration_counts_agreement_and_whether_length_fools() -> None:
    rows = []
    for i in range(10):
        rows.append(response("ppo", i, 2.0, 1.0, gold=1.0 if i < 8 else -1.0, length=9))
        rows.append(response("sft", i, 0.0, 0.0, gold=0.0, length=5))
    data = run_of(responses=rows)
    data.evaluations[0] = data.evaluations[0].model_copy(update={"gold": 0.0})
    truth, pairs = checked_pairs(data)
    assert (truth, len(pairs)) == ("gold", 10)
    assert expected_calibration_error(calibration_bins(pairs)) >= 0
    assert {round(pair.confidence, 12) for pair in pairs} == {round(float(expit(2.0)), 12)}
    shares = [(row[0].text, row[1].text, plain(row[2].text)) for row in agreement_table(pairs).rows]
    assert shares == [
        ("all", "10", "80.0 %"),
        ("the better response is longer", "8", "100.0 %"),
        ("the better response is shorter", "2", "0.0 %"),
    ]


def test_ten_pairs_of_a_prompt_are_one_prompt() -> None:
    """Five policies on six prompts, the proxy right on all 60 pairs: scipy's interval of 6 of 6, not of 60 of 60."""
    rows = [
        response(f"p{k}", i, float(k), 1.0, gold=float(k + k * i), length=k + 1) for i in range(6) for k in range(5)
    ]
    data = run_of(responses=rows)
    data.evaluations[0] = data.evaluations[0].model_copy(update={"gold": 0.0})
    _, pairs = checked_pairs(data)
    assert (len(pairs), {pair.prompt for pair in pairs}) == (60, set(range(6)))
    low = binomtest(6, 6).proportion_ci(method="wilson").low
    (everything, longer) = agreement_table(pairs).rows
    assert everything[3].text == longer[3].text == f"{100 * low:.1f} to 100.0"
    alone = binomtest(1, 1).proportion_ci(method="wilson").low
    bins = calibration_bins([Checked(0, 0.6 + i / 100, agrees=True, better_is_longer=None) for i in range(24)])
    assert [(found.pairs, found.low) for found in bins] == [(3, pytest.approx(alone))] * 8


@pytest.mark.slow
def test_agreement_covers_the_truth_where_pairs_share_their_prompt() -> None:
    """The proxy is right on a prompt or wrong on it, on all of its six pairs: right on 70 % of prompts."""
    rng, covered, trials = np.random.default_rng(0), 0, 150
    for _ in range(trials):
        right = rng.random(60) < 0.7
        found = agreement(
            [Checked(i, 0.8, agrees=bool(right[i]), better_is_longer=None) for i in range(60) for _ in range(6)]
        )
        covered += found.low <= 0.7 <= found.high
    assert covered / trials == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / trials))


def test_without_gold_the_judge_is_the_truth() -> None:
    rows = [response(p, 0, reward, 1.0) for p, reward in (("ppo", 2.0), ("sft", 0.0))]
    verdict = Judgement(a="sft", b="ppo", prompt_index=0, judge="m", preference=1.0)
    truth, (pair,) = checked_pairs(run_of(responses=rows, judgements=[verdict]))
    assert (truth, pair.agrees) == ("m", False)
    assert checked_pairs(run_of(responses=rows)) == ("", [])


def test_a_judged_run_makes_a_report(tmp_path: Path) -> None:
    run = write_run(tmp_path, ["p3o_v2", "ppo"])
    results = json.loads((run / "head_to_head.json").read_text())
    results += [row | WORDS | {"by": "judge"} for row in results if row["by"] == "gold"]
    (run / "head_to_head.json").write_text(json.dumps(results))
    section = head_to_head_section(read_run(run), page_palette(["p3o_v2", "ppo"]))
    assert sum("m (tldr)" in block.heading for block in section.blocks) >= 4


@pytest.mark.parametrize(
    ("config", "calibrated"), [("reward: {function: 'a:b'}\n", False), ("reward: {model: org/rm}\n", True)]
)
def test_only_a_reward_that_learned_from_comparisons_is_said_to_be_so_and_so_sure(
    finished_run: Path, tmp_path: Path, config: str, calibrated: bool
) -> None:
    """The difference of two lengths, say, is no log-odds, and no probability comes of it."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["stage"] not in ("reward", "reward_test")]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    (run / "config.yaml").write_text(config)
    data = read_run(run)
    section = reward_model_section(data, page_palette(data.algorithms))
    assert [type(block) for block in section.blocks] == [*([Figure] if calibrated else []), TableBlock]
    assert "trained on labelled pairs" not in section.intro
