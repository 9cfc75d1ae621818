"""Several runs on one page: hulls over β and seeds, bands, differences at equal KL; charts and their data as files."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tests.report.synthetic_run import write_run, write_sweep
from tests.report.test_report_page import Page

from p3o import cli
from p3o.errors import P3OError
from p3o.evaluation.frontier import reward_at_kl
from p3o.report import build_comparison, export_charts
from p3o.report.picture import as_csv
from p3o.report.runset import largest_common_kl, method_frontiers, paired_comparisons, read_runs


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_sweep(tmp_path_factory.mktemp("sweep"), betas=(0.1, 1.0), seeds=(0, 1, 2), prompts=32)


@pytest.fixture(scope="module")
def page(sweep: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_comparison(sweep, tmp_path_factory.mktemp("page") / "c.html").read_text(encoding="utf-8")


def test_the_page_has_every_policy_and_fetches_nothing(page: str) -> None:
    found = Page(page)
    assert found.sections == ["frontier", "dominance", "policies", "runs"]
    assert found.fetches == []
    assert "24 policies from 3 runs with 3 seeds" in found.text
    gold = found.charts[0]["datasets"]
    assert len(gold["points"]) == 24
    assert len({row["series"] for row in gold["bands"]}) == 4


def test_a_band_is_the_t_interval_of_the_hulls_of_the_seeds(sweep: list[Path]) -> None:
    runs = read_runs(sweep)
    found = next(f for f in method_frontiers(runs, "gold") if f.algorithm == "ppo")
    curves = []
    for folder in sweep:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        mine = [row for row in rows if row["algorithm"] == "ppo"]
        kl, gold = [0.0, *(row["kl"] for row in mine)], [0.16, *(row["gold"] for row in mine)]
        keep = [i for i, x in enumerate(kl) if i == 0 or x > 0]
        curves.append(
            reward_at_kl([kl[i] for i in keep], [rows[0]["gold"] if i == 0 else gold[i] for i in keep], found.band.kl)
        )
    # The SFT model's value is the mean over the runs; here it is the same in all.
    mean = np.mean(curves, axis=0)
    low, high = stats.t.interval(0.95, 2, loc=mean[-1], scale=stats.sem([curve[-1] for curve in curves]))
    assert found.band.mean == pytest.approx(mean)
    assert (found.band.low[-1], found.band.high[-1]) == pytest.approx((low, high))
    assert found.band.seeds == len(found.area) == 3


def test_the_common_kl_is_what_every_algorithm_reached(sweep: list[Path]) -> None:
    largest: dict[str, float] = {}
    for folder in sweep:
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            if row["algorithm"]:
                largest[row["algorithm"]] = max(largest.get(row["algorithm"], 0.0), row["kl"])
    assert largest_common_kl(read_runs(sweep)) == pytest.approx(min(largest.values()))


def test_a_method_that_loses_gold_by_far_is_told_from_the_others(sweep: list[Path]) -> None:
    found = paired_comparisons(read_runs(sweep), resamples=100)
    assert len(found) == 6
    assert found["p3o_v2", "ppo"].dominates
    assert found["p3o_v2", "ppo"].area.low > 0


def test_runs_on_other_prompts_are_not_paired(sweep: list[Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", ["ppo"])
    page = Page(build_comparison([sweep[0], other], tmp_path / "c.html").read_text(encoding="utf-8"))
    assert "Left out: the runs were not evaluated on the same held-out prompts" in page.text


def test_what_cannot_be_compared_is_told(sweep: list[Path], tmp_path: Path) -> None:
    with pytest.raises(P3OError, match="given twice"):
        build_comparison([sweep[0], sweep[0]], tmp_path / "c.html")
    empty = write_run(tmp_path / "empty", ["ppo"])
    (empty / "metrics.jsonl").write_text("")
    with pytest.raises(P3OError, match="nothing to compare"):
        build_comparison([empty], tmp_path / "c.html")


@pytest.mark.slow
def test_every_chart_is_exported_with_its_data(sweep: list[Path], tmp_path: Path) -> None:
    written = export_charts(sweep[:2], tmp_path / "charts")
    assert {path.name for path in written} == {path.name for path in (tmp_path / "charts").iterdir()}
    stem = "frontier_gold_reward"
    for ending, magic in ((".svg", b"<svg"), (".png", b"\x89PNG"), (".pdf", b"%PDF")):
        assert (tmp_path / "charts" / f"{stem}{ending}").read_bytes().startswith(magic)
    svg = (tmp_path / "charts" / f"{stem}.svg").read_text()
    assert "var(--" not in svg
    assert all(re.search(f">{name}<", svg) for name in ("P3O-V1", "P3O-V2", "PPO", "Online DPO"))
    with (tmp_path / "charts" / f"{stem}.points.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    assert {row["seed"] for row in rows} == {"0", "1"}


def test_csv_quotes_and_leaves_gaps() -> None:
    assert as_csv([{"a": 1, "b": 'x,"y"'}, {"a": 2, "c": None}]) == 'a,b,c\n1,"x,""y""",\n2,,\n'


