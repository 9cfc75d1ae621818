"""The learning rates of a training, by hand."""

from typing import Literal

import pytest
import torch
from torch import nn

from p3o.training.optimisation import BatchOrder, Optimisation, OptimiserConfig, unseen


def rates(schedule: Literal["constant", "linear", "cosine"], warmup_fraction: float, updates: int) -> list[float]:
    """The rate of every update, as a share of the peak."""
    config = OptimiserConfig(learning_rate=2.0, schedule=schedule, warmup_fraction=warmup_fraction)
    optimisation = Optimisation({"model": nn.Linear(1, 1)}, config, updates)
    found = []
    for _ in range(updates):
        found.append(optimisation.optimiser.param_groups[0]["lr"] / 2.0)
        optimisation.advance_schedule()
    return found


def test_no_update_is_for_nothing() -> None:
    """A ramp of three updates rises by quarters; without one the first update has the peak rate."""
    assert rates("constant", 0.3, 10) == pytest.approx([0.25, 0.5, 0.75] + 7 * [1.0])
    assert rates("constant", 0.0, 3) == [1.0, 1.0, 1.0]
    assert min(rates("cosine", 0.03, 40)) > 0


def test_after_the_ramp_the_rate_falls_over_the_updates_that_are_left() -> None:
    assert rates("linear", 0.0, 4) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert rates("linear", 0.2, 5) == pytest.approx([0.5, 1.0, 0.75, 0.5, 0.25])
    assert rates("cosine", 0.0, 2) == pytest.approx([1.0, 0.5])


def test_an_update_at_the_peak_leaves_the_schedule_where_it_is() -> None:
    """Adam's first update moves every weight by the rate, whatever the gradient."""
    moved = {}
    for at_peak in (False, True):
        model = nn.Linear(1, 1, bias=False)
        config = OptimiserConfig(learning_rate=0.1, schedule="constant", warmup_fraction=0.5)
        optimisation = Optimisation({"model": model}, config, 10)
        before = model.weight.detach().clone()
        model(torch.ones(1, 1)).sum().backward()
        assert optimisation.update(at_peak=at_peak)
        moved[at_peak] = (before - model.weight).item()
        assert optimisation.optimiser.param_groups[0]["lr"] == pytest.approx(0.1 / 6)
    assert moved == pytest.approx({False: 0.1 / 6, True: 0.1}, rel=1e-4)


def test_rows_that_make_no_whole_batch_are_told() -> None:
    """Just as many as the order of a pass over whole batches leaves out."""
    for rows, batch_size in ((63, 32), (64, 32), (5, 2), (3, 8)):
        order = BatchOrder(rows, batch_size, seed=0)
        taken = {int(i) for _ in range(max(1, rows // batch_size)) for i in order.next()}
        told = unseen(rows, batch_size, None)
        assert (told or "0 of").startswith(f"{rows - len(taken)} of")
        assert unseen(rows, batch_size, 7) is None
