"""Supervised fine-tuning and the reward model: one process, two that hold the model each, two that share it.

The models compute in float64, so what differs is the order of sums: 1e-9 would show any other difference.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed import supervised
from tests.distributed.learner import MODES
from tests.distributed.ranks import on_ranks
from tests.distributed.supervised import LOADED, TRAINERS
from tests.models.families import FAMILIES
from transformers import AutoModelForSequenceClassification

from p3o.training.checkpoint import Checkpoints
from p3o.training.loop import fit

TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With random models to load."""
    path = tmp_path_factory.mktemp("ranks")
    for name in LOADED:
        FAMILIES[name].write(path / name)
    return path


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    """What one process does, with a checkpoint after its first step."""
    found: dict[str, Any] = {}
    for name, make in TRAINERS.items():
        begun = make("one")
        begun.step()
        supervised.saved(begun, folder / name / "one")
        found[f"{name} goes on"] = supervised.taken(begun, 1)
        found[name] = supervised.taken(make("one"))
        found[f"{name} small"] = supervised.taken(make("one", batch_size=1))
    return found


@pytest.fixture(scope="module")
def ranks(folder: Path, one: dict[str, Any]) -> list[dict[str, Any]]:
    """What two ranks found; the checkpoints of one process are there before they start."""
    assert one
    found = on_ranks(supervised.everything, folder, folder)
    for rank in found:
        assert isinstance(rank, dict), rank
    return found


def assert_same(got: dict[str, Any], expected: dict[str, Any], tolerance: float = TOLERANCE) -> None:
    assert len(got["rows"]) == len(expected["rows"])
    for row, right in zip(got["rows"], expected["rows"], strict=True):
        assert row == pytest.approx(right, rel=tolerance, abs=tolerance)
    assert got["judged"] == pytest.approx(expected["judged"], rel=tolerance, abs=tolerance)
    assert_near(got["weights"], expected["weights"], tolerance)


def assert_near(got: list[float], expected: list[float], tolerance: float = TOLERANCE) -> None:
    apart = torch.tensor(got, dtype=torch.float64) - torch.tensor(expected, dtype=torch.float64)
    assert float(apart.abs().max()) <= tolerance


@pytest.mark.parametrize("name", TRAINERS)
def test_two_ranks_take_the_steps_of_one_process(ranks: list[dict[str, Any]], one: dict[str, Any], name: str) -> None:
    start = supervised.weights(supervised.model_of(TRAINERS[name]("one")))
    assert max(abs(a - b) for a, b in zip(start, one[name]["weights"], strict=True)) > 1e-3, "it learned something"
    for mode in MODES:
        for rank in ranks:
            assert_same(rank[f"{name} {mode}"], one[name])
        assert ranks[0][f"{name} {mode}"] == ranks[1][f"{name} {mode}"], "the same bytes"


@pytest.mark.parametrize("name", TRAINERS)
def test_a_rank_without_a_row_waits_for_the_other(ranks: list[dict[str, Any]], one: dict[str, Any], name: str) -> None:
    for mode in MODES:
        for rank in ranks:
            assert_same(rank[f"{name} {mode} small"], one[f"{name} small"])


def test_accuracies_could_differ(one: dict[str, Any]) -> None:
    assert all(0 < accuracy < 1 for accuracy in one["reward"]["judged"])


def test_layouts_of_sharded_reward_models(ranks: list[dict[str, Any]], one: dict[str, Any]) -> None:
    """Rows of a pair are read together in both modes; the other way is the same to float32, in which RMSNorm works."""
    for rank in ranks:
        assert rank["layouts"] == ["reward model: layout shared (a prompt and all its responses in one row)"] * 2
        assert_same(rank["padded"], one["reward"], 1e-5)
        assert rank["split"].startswith("P3OError: layout split: wrong for this reward model (processes that share")


# Checkpoints


@pytest.mark.parametrize("name", TRAINERS)
def test_any_number_of_processes_goes_on(
    ranks: list[dict[str, Any]], one: dict[str, Any], folder: Path, name: str
) -> None:
    expected = one[f"{name} goes on"]
    for rank in ranks:
        for key in ("data saved", "fsdp saved", "data from one", "fsdp from one", "fsdp from data", "data from fsdp"):
            assert_same(rank[f"{name} {key}"], expected)
    for mode in MODES:
        assert_same(supervised.gone_on(TRAINERS[name]("one"), folder / name / mode), expected)
    (sharded,) = Checkpoints(folder / name / "fsdp").saved()
    assert len(list(sharded.glob("shard-*"))) == 2


@pytest.mark.parametrize("name", TRAINERS)
def test_sigterm_to_one_rank_stops_both_and_costs_nothing(ranks: list[dict[str, Any]], name: str) -> None:
    whole = TRAINERS[name]("one")
    fit(whole)
    for mode in MODES:
        for rank in ranks:
            told = rank[f"{name} {mode} stopped"]
            assert told == "Stopped: stopped by SIGTERM after step 2; everything is saved; continue with --resume"
            assert rank[f"{name} {mode} resumed at"] == 2
            assert_near(rank[f"{name} {mode} ended"], supervised.weights(supervised.model_of(whole)))


@pytest.mark.parametrize("name", TRAINERS)
def test_a_number_that_is_none_on_one_rank_is_one_on_both(ranks: list[dict[str, Any]], name: str) -> None:
    told = supervised.outcome(supervised.broken(TRAINERS[name]("one")).step)
    assert told.startswith("NumericalError: the gradient is not finite in step 1 (loss nan)")
    for mode in MODES:
        for rank in ranks:
            assert rank[f"{name} {mode} nan"] == told
            assert rank[f"{name} {mode} skipped"] == [{"skipped_updates": 1}, True]


# Models


def test_a_sharded_reward_model_is_saved_as_a_plain_folder(ranks: list[dict[str, Any]], folder: Path) -> None:
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder / "saved", dtype=torch.float64, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert all(rank["saved"] == supervised.weights(model) for rank in ranks)
    assert all(rank["is sharded"] for rank in ranks)


@pytest.mark.parametrize("family", LOADED)
def test_models_are_read_into_shards_as_one_process_reads_them(
    ranks: list[dict[str, Any]], folder: Path, family: str
) -> None:
    """Also a head that no file holds: it is drawn from the same numbers."""
    expected = supervised.loaded(str(folder / family))
    assert all(rank[family] == expected for rank in ranks)


def test_adapters_learn_the_same(ranks: list[dict[str, Any]], folder: Path) -> None:
    """In float32, where AdamW makes much of little: the bound of ``test_learner.py``."""
    expected = supervised.adapted(str(folder / "qwen2"), "data")
    for rank in ranks:
        for mode in MODES:
            for name in TRAINERS:
                assert_same(rank["adapted"][mode][name], expected[name], 2e-3)
        assert all(
            told.startswith("P3OError: lora.save: a sharded model cannot be saved merged") for told in rank["merged"]
        )


def test_what_the_first_does_alone_all_know(ranks: list[dict[str, Any]]) -> None:
    assert [rank["first alone"] for rank in ranks] == [{"rank": 0, "size": 1}] * 2
