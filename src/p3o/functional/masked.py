"""Reductions over the response tokens that a mask selects."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_sum(values: Float[Tensor, "*batch time"], mask: Bool[Tensor, "*batch time"]) -> Float[Tensor, "*batch"]:
    """Sum over time of the selected values. Unselected values may be anything, NaN included."""
    return values.masked_fill(~mask, 0.0).sum(-1)


def masked_mean(values: Float[Tensor, "*batch time"], mask: Bool[Tensor, "*batch time"]) -> Float[Tensor, ""]:
    """Mean over all selected values, each token with the same weight; 0 if nothing is selected."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def masked_whiten(
    values: Float[Tensor, "*batch time"], mask: Bool[Tensor, "*batch time"], *, epsilon: float = 1e-8
) -> Float[Tensor, "*batch time"]:
    """Shift and scale to mean 0 and variance 1 over the selected values; unselected ones become 0."""
    values = values.masked_fill(~mask, 0.0)
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    return ((values - mean) * torch.rsqrt(variance + epsilon)).masked_fill(~mask, 0.0)
