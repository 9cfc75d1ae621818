"""What a step's metrics are made of: averages weighted by share, maxima, counts, and the effective sample size."""

import pytest
import torch

from p3o.algorithms.base import ratio_metrics
from p3o.algorithms.p3o_residual import p3o_residual_loss
from p3o.algorithms.ppo import ppo_value_loss
from p3o.training.averages import MetricsAverage


def averaged(weights: list[list[list[float]]]) -> dict[str, float]:
    """The metrics of these importance weights, ``weights[micro-batch][group][response]``, weighted by groups."""
    metrics = MetricsAverage()
    for part in weights:
        metrics.add(ratio_metrics(torch.tensor(part, dtype=torch.float64).log(), torch.tensor(0.0)), float(len(part)))
    return metrics.result()


def test_the_effective_sample_size_is_that_of_all_weights_together() -> None:
    """Weights 1, 1, 2, 4: 8² / (4 · 22), by hand, in whichever micro-batches they come."""
    assert averaged([[[1.0, 1.0], [2.0, 4.0]]])["effective_sample_share"] == pytest.approx(64 / 88)
    assert averaged([[[1.0, 1.0]], [[2.0, 4.0]]])["effective_sample_share"] == pytest.approx(64 / 88)
    unequal = averaged([[[1.0, 1.0], [2.0, 4.0]], [[0.5, 3.0]]])
    assert unequal["effective_sample_share"] == pytest.approx(11.5**2 / (6 * (22 + 0.25 + 9)))
    assert "ratio_mean_square" not in unequal, "a moment on its way, not a diagnostic"


def test_equal_weights_count_whole_and_one_heavy_weight_counts_alone() -> None:
    assert averaged([[[3.0, 3.0, 3.0]]])["effective_sample_share"] == pytest.approx(1.0)
    assert averaged([[[1e6, 1e-6], [1e-6, 1e-6]]])["effective_sample_share"] == pytest.approx(1 / 4)


@pytest.mark.parametrize("parts", [[4], [1, 3], [1, 1, 1, 1]])
def test_the_explained_variance_is_that_of_all_tokens_together(parts: list[int]) -> None:
    """Returns 1, 3, 3, 5 have variance 2; errors ½, ½, 1, 1 leave 2.5/4 of square: 1 − .625/2, in whichever micro-batches, also
    those of one token, whose own variance is 0."""
    returns, errors = torch.tensor([[1.0, 3.0, 3.0, 5.0]]), torch.tensor([[0.5, -0.5, 1.0, -1.0]])
    metrics, start = MetricsAverage(), 0
    for size in parts:
        these = slice(start, start + size)
        values, mask = (returns + errors)[:, these], torch.ones(1, size, dtype=torch.bool)
        metrics.add(ppo_value_loss(values, values, returns[:, these], mask, epsilon=None).metrics, float(size))
        start += size
    assert metrics.result() == pytest.approx({"explained_variance": 1 - 0.625 / 2})


def test_the_residual_is_the_root_of_the_mean_over_all_pairs() -> None:
    """At β = 0 the residual is the gap: gaps of 1 in one micro-batch and of 3 in another, root mean square √5."""
    metrics, zeros = MetricsAverage(), torch.zeros(1, 2)
    for gap in (1.0, 3.0):
        gaps = torch.tensor([[[0.0, gap], [-gap, 0.0]]])
        loss = p3o_residual_loss(zeros, zeros, zeros, gaps, beta=0.0, epsilon=None, importance=0.0)
        metrics.add(loss.metrics, 1.0)
    result = metrics.result()
    assert result["residual"] == pytest.approx(5**0.5)
    assert "residual_mean_square" not in result


def test_means_are_weighted_maxima_stay_and_counts_are_summed() -> None:
    metrics = MetricsAverage()
    for weight, value in ((1.0, 2.0), (3.0, 6.0)):
        number = torch.tensor(value)
        metrics.add({"loss": number, "ratio_max": number, "log_ratio_clamped": number}, weight)
    assert metrics.result() == {"loss": 5.0, "ratio_max": 6.0, "log_ratio_clamped": 8.0}
