"""Between the processor and a GPU.

Every read of a number makes the processor wait until the GPU has done all that it was told before, and so does every copy onto
it unless that is asked not to. One read of many numbers costs what one of one does.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor


def onto(tensor: Shaped[Tensor, "*shape"], device: torch.device) -> Shaped[Tensor, "*shape"]:
    """The tensor on this device. The processor does not wait for a copy onto a GPU; from one it has to."""
    return tensor.to(device, non_blocking=device.type != "cpu")


def numbers(scalars: Sequence[Tensor]) -> list[float]:
    """The numbers of tensors of one element, exactly; in one read if they are on one device."""
    if len({scalar.device for scalar in scalars}) != 1:
        return [float(scalar.item()) for scalar in scalars]
    found: list[float] = torch.stack([scalar.detach().reshape(()).double() for scalar in scalars]).tolist()
    return found
