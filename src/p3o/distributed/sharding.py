"""FSDP2: a module whose parameters are spread over the ranks, gathered block by block when they are used.

Beside PyTorch's own, three things: gradients are summed and not averaged (the loop weights them by their share of the whole
minibatch), weights can be gathered for a while so that ranks need not keep in step (``gathered``), and what was left gathered
by a pass without gradients is given back before anybody reads or changes parameters (``settle``).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from p3o.distributed.settings import ParallelConfig
from p3o.distributed.world import world
from p3o.errors import P3OError

_HALF = (torch.bfloat16, torch.float16)
_KEEPS = "_p3o_keeps_gathered"


def shard(
    module: nn.Module,
    blocks: Sequence[nn.Module],
    settings: ParallelConfig,
    *,
    compute: torch.dtype,
    device: torch.device,
) -> nn.Module:
    """Spread the module's parameters over all ranks, in place: each block by itself, what is outside of blocks together.

    Weights keep their dtype where they rest; passes, and the gathering for them, are in ``compute``; gradients are summed in
    float32 at least.

    Args:
        module: not sharded yet; on ranks that loaded the same weights, or on the meta device.
        blocks: its layers, in order.
        settings: of FSDP.
        compute: dtype of passes.
        device: where they are.

    Raises:
        P3OError: if anything is left that is not sharded over all ranks.
    """
    mesh = init_device_mesh(device.type, (world().size,))
    half = compute in _HALF
    common: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=compute if half else None, reduce_dtype=torch.float32 if half else None
        ),
        "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda")
        if settings.cpu_offload and device.type != "cpu"
        else OffloadPolicy(),
    }
    for block in blocks:
        fully_shard(block, reshard_after_forward=settings.reshard_after_forward, **common)
        setattr(block, _KEEPS, not settings.reshard_after_forward)
    # The root stays gathered between its forward and its backward pass: the head may be used once more outside of it.
    fully_shard(module, reshard_after_forward=False, **common)
    setattr(module, _KEEPS, True)
    for part in parts(module):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows sums only
    whole = [name for name, parameter in module.named_parameters() if not isinstance(parameter, DTensor)]
    if whole or mesh.size() != world().size:
        raise P3OError(
            f"parallel.mode: fsdp left {whole[0] if whole else 'the model'} whole on every process; this is a bug "
            f"in p3o: report it, and use mode: data"
        )
    return module


def parts(module: nn.Module) -> list[FSDPModule]:
    """The module and the blocks in it that FSDP handles; none if it is not sharded."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP handles the module: then every rank must make the same number of passes through it."""
    return isinstance(module, FSDPModule)


@contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """Inside, every rank holds these modules whole, and its passes without gradients need no other rank.

    For generation: a rank decodes as many tokens as its own responses take, and nothing is gathered token by token. The price
    is memory for the whole weights in the dtype of passes. Modules that are not sharded are left as they are.
    """
    handled = [part for module in modules for part in parts(module)]
    for part in handled:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in handled:
            part.set_reshard_after_forward(not getattr(part, _KEEPS), recurse=False)
            part.reshard()


def settle(*modules: nn.Module) -> None:
    """Every parameter back to its shard. A pass without gradients leaves the root gathered: a copy that sees no update."""
    for module in modules:
        for part in parts(module):
            part.reshard()


def whole_tensors(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The whole tensors on the CPU of the first process, tensor by tensor; empty on the others. All ranks must call it."""
    found: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    for name, tensor in named:
        # Tied weights stay one tensor.
        if id(tensor) not in seen:
            detached = tensor.detach()
            whole = detached.full_tensor() if isinstance(detached, DTensor) else detached
            seen[id(tensor)] = whole.cpu() if world().first else whole.new_empty(0)
        if world().first:
            found[name] = seen[id(tensor)]
    return found


def rows_here(like: DTensor) -> tuple[int, int]:
    """First and last (exclusive) row, along the first axis, of this rank's shard; in torch's chunks."""
    chunk = -(-like.shape[0] // like.device_mesh.size())
    start = min(like.device_mesh.get_local_rank() * chunk, like.shape[0])
    return start, min(start + chunk, like.shape[0])


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be spread over the ranks, whole; all ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be spread over the ranks, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathers_on(tensor: Tensor) -> str | None:
    """The type of device on which a sharded tensor is gathered; None if it is not sharded."""
    return str(tensor.device_mesh.device_type) if isinstance(tensor, DTensor) else None
