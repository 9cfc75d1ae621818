"""Masked reductions by hand; what the mask excludes may be NaN, also on the way back."""

import math

import pytest
import torch

from p3o.functional.masked import masked_mean, masked_sum, masked_whiten

NAN = float("nan")
VALUES = torch.tensor([[1.0, 2.0, NAN], [6.0, NAN, NAN]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_sum_and_mean_by_hand() -> None:
    assert masked_sum(VALUES, MASK).tolist() == [3.0, 6.0]
    assert masked_mean(VALUES, MASK).item() == 3.0


def test_nothing_selected_is_zero() -> None:
    nothing = torch.zeros_like(MASK)
    assert masked_sum(VALUES, nothing).tolist() == [0.0, 0.0]
    assert masked_mean(VALUES, nothing).item() == 0.0


def test_whiten_by_hand() -> None:
    """1, 2, 6: mean 3, variance 14/3."""
    scale = math.sqrt(14 / 3)
    white = masked_whiten(VALUES, MASK)
    assert white.flatten().tolist() == pytest.approx([-2 / scale, -1 / scale, 0, 3 / scale, 0, 0])


def test_whitening_equal_values_gives_zeros() -> None:
    assert masked_whiten(torch.full((2, 3), 7.0), MASK).eq(0).all()


@pytest.mark.parametrize("reduce", [masked_sum, masked_mean, masked_whiten])
def test_no_gradient_reaches_padding(reduce) -> None:
    values = VALUES.clone().requires_grad_()
    (reduce(values, MASK) ** 3).sum().backward()
    assert values.grad is not None
    assert values.grad[~MASK].eq(0).all()
    assert values.grad[MASK].isfinite().all()
    assert values.grad[MASK].ne(0).any()
