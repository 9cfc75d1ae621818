"""The processes that train together, as one of them sees them. Alone, everything here does nothing.

The rule that the training loop keeps: what is decided is decided from numbers that are the same on every rank. The groups
of a step, their rewards and log-probs are gathered, so each rank holds all of them and draws the same order, the same
minibatches, the same targets; only the passes through the models are divided (``shares.py``).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from p3o.distributed.messages import as_tensor, pack, unpack
from p3o.errors import P3OError

Result = TypeVar("Result")
Piece = TypeVar("Piece")

BUCKET = 2**24
"""Numbers that one collective on gradients takes at a time: large enough to be fast, small enough to need no memory."""


class LostProcessError(P3OError):
    """Another process has gone: nothing is wrong with what was given, and whoever started them all may start them again."""


@dataclass(frozen=True)
class World:
    """This process's place among those that train together.

    Attributes:
        rank: 0 … size − 1.
        size: number of processes.
        control: the group of small messages, on the CPU; None when there is one process.
        patient: the same without a time limit, for waiting until the first process has done a stage alone.
        attempt: more than 0 where whoever started these processes has started them again after a failure; the same on all.
    """

    rank: int = 0
    size: int = 1
    control: Any = None
    patient: Any = None
    attempt: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            with _answers():
                dist.barrier(group=self.control)

    def wait_for_first(self, work: Callable[[], object]) -> None:
        """The first process works, as if it were alone, while the others wait, for as long as it takes.

        Raises:
            P3OError: everywhere, if it fails there.
        """
        error: Exception | None = None
        if self.first:
            try:
                with alone():
                    work()
            except Exception as caught:
                error = caught
        if self.size > 1:
            with _answers():
                dist.barrier(group=self.patient)
        self.together(lambda: _raise(error))

    def done_by_first(self, work: Callable[[], Any]) -> Any:
        """What ``work`` gives in the first process, alone while the others wait: a tree of plain values, everywhere.

        Raises:
            P3OError: everywhere, if it fails there.
        """
        found: list[Any] = []
        self.wait_for_first(lambda: found.append(work()))
        return self.from_first(found[0] if found else None)

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            with _answers():
                dist.all_reduce(tensor, group=self.control if tensor.device.type == "cpu" else None)
        return tensor

    def totals(self, *numbers: int | float) -> list[float]:
        """The sum of each number over all ranks, in float64."""
        return [float(total) for total in self.sum_(torch.tensor(numbers, dtype=torch.float64))]

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return self.totals(float(flag))[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, a tree of plain values and tensors, in the order of the ranks; on all of them."""
        if self.size == 1:
            return [value]
        message = as_tensor(pack(value))
        with _answers():
            lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(message)]), group=self.control)
            longest = int(max(lengths))
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(message)] = message
            messages = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(messages, padded, group=self.control)
        return [unpack(found[: int(length)].numpy().tobytes()) for found, length in zip(messages, lengths, strict=True)]

    def from_first(self, value: Any) -> Any:
        """The first process's value, everywhere; what the others give is not looked at."""
        if self.size == 1:
            return value
        message = as_tensor(pack(value)) if self.first else None
        with _answers():
            length = torch.tensor([0 if message is None else len(message)])
            dist.broadcast(length, 0, group=self.control)
            told = torch.empty(int(length), dtype=torch.uint8) if message is None else message
            dist.broadcast(told, 0, group=self.control)
        return unpack(told.numpy().tobytes())

    def together(self, work: Callable[[], Result], *, patient: bool = False) -> Result:
        """Do work without collectives; if it fails on one rank it fails on all, and nobody waits for a rank that has left.

        Args:
            work: of this rank.
            patient: whether it may take longer on one rank than the limit on collectives; the others then wait without one.

        Raises:
            P3OError: of the lowest rank that failed, or of the same kind and text on the others.
        """
        if self.size == 1:
            return work()
        result: Result | None = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as caught:
            error = caught
        if patient:
            with _answers():
                dist.barrier(group=self.patient)
        told = None if error is None else {"kind": type(error).__name__, "text": str(error)}
        for rank, failure in enumerate(self.gather(told)):
            if failure is None:
                continue
            if error is not None and (rank == self.rank or not isinstance(error, P3OError)):
                raise error
            kind = _kinds().get(failure["kind"])
            text = failure["text"] if kind else f"{failure['kind']}: {failure['text']}"
            raise (kind or P3OError)(f"process {rank}: {text}") from error
        return result  # type: ignore[return-value]

    def in_turns(self, pieces: Sequence[Piece], work: Callable[[Piece], Result]) -> list[Result]:
        """What ``work``, without collectives, gives for each piece, in their order: every rank does each size-th of them.

        Raises:
            P3OError: as ``together``.
        """
        told = self.gather(self.together(lambda: [work(piece) for piece in pieces[self.rank :: self.size]]))
        return [told[number % self.size][number // self.size] for number in range(len(pieces))]

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """The gradients of replicated parameters, summed over the ranks. Those of sharded ones are summed already.

        A parameter that no rank has a gradient for keeps none, so that the optimiser passes it over as it would in one process.
        """
        if self.size == 1:
            return
        replicated = [parameter for parameter in parameters if not hasattr(parameter, "full_tensor")]
        has = self.sum_(torch.tensor([parameter.grad is not None for parameter in replicated], dtype=torch.int32))
        wanted = [parameter for parameter, count in zip(replicated, has.tolist(), strict=True) if count]
        for parameter in wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets(wanted):
            gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
            flat = self.sum_(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))


_ALONE = World()
_current = [_ALONE]


def world() -> World:
    """The processes that this one trains with; one alone if nothing was started."""
    return _current[-1]


@contextmanager
def within(found: World) -> Iterator[World]:
    """Inside, ``world()`` is this one."""
    _current.append(found)
    try:
        yield found
    finally:
        _current.pop()


@contextmanager
def alone() -> Iterator[World]:
    """Inside, this process is by itself: for work that it does while the others wait."""
    with within(_ALONE) as found:
        yield found


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one dtype and device, about BUCKET numbers at a time."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        alike = not bucket or (bucket[0].dtype, bucket[0].device) == (parameter.dtype, parameter.device)
        if bucket and (not alike or size + parameter.numel() > BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket


@contextmanager
def _answers() -> Iterator[None]:
    """A collective that fails, told in words: the cause is on another process, and its own message is the one to read."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(
            "another process of this training has stopped, or did not respond within parallel.timeout_minutes; "
            f"its output says why ({str(error).splitlines()[0][:200]})"
        ) from error


def _kinds() -> Mapping[str, type[P3OError]]:
    """P3OError and everything derived from it, by name."""
    found: dict[str, type[P3OError]] = {}
    left: list[type[P3OError]] = [P3OError]
    while left:
        kind = left.pop()
        found[kind.__name__] = kind
        left += kind.__subclasses__()
    return found


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
