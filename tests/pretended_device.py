"""A GPU that is not there: real computation on the processor with tensors that say they are on "cuda:0".

Inside ``pretended_device()`` a model goes onto the device with ``.to(DEVICE)`` and everything runs with its real numbers, data
dependent decisions included. What would go wrong on a GPU goes wrong here as well, or is counted:

- a tensor of the device that meets one of the processor raises, where CUDA would refuse;
- ``numpy()`` of a tensor of the device raises;
- whatever makes the processor wait for the device is counted by the line of p3o that asked for it: a number or a truth value,
  the size of a selection (``nonzero``, an index that is a mask), a copy to the processor, and a copy to the device that is not
  ``non_blocking``.

What it cannot tell: how long anything takes, which kernels run and how they round, streams and events.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda:0")
CPU = torch.device("cpu")

_READS = {"aten::_local_scalar_dense", "aten::equal"}
"""Give Python a number."""

_SIZED = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_consecutive", "aten::unique_dim"}
"""The size of the result is known to the device alone."""

_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
"""Take an index from the processor, too, which they copy to the device."""

_COPYING = {"aten::_to_copy", "aten::copy_"}


class DeviceTensor(torch.Tensor):
    """A tensor of the device. Its numbers are in ``held``, an ordinary tensor.

    To torch's own code it is one of the processor, with operations of its own: a torch without CUDA refuses any other. Only
    Python is told of the device.
    """

    held: Tensor
    device = property(lambda _: DEVICE)
    is_cuda = property(lambda _: True)
    is_cpu = property(lambda _: False)

    @staticmethod
    def __new__(cls, held: Tensor) -> "DeviceTensor":
        """The tensor of the device with these numbers."""
        made: DeviceTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CPU,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Reached where no mode is on: after the end of ``pretended_device``, or in a thread that it does not know."""
        raise AssertionError(f"{function} of a tensor of the device outside of pretended_device")

    def tolist(self) -> Any:
        """As any tensor, which torch refuses a subclass."""
        return self.cpu().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """A copy on the device; of a parameter, a parameter."""
        if id(self) not in memo:
            copied = self.detach().clone()
            memo[id(self)] = (
                nn.Parameter(copied, self.requires_grad)
                if isinstance(self, nn.Parameter)
                else copied.requires_grad_(self.requires_grad)
            )
        return memo[id(self)]  # type: ignore[no-any-return]

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.held})"


class Waits:
    """How often the processor waited for the device, by ``(what, where)``: "read", "select", "download" or "upload", and the
    file and function of p3o, or of transformers or torch where p3o called none of its own in between."""

    def __init__(self) -> None:
        self.places: Counter[tuple[str, str]] = Counter()

    def note(self, what: str) -> None:
        """One more, asked for by the code that is running."""
        self.places[what, _place()] += 1

    def take(self) -> Counter[tuple[str, str]]:
        """The waits since this was last asked."""
        places, self.places = self.places, Counter()
        return places

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.places.values())


class _Calls(TorchFunctionMode):
    """Knows whether the function of torch that Python has called was given tensors of the device: what it makes out of nothing,
    in the backward pass say, is for the device then, though torch believes that this is the processor."""

    def __init__(self) -> None:
        super().__init__()
        self.on_device = [False]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.on_device.append(any(isinstance(tensor, DeviceTensor) for tensor in _tensors((args, kwargs))))
        try:
            return function(*args, **(kwargs or {}))
        finally:
            self.on_device.pop()


class _Device(TorchDispatchMode):
    """Runs every operation on what its tensors hold."""

    def __init__(self, waits: Waits, calls: _Calls) -> None:
        super().__init__()
        self.waits, self.calls = waits, calls

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = function.name().split(".")[0]
        leaves = list(_tensors((args, kwargs)))
        there = {id(leaf.held): leaf for leaf in leaves if isinstance(leaf, DeviceTensor)}
        here = [leaf for leaf in leaves if not isinstance(leaf, DeviceTensor)]
        asked = kwargs.get("device")
        self._check(name, args, there=bool(there), here=here)
        self._count(name, args, kwargs, there=bool(there), here=here)
        if asked is not None:
            kwargs["device"] = CPU
        result = function(*_changed(args, _held), **_changed(kwargs, _held))
        # Torch's own code asks for the processor where it means the device of its tensors; Python's moves are in _sent.
        onto = bool(there) or (asked is not None and torch.device(asked).type == DEVICE.type)
        onto = isinstance(args[0], DeviceTensor) if name == "aten::copy_" else onto or self.calls.on_device[-1]

        def placed(leaf: Tensor) -> Tensor:
            if id(leaf) in there:  # changed in place, or written to as out=
                own = there[id(leaf)]
                assert own.shape == leaf.shape, f"{name} resized a tensor"
                return own
            return DeviceTensor(leaf) if onto else leaf

        return _changed(result, placed)

    def _check(self, name: str, args: Sequence[Any], *, there: bool, here: Sequence[Tensor]) -> None:
        """
        Raises:
            RuntimeError: where CUDA would.
        """
        if not there or name in _COPYING:
            return
        if name in _INDEXING:
            if isinstance(args[0], DeviceTensor):
                return
            raise RuntimeError(f"{name}: indices should be on the same device as the indexed tensor (cpu)")
        if any(leaf.dim() for leaf in here):
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device, found {DEVICE} and cpu")

    def _count(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], *, there: bool, here: Sequence[Tensor]
    ) -> None:
        if name == "aten::_to_copy":
            target = kwargs.get("device")
            if not there and target is not None and torch.device(target).type == DEVICE.type:
                self._upload(kwargs.get("non_blocking", False))
        elif name == "aten::copy_":
            if there and here and isinstance(args[0], DeviceTensor):
                self._upload(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            elif there and here:
                self.waits.note("download")
        elif there and name in _READS:
            self.waits.note("read")
        elif there and (name in _SIZED or (name == "aten::repeat_interleave" and kwargs.get("output_size") is None)):
            self.waits.note("select")
        elif there and name in _INDEXING:
            self._count_index(args, here)

    def _count_index(self, args: Sequence[Any], here: Sequence[Tensor]) -> None:
        masks = [i for i in args[1] if isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8)]
        # One number written where a mask is True is a masked_fill, of which nobody needs to know the size.
        if masks and not (len(args) > 2 and len(masks) == 1 and args[2].numel() == 1):
            self.waits.note("select")
        if any(leaf.dim() for leaf in here):
            self.waits.note("upload")

    def _upload(self, non_blocking: bool) -> None:
        if not non_blocking:
            self.waits.note("upload")


