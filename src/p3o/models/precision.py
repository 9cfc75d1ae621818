"""Number formats by device.

Two different things go by the name of bfloat16 training. Frozen weights can be stored in it (LoRA's base). Weights that
learn cannot: with 8 bits of mantissa an update smaller than 1/256 of a weight is rounded away, and at RL's learning rates
nearly all are. They stay in float32 while the arithmetic of the forward pass runs in bfloat16 (autocast).

float64 is for checks: two runs that should be equal, but add up in another order, can be told from two that differ. In
float32 a sampled token differs sooner or later.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import torch
from torch import nn

from p3o.errors import P3OError

DtypeName = Literal["auto", "float32", "float64", "bfloat16", "float16"]
_HALF = (torch.bfloat16, torch.float16)
_Rest = ParamSpec("_Rest")
_Result = TypeVar("_Result")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype to compute in; "auto" is bfloat16 on CUDA where the GPU has it, else float32.

    On CPUs, bfloat16 without the instructions for it is hundreds of times slower than float32; it must be asked for by name.

    Raises:
        P3OError: if the name is none of auto, float32, float64, bfloat16, float16, or the device cannot compute in it.
    """
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    dtypes = {
        "float32": torch.float32,
        "float64": torch.float64,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    if name not in dtypes:
        raise P3OError(f"dtype: {name!r} is not one of auto, {', '.join(dtypes)}")
    dtype = dtypes[name]
    if dtype == torch.float16 and device.type == "cpu":
        raise P3OError("dtype: float16 is for GPUs; use float32 on the CPU")
    if dtype == torch.float64 and device.type == "mps":
        raise P3OError("dtype: float64 is not available on Apple's GPUs; use float32, or device: cpu")
    return dtype


@dataclass(frozen=True)
class Precision:
    """How a model is held and computed.

    Attributes:
        weights: dtype to load with.
        compute: dtype of the forward pass; where it differs from ``weights``, ``compute_in`` brings it about.
    """

    weights: torch.dtype
    compute: torch.dtype

    def __str__(self) -> str:
        weights, compute = (str(dtype).removeprefix("torch.") for dtype in (self.weights, self.compute))
        return weights if weights == compute else f"{weights} weights, {compute} arithmetic"


def choose_precision(name: str, device: torch.device, *, trains_all_weights: bool) -> Precision:
    """The dtypes of a model that is trained whole, or of one whose own weights are frozen (inference, or LoRA's base).

    Raises:
        P3OError: as ``choose_dtype``.
    """
    compute = choose_dtype(name, device)
    if trains_all_weights and compute == torch.float16:
        raise P3OError("dtype: float16 overflows when all weights are trained; use bfloat16, float32 or LoRA")
    return Precision(torch.promote_types(compute, torch.float32) if trains_all_weights else compute, compute)


def compute_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Run the model's forward pass in ``dtype`` by autocast, its weights as they are. Returns the same model.

    Float32 changes nothing. Copies of the model (a frozen reference) do the same.
    """
    if dtype in _HALF:
        model.autocast_dtype = dtype  # type: ignore[assignment]
        # Set on the instance, with the class's signature: what a forward accepts is looked up by name.
        model.forward = MethodType(_autocasting(type(model).forward), model)
    return model


def casting_once(
    function: Callable[Concatenate[nn.Module, _Rest], _Result],
) -> Callable[Concatenate[nn.Module, _Rest], _Result]:
    """Let a function that makes many passes of a model, without gradients and between which no weight changes, cast its weights
    once and not in every pass. Of a model that ``compute_in`` has not changed, nothing changes.

    Autocast keeps what it has cast until the outermost autocast ends, of weights that require gradients: those of a frozen
    copy in float32 are cast in every pass all the same.
    """

    @functools.wraps(function)
    def wrapped(model: nn.Module, /, *arguments: _Rest.args, **settings: _Rest.kwargs) -> _Result:
        dtype: torch.dtype | None = getattr(model, "autocast_dtype", None)
        device = next(model.parameters()).device.type
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            return function(model, *arguments, **settings)

    return wrapped


def _autocasting(forward: Any) -> Any:
    @functools.wraps(forward)
    def autocast_forward(model: Any, *arguments: Any, **settings: Any) -> Any:
        device = next(model.parameters()).device.type
        with torch.autocast(device, dtype=model.autocast_dtype):
            return forward(model, *arguments, **settings)

    return autocast_forward
