"""The benchmark of growth: its points, its arithmetic and its files; nothing here is timed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from p3o.bench import speed_scaling
from p3o.bench.speed_scaling import AXES, Point, describe, exponent, intercept, points, summary
from p3o.errors import P3OError


def test_each_quantity_is_varied_alone() -> None:
    base, every = Point(), points(AXES)
    assert len(every) == len(set(every)) == sum(map(len, AXES.values())) - 4, "the base is on all five axes"
    for point in every:
        changed = [name for name, value in vars(point).items() if value != vars(base)[name]]
        assert len(changed) <= 1
    assert replace(base, prompts=3, prompt=5).setting.prompts == (5, 5, 5)


def test_growth_is_read_off_as_an_exponent() -> None:
    assert exponent((2.0, 3.0), (8.0, 3.0 * 4**1.5)) == pytest.approx(1.5)
    assert intercept([(1.0, 5.0), (2.0, 7.0), (4.0, 11.0)]) == pytest.approx(3.0)
    rows = [
        {"prompts": n, "step_seconds": 4.0 * n, "sampling_seconds": 0.32 + n, "reference_seconds": n, "training_seconds": n**2,
         "operations": n}
        for n in (1, 2, 4)
    ]  # fmt: skip
    found = summary({"prompts": rows})
    assert found["prompts_exponent_step"] == pytest.approx(1.0)
    assert found["prompts_exponent_training"] == pytest.approx(2.0)
    assert found["decode_step_fixed_seconds"] == pytest.approx(0.32 / Point().response)


def test_phases_are_added_up_and_their_median_taken() -> None:
    reports = [
        {"phases": {"generation": s, "reference pass": 1.0, "forward": 2.0, "backward": 3.0, "optimiser": 4.0, "other": 5.0}}
        for s in (1.0, 7.0, 2.0)
    ]  # fmt: skip
    found = describe(reports, 10.0)
    assert (found["sampling_seconds"], found["reference_seconds"], found["training_seconds"]) == (2.0, 1.0, 9.0)
    assert (found["step_seconds"], found["operations"]) == (17.0, 50.0)


def test_it_writes_its_figures_and_its_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_scaling, "STEPS", 2)
    monkeypatch.setattr(speed_scaling, "BASE", Point(prompts=2, responses=2, prompt=6, response=3, hidden=32))
    figures, chart = tmp_path / "new" / "scaling.json", tmp_path / "scaling.svg"
    speed_scaling.main(figures, chart, axes={"prompts": (2, 3), "hidden": (32, 64)})
    results = json.loads(figures.read_text())
    assert results["layout"] == "layout shared (a prompt and all its responses in one row)"
    assert [row["prompts"] for row in results["axes"]["prompts"]] == [2, 3]
    two, three = results["axes"]["prompts"]
    assert three["operations"] == pytest.approx(1.5 * two["operations"])
    assert len(two["steps"]) == 1
    assert two["step_seconds"] >= two["sampling_seconds"] + two["training_seconds"] > 0
    text = chart.read_text()
    assert all(
        title in text for title in ("prompts a step", "hidden width of the model", "sampling", "useful operations")
    )


def test_a_plot_of_another_kind_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(P3OError, match=r"--plot: x\.pdf must end in"):
        speed_scaling.main(None, tmp_path / "x.pdf")