@contextmanager
def pretended_device() -> Iterator[Waits]:
    """Inside, there is a device ``DEVICE``; how often the processor waited for it is counted. Modules go there with ``.to``.

    Autocast on the device is the processor's, whose lists of operations differ a little. Tensors of the device are of no use
    afterwards.
    """
    waits = Waits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(nn.Module, "to", _moved(nn.Module.to))
        patch.setattr(torch.Tensor, "to", _sent(torch.Tensor.to, waits))
        patch.setattr(torch.Tensor, "cpu", lambda self: self.to(CPU))
        autocast = torch.amp.autocast_mode.autocast
        patch.setattr(autocast, "__init__", _of_the_processor(autocast.__init__))
        for name in ("is_autocast_enabled", "get_autocast_dtype"):
            asked = getattr(torch, name)
            patch.setattr(torch, name, lambda kind=DEVICE.type, asked=asked: asked(_known(kind)))
        grouped = torch._C._group_tensors_by_device_and_dtype
        patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", _by_device(grouped))
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            with _Calls() as calls, _Device(waits, calls):
                yield waits
        finally:
            torch._C._set_only_lift_cpu_tensors(before)


def _held(tensor: Tensor) -> Tensor:
    return tensor.held if isinstance(tensor, DeviceTensor) else tensor


def _tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors among arguments. Torch's own trees do the same at several times the price."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)


def _changed(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The arguments with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {name: _changed(value, change) for name, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)([_changed(value, change) for value in tree])
    return tree


def _known(kind: str) -> str:
    """The type of device whose autocast there is."""
    return CPU.type if kind == DEVICE.type else kind


def _of_the_processor(plain: Callable[..., None]) -> Callable[..., None]:
    """``autocast.__init__`` that is told of the processor in the place of the device."""

    def start(context: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        plain(context, _known(device_type), *args, **kwargs)

    return start


def _sent(plain: Callable[..., Tensor], waits: Waits) -> Callable[..., Tensor]:
    """``Tensor.to`` between the processor and the device, which torch takes for one."""

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        like = args[0] if args and isinstance(args[0], Tensor) else kwargs.pop("other", None)
        if like is not None:
            return to(tensor, like.device, like.dtype, *args[1:], **kwargs)
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or device.type == tensor.device.type:
            return tensor if dtype in (None, tensor.dtype) else plain(tensor, dtype)
        if isinstance(tensor, DeviceTensor):
            waits.note("download")
            return _Brought.apply(tensor, dtype)
        return plain(tensor, device, dtype or tensor.dtype, non_blocking=non_blocking)

    return to


def _by_device(plain: Callable[..., dict[Any, Any]]) -> Callable[..., dict[Any, Any]]:
    """The grouping of an optimiser's tensors under the device that they say they are on."""

    def group(tensors: Sequence[Sequence[Tensor]], *args: Any) -> dict[Any, Any]:
        return {
            (lists[0][0].device, kind): (lists, places) for (_, kind), (lists, places) in plain(tensors, *args).items()
        }

    return group


class _Brought(torch.autograd.Function):
    """A tensor of the device as one of the processor."""

    @staticmethod
    def forward(_context: Any, tensor: DeviceTensor, dtype: torch.dtype | None) -> Tensor:
        return tensor.held.clone().to(dtype or tensor.dtype)

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(DEVICE), None


def _moved(plain: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """``nn.Module.to`` that keeps tied weights tied, as it does between a processor and a GPU."""

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or device.type != DEVICE.type:
            return plain(module, *args, **kwargs)
        moved: dict[int, Tensor] = {}

        def there(tensor: Tensor) -> Tensor:
            if isinstance(tensor, DeviceTensor):
                return tensor
            if id(tensor) not in moved:
                kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
                copied = tensor.detach().to(DEVICE, kind)
                parameter = isinstance(tensor, nn.Parameter)
                moved[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if parameter else copied
            return moved[id(tensor)]

        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = there(tensor)  # type: ignore[assignment]
        return module

    return to


_SOURCE = str(Path(__import__("p3o").__file__).parent)


def _place() -> str:
    """The innermost function of p3o that is running, or of whatever called torch if none is."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(_SOURCE):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return "outside of p3o"
    return f"{Path(frame.f_code.co_filename).relative_to(_SOURCE)}:{frame.f_code.co_name}"
