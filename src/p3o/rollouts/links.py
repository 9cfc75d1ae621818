"""Ways to broadcast tensors to the workers of several servers at once: gloo (our plugin) and nccl (vLLM's own engine).

The learner is rank 0 of one group, and the workers of the servers follow in the order of the servers.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from p3o.errors import P3OError
from p3o.rollouts.group import GlooGroup, listening_store
from p3o.rollouts.http import ServerError
from p3o.rollouts.server import VLLMServer

_LOOK = 0.0002
"""Seconds between two looks whether a tensor has been sent."""


@runtime_checkable
class Link(Protocol):
    """The learner's end of a group with servers."""

    def send(self, tensor: Tensor) -> None:
        """Broadcast a whole tensor.

        Raises:
            RuntimeError: if a server is gone or too slow.
        """

    def close(self) -> None:
        """Give up the group."""


class GlooLink:
    """A group of ``p3o.rollouts.group`` with servers that run our plugin.

    Args:
        servers: started with the backend ``p3o_gloo``; they must reach this machine and one another.
        address: of this machine, as the servers reach it.
        timeout: seconds for every transfer.

    Raises:
        ServerError: if a server refuses or is gone.
        RuntimeError: if one does not come in time.
        P3OError: if this machine has no such address.
    """

    def __init__(self, servers: Sequence[VLLMServer], address: str, *, timeout: float) -> None:
        offsets, size = _ranks(servers)
        try:
            store = listening_store(address, timeout=timeout)
        except OSError as error:
            raise _no_such_address(address, error) from error
        meeting = {"address": address, "port": store.port, "world_size": size, "timeout": timeout}
        with _invited(servers, offsets, meeting) as joined:
            self._group = GlooGroup.host(store, address, size, timeout=timeout, watch=lambda: _refusal(joined))

    def send(self, tensor: Tensor) -> None:
        """Broadcast a whole tensor, as bytes: every dtype goes the same way."""
        self._group.broadcast(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8))

    def close(self) -> None:
        """Give up the group."""
        self._group.close()


class NcclLink:
    """A group of vLLM's own nccl engine: between GPUs, no plugin on the servers, vLLM importable here.

    Written after the protocol of vLLM 0.32; never run, for want of two GPUs. Tensors go one by one (``packed`` off). vLLM's end
    has no time limit: a server that waits for a tensor when another one dies waits until it is started again.

    Args:
        servers: started with the backend ``nccl``.
        address: of this machine, as the servers reach it.
        timeout: seconds for every transfer; the rendezvous has vLLM's own limit.

    Raises:
        ServerError: if a server refuses or is gone.
        RuntimeError: if one does not come in time.
        P3OError: if vLLM or nccl cannot be used here, or this machine has no such address.
    """

    def __init__(self, servers: Sequence[VLLMServer], address: str, *, timeout: float) -> None:
        try:
            from vllm.distributed.weight_transfer.nccl_common import trainer_init
            from vllm.utils.network_utils import get_open_port
        except ImportError as error:
            raise P3OError(
                "rl.rollout.weights: nccl needs vllm in the learner's environment, too; install it there, or use disk"
            ) from error
        self._timeout = timeout
        offsets, size = _ranks(servers)
        meeting = {"master_address": address, "master_port": get_open_port(), "world_size": size}
        with _invited(servers, offsets, meeting | {"packed": False}, leaving=True) as joined:
            try:
                self._group: Any = trainer_init(meeting)
            except OSError as error:
                for server in servers:
                    server.cut()  # they wait for us in vain
                raise _no_such_address(address, error) from error
            except RuntimeError:
                _refusal(joined)
                raise
        if self._group.disabled:  # vLLM goes on without a word, and sends nothing
            raise P3OError("rl.rollout.weights: nccl cannot be loaded in the learner's environment; use disk")

    def send(self, tensor: Tensor) -> None:
        """Broadcast a whole tensor from this GPU. Nccl itself would wait for ever for a server that is gone."""
        on_gpu = tensor.detach().cuda().contiguous()
        stream, sent = torch.cuda.current_stream(), torch.cuda.Event()
        self._group.broadcast(on_gpu, src=0, stream=stream)
        sent.record(stream)
        deadline = time.monotonic() + self._timeout
        while not sent.query():  # the copy must live until it is sent
            if time.monotonic() > deadline:
                self.close()  # which ends what is under way
                raise RuntimeError(f"not received within {self._timeout:g} s")
            time.sleep(_LOOK)

    def close(self) -> None:
        """Give up the group."""
        self._group.destroy()


def _no_such_address(address: str, error: OSError) -> P3OError:
    return P3OError(f"rl.rollout.address: this machine has no address {address!r} to be reached at ({error})")


def _ranks(servers: Sequence[VLLMServer]) -> tuple[list[int], int]:
    """The rank of each server's first worker, and the size of the group."""
    offsets, size = list[int](), 1
    for server in servers:
        offsets.append(size)
        size += server.world_size()
    return offsets, size


@contextlib.contextmanager
def _invited(
    servers: Sequence[VLLMServer], offsets: Sequence[int], meeting: Mapping[str, Any], *, leaving: bool = False
) -> Iterator["list[Future[Any]]"]:
    """The servers' halves of the rendezvous while we are in ours: each blocks until all are there."""

    def invite(server: VLLMServer, offset: int) -> None:
        if leaving:
            _leave(server)
        server.post("/init_weight_transfer_engine", {"init_info": {**meeting, "rank_offset": offset}})

    with ThreadPoolExecutor(len(servers)) as executor:
        joined = [executor.submit(invite, *pair) for pair in zip(servers, offsets, strict=True)]
        yield joined
    for reply in joined:
        reply.result()


def _refusal(joined: "Sequence[Future[Any]]") -> None:
    """Raise what the first server said that will not come, if there is one: it is the better reason."""
    for reply in joined:
        if reply.done() and (error := reply.exception()) is not None:
            raise error


def _leave(server: VLLMServer) -> None:
    """Let it give up an earlier group: vLLM (0.32) keeps the buffers of one that is merely followed by another."""
    try:
        server.post("/shutdown_weight_transfer_engine")
    except ServerError as error:
        if error.kind != "broken":  # refused while an update is open, which a learner before us left: then it stays
            raise
