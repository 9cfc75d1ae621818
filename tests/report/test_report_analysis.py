"""What the report concludes from the rows: frontiers, over-optimisation, chosen texts, words."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from p3o.report.frontiers import best_of_n_kl, frontiers, matched_kl, over_optimisation
from p3o.report.numbers import duration, listed, number, percent, signed, with_error
from p3o.report.palette import page_palette, series_of
from p3o.report.prose import summary
from p3o.report.rundata import Comparison, Evaluation, Response, RunData, RunInfo
from p3o.report.sections import yardsticks
from p3o.report.tables import head_to_head_table, policy_name, shift_table
from p3o.report.texts import before_and_after


def evaluation(
    policy: str, step: int, kl: float, reward: float, gold: float | None = None, **more: object
) -> Evaluation:
    algorithm = None if policy == "sft" else policy
    return Evaluation(
        policy=policy, algorithm=algorithm, step=step, prompts=64, kl=kl, reward=reward, gold=gold, **more
    )


def run_of(*rows: Evaluation, **fields: object) -> RunData:
    info = RunInfo(name="tiny", status="complete", seed=0)
    return RunData(folder=Path("tiny"), info=info, config="", evaluations=list(rows), **fields)


def test_frontiers_start_at_the_sft_model_and_compare_at_the_common_kl() -> None:
    curve = lambda kl: 0.5 + 2.0 * np.sqrt(kl) - 0.25 * kl  # noqa: E731
    data = run_of(
        evaluation("sft", 0, 0.0, 0.5),
        *(evaluation("p3o_v2", step, kl, curve(kl)) for step, kl in enumerate((0.0, 1.0, 2.0, 4.0))),
        *(evaluation("ppo", step, kl, 0.5 + 0.1 * kl) for step, kl in enumerate((0.0, 1.0, 9.0))),
    )
    p3o, ppo = frontiers(data, "reward")
    assert (p3o.fit.a, p3o.fit.b, p3o.fit.reward_at_sft) == pytest.approx((2.0, -0.25, 0.5))
    assert matched_kl([p3o, ppo]) == 4.0
    assert (p3o.value_at(4.0), ppo.value_at(4.0)) == pytest.approx((3.5, 0.9))
    assert [point.last for point in ppo.points] == [False, False, True]
    assert ppo.fit is None  # two points besides SFT fit exactly, whatever they are
    assert frontiers(data, "gold") == []


def test_over_optimisation_needs_more_than_two_standard_errors() -> None:
    rows = [evaluation("ppo", step, step, step, gold, gold_se=0.3) for step, gold in enumerate((0.0, 2.0, 1.2))]
    (found,) = over_optimisation(run_of(*rows))
    assert (found.peak.step, found.end.step, found.fall) == (1, 2, pytest.approx(0.8))
    assert not found.significant  # 2 · √2 · 0.3 = 0.85
    rows[-1] = rows[-1].model_copy(update={"gold": 1.1})
    assert over_optimisation(run_of(*rows))[0].significant


def test_yardsticks_stand_where_their_kl_is() -> None:
    rows = [evaluation("sft", 0, 0.0, 1.0, decoding=d) for d in ("sample", "greedy", "best_of_4")]
    assert [(y.label, y.kl) for y in yardsticks(run_of(*rows), "reward")] == [
        ("SFT", 0.0),
        ("SFT, greedy", None),
        ("best of 4", pytest.approx(np.log(4) - 0.75)),
    ]
    assert best_of_n_kl(1) == 0.0


def test_texts_are_chosen_by_position_and_by_the_extremes() -> None:
    def response(policy: str, index: int, gold: float) -> Response:
        return Response(policy=policy, prompt_index=index, prompt=f"p{index}", response="r", reward=-gold, gold=gold)

    after = [0.0, 5.0, 0.0, 0.0, 0.0, -7.0, 0.0, 0.0]
    responses = [response("sft", i, 0.0) for i in range(8)] + [response("ppo", i, gold) for i, gold in enumerate(after)]
    shown = before_and_after(run_of(evaluation("ppo", 1, 1.0, 1.0, 1.0), responses=responses))
    assert [(s.prompt, s.reasons) for s in shown] == [
        *((f"p{i}", [("", "by position")]) for i in (0, 2, 4, 6)),
        ("p1", [("ppo", "largest rise"), ("ppo", "its highest")]),
        ("p5", [("ppo", "largest fall"), ("ppo", "its lowest")]),
    ]
    assert [r.policy for r in shown[0].responses] == ["sft", "ppo"]


def test_no_texts_without_sft_responses() -> None:
    assert before_and_after(run_of(evaluation("ppo", 1, 1.0, 1.0))) == []


def test_the_summary_says_what_the_numbers_say() -> None:
    data = run_of(
        evaluation("sft", 0, 0.0, 0.0, 0.16, gold_se=0.05),
        evaluation("sft", 0, 0.0, 0.0, 0.78, decoding="greedy"),
        evaluation("p3o_v2", 0, 0.0, 0.0, 0.16),
        evaluation("p3o_v2", 9, 2.0, 3.0, 2.31, gold_se=0.06),
        evaluation("ppo", 9, 4.0, 5.0, 2.5, gold_se=0.07),
        comparisons=[
            Comparison(a="p3o_v2", b="sft", wins=80, ties=0, losses=20, win_rate=0.8, low=0.71, high=0.87, by="gold")
        ],
    )
    text = summary(data, page_palette(data.algorithms)).replace("\N{NO-BREAK SPACE}", " ")
    assert "P3O-V2 and PPO started from the same" in text
    assert "evaluated on 64 held-out prompts" in text
    assert "0.16 ± 0.05 for samples of the SFT model (greedy 0.78)" in text
    assert "2.50 ± 0.07 for PPO at a KL of 4.00 and 2.31 ± 0.06 for P3O-V2 at a KL of 2.00" in text
    assert "P3O-V2 80 % (71 to 87)" in text
    assert "Over-optimisation" not in text
    stopped = replace(data, info=data.info.model_copy(update={"status": "failed"}))
    assert summary(stopped, page_palette(data.algorithms)).startswith("This run has failed")


@pytest.mark.parametrize(("proxy", "told"), [(3.0, "There is over-optimisation"), (-1.0, "unstable training")])
def test_a_fall_of_both_rewards_is_not_called_over_optimisation(proxy: float, told: str) -> None:
    data = run_of(
        evaluation("sft", 0, 0.0, 0.0, 0.0, gold_se=0.1),
        evaluation("ppo", 0, 0.0, 0.0, 0.0, gold_se=0.1),
        evaluation("ppo", 9, 4.0, proxy, -5.0, gold_se=0.1),
    )
    text = summary(data, page_palette(data.algorithms))
    assert told in text
    assert "for PPO by 5.00" in text
    assert ("over-optimisation" in text) == (proxy > 0)


def test_policies_that_share_an_algorithm_are_told_apart() -> None:
    rows = [Evaluation(policy=p, algorithm="ppo", prompts=1, reward=0.0, kl=0.0) for p in ("ppo_a", "ppo_b")]
    data = run_of(*rows, evaluation("rloo", 0, 0.0, 0.0))
    palette = page_palette(data.algorithms)
    assert [policy_name(data, p, palette) for p in ("ppo_a", "rloo", "sft")] == ["PPO (ppo_a)", "RLOO", "SFT"]


def test_head_to_head_shows_the_kl_and_length_of_both_sides() -> None:
    data = run_of(evaluation("sft", 0, 0.0, 0.0, length=112.7), evaluation("ppo", 9, 7.02, 1.0, length=109.0))
    comparison = Comparison(a="ppo", b="sft", wins=146, ties=0, losses=110, win_rate=146 / 256, low=0.509, high=0.629)
    table = head_to_head_table(data, [comparison], page_palette(data.algorithms))
    texts = [cell.text.replace("\N{NO-BREAK SPACE}", " ") for cell in table.rows[0]]
    assert texts == ["PPO", "SFT", "57.0 %", "50.9 to 62.9", "146 / 0 / 110", "7.02 / 0.00", "109.0 / 112.7"]


def test_the_shift_table_tells_identical_from_close() -> None:
    plain = run_of(evaluation("p3o_v2", 1, 1.0, 2.0), evaluation("ppo", 1, 1.0, 2.0))
    other = run_of(evaluation("p3o_v2", 1, 1.0, 2.0), evaluation("ppo", 1, 1.0, 2.0 + 1e-9))
    shifted = [(10.0, frontier) for frontier in frontiers(other, "reward")]
    table = shift_table(frontiers(plain, "reward"), shifted, "reward", page_palette(plain.algorithms))
    assert [row[-1].text for row in table.rows] == ["identical at every step", "different"]


def test_every_algorithm_has_one_look_of_its_own() -> None:
    series = series_of(["ppo", "mystery", "p3o_v2", "p3o_replay"])
    assert series["ppo"] == series_of(["ppo"])["ppo"]
    assert len({look.light for look in series.values()}) == 4
    assert (series["mystery"].label, series["p3o_replay"].label) == ("Mystery", "P3O replay")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (number(-1.234), "−1.23"),
        (number(-0.001), "0.00"),
        (number(None), "–"),
        (number(float("nan")), "–"),
        (with_error(1.0, 0.05), "1.00 ± 0.05"),
        (with_error(1.0, None), "1.00"),
        (signed(0.5), "+0.50"),
        (signed(-0.5), "−0.50"),
        (signed(0.0), "0.00"),
        (percent(0.574, 1), "57.4 %"),
        (duration(7.25), "7.2 s"),
        (duration(61.0), "61 s"),
        (duration(175.2), "2 min 55 s"),
        (duration(7500.0), "2 h 05 min"),
        (listed(["a"]), "a"),
        (listed(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_are_printed_as_people_write_them(text: str, expected: str) -> None:
    assert text.replace("\N{NO-BREAK SPACE}", " ") == expected
