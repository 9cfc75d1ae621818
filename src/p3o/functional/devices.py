"""Between the processor and a GPU: every read makes the processor wait until the GPU has done all it was told, and so does every
copy onto it, unless it is asked not to. One read of many numbers costs what one of one does."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def onto(tensor: Shaped[Tensor, "*shape"], device: torch.device) -> Shaped[Tensor, "*shape"]:
    """The tensor on this device. The processor does not wait for a copy onto a GPU; from one it has to."""
    return tensor.to(device, non_blocking=device.type != "cpu")


def numbers(scalars: Sequence[Float[Tensor, ""]]) -> list[float]:
    """The numbers of these scalars of one device, exactly, in one read."""
    found: list[float] = torch.stack([scalar.detach().double() for scalar in scalars]).tolist() if scalars else []
    return found