@pytest.mark.slow
def test_the_command_draws_one_run_or_compares_several(
    finished_run: Path,
    sweep: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", str(finished_run), "--to", "one.html", "--export", "charts"]) == 0
    assert cli.main(["report", *map(str, sweep[:2])]) == 0
    shown = capsys.readouterr().out
    assert "written to one.html" in shown
    assert "files written to charts" in shown
    assert "written to comparison.html" in shown
    assert Page(Path("comparison.html").read_text(encoding="utf-8")).sections[0] == "frontier"
    assert len({path.stem for path in Path("charts").glob("*.svg")}) == len(Page(Path("one.html").read_text()).charts)
    assert cli.main(["report", str(finished_run), "--name", "x"]) == 2
    assert cli.main(["report", "--to", "x.html"]) == 2


def with_reward_models(
    folder: Path, levels: dict[int, float], *, gold_levels: dict[int, float] | None = None
) -> list[Path]:
    """A sweep whose runs trained their own reward models, each with its own level; gold only with `gold_levels`."""
    runs = write_sweep(folder, betas=(0.1, 1.0), seeds=tuple(levels), prompts=24)
    for run, seed in zip(runs, levels, strict=True):
        for name in ("metrics.jsonl", "responses.jsonl"):
            rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
            for row in rows:
                row["reward"] += levels[seed]
                if gold_levels is None:
                    row.pop("gold", None), row.pop("gold_se", None)
                else:
                    row["gold"] += gold_levels[seed]
            test = [{"stage": "reward_test", "pairs": 9}] if name == "metrics.jsonl" else []
            (run / name).write_text("".join(json.dumps(row) + "\n" for row in [*test, *rows]))
    return runs


def test_the_arbitrary_levels_of_the_runs_reward_models_change_nothing(tmp_path: Path) -> None:
    """Nothing that the labels say fixes a reward model's zero: moving one run's by 50 is the same comparison."""
    plain = read_runs(with_reward_models(tmp_path / "plain", {0: 0.0, 1: 0.0, 2: 0.0}))
    moved = read_runs(with_reward_models(tmp_path / "moved", {0: 0.0, 1: 50.0, 2: -7.0}))
    assert plain.measure == "reward"
    for before, after in zip(method_frontiers(plain, "reward"), method_frontiers(moved, "reward"), strict=True):
        assert after.area == pytest.approx(before.area)
        assert after.band.high - after.band.low == pytest.approx(before.band.high - before.band.low)
        assert after.fit is not None
        assert before.fit is not None
        assert (after.fit.a, after.fit.b) == pytest.approx((before.fit.a, before.fit.b))
    pairs = zip(
        paired_comparisons(plain, resamples=50).values(), paired_comparisons(moved, resamples=50).values(), strict=True
    )
    for before, after in pairs:
        assert after.area.value == pytest.approx(before.area.value)
        assert (after.area.low, after.area.high) == pytest.approx((before.area.low, before.area.high))
    page = Page(build_comparison([run.folder for run in moved.runs], tmp_path / "c.html").read_text(encoding="utf-8"))
    assert "shifted so that all SFT models have the same value" in page.text


def test_a_given_reward_keeps_its_level_and_each_seed_starts_at_its_own_sft_model(tmp_path: Path) -> None:
    levels = {0: 0.0, 1: 1.0}
    runs = with_reward_models(tmp_path, levels, gold_levels=levels)
    found = read_runs(runs)
    assert found.measure == "gold"
    for method in method_frontiers(found, "gold"):
        # The hull of seed 1 begins one higher: it gains as much as without its level, and the levels stay in the mean.
        assert method.band.mean[0] == pytest.approx(0.5 * sum(run.sft_sample.gold for run in found.runs))
        assert min(method.area) > -0.2
    plain = read_runs(with_reward_models(tmp_path / "plain", {0: 0.0, 1: 0.0}, gold_levels={0: 0.0, 1: 0.0}))
    for before, after in zip(method_frontiers(plain, "gold"), method_frontiers(found, "gold"), strict=True):
        assert after.area == pytest.approx(before.area)
