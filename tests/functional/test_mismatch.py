"""Weights, bounds and numbers of the mismatch, against sums written out."""

import math

import pytest
import torch

from p3o.functional.mismatch import Correction, mismatch, weighed

MASK = torch.tensor([[[1, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [1, 0, 0]]], dtype=torch.bool)
SAMPLER = torch.zeros(3, 2, 3)
LEARNER = torch.tensor(
    [
        [[0.1, -0.3, 9.0], [0.4, 9.0, 9.0]],  # log w: −0.2 + 0.4 = 0.2
        [[0.5, 0.5, 0.0], [0.0, 0.0, 9.0]],  # 1.0
        [[-4.0, 9.0, 9.0], [0.0, 9.0, 9.0]],  # −4.0
    ]
)


def test_weights_are_those_of_whole_groups_and_truncated() -> None:
    found = mismatch(LEARNER, SAMPLER, MASK, Correction("truncate", limit=2.0, bound=3.0))
    assert found.weights is not None
    torch.testing.assert_close(found.weights, torch.tensor([math.exp(0.2), 2.0, math.exp(-4.0)]))
    assert found.keep.tolist() == [True, True, False]
    assert found.metrics == pytest.approx(
        {
            "mismatch_mean": (0.1 + 0.3 + 0.4 + 0.5 + 0.5 + 4.0) / 10,
            "mismatch_max": 4.0,
            "mismatch_ratio": (math.exp(-0.2) + math.exp(0.4) + math.exp(1.0) + 1 + math.exp(-4.0) + 1) / 6,
            "mismatch_weight_max": math.exp(1.0),
            "mismatch_dropped": 1,
            "mismatch_truncated": 1,
        }
    )


def test_drop_leaves_the_others_unweighted_and_none_only_measures() -> None:
    dropped = mismatch(LEARNER, SAMPLER, MASK, Correction("drop", bound=0.5))
    assert dropped.weights is None
    assert dropped.keep.tolist() == [True, False, False]
    measured = mismatch(LEARNER, SAMPLER, MASK, Correction("none", bound=0.5))
    assert measured.weights is None
    assert measured.keep.all()
    assert measured.metrics["mismatch_max"] == 4.0


def test_absurd_differences_stay_finite_and_what_is_no_number_is_dropped() -> None:
    learner = torch.tensor([[[1e6], [0.0]], [[-1e6], [0.0]], [[math.nan], [0.0]]])
    found = mismatch(learner, torch.zeros_like(learner), torch.ones_like(learner).bool(), Correction("truncate"))
    assert found.keep.tolist() == [False, False, False]
    assert found.weights is not None
    assert found.weights.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_server_that_gives_no_numbers_is_counted_and_spoils_no_other_number(bad: float) -> None:
    """The figures are those of the first two groups alone."""
    sampler = SAMPLER.clone()
    sampler[2, 0, 0] = bad
    found = mismatch(LEARNER, sampler, MASK, Correction("truncate", bound=3.0))
    alone = mismatch(LEARNER[:2], SAMPLER[:2], MASK[:2], Correction("truncate", bound=3.0))
    assert found.keep.tolist() == [True, True, False]
    assert found.metrics == pytest.approx(alone.metrics | {"mismatch_dropped": 1, "mismatch_nonfinite": 1})


def test_weighing_changes_gradients_and_no_value() -> None:
    logprobs = torch.randn(3, 2, 4, requires_grad=True)
    weights = torch.tensor([0.5, 1.0, 2.0])
    same = weighed(logprobs, weights)
    assert torch.equal(same, logprobs)
    (same**2).sum().backward()
    torch.testing.assert_close(logprobs.grad, 2 * logprobs.detach() * weights[:, None, None])
