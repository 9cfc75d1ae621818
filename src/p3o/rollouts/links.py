"""Ways to broadcast tensors to the workers of one server: gloo (our plugin) and nccl (vLLM's own engine).

Each server has a group of its own with the learner, so that one that dies takes no other with it.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from p3o.errors import P3OError
from p3o.rollouts.group import GlooGroup, listening_store
from p3o.rollouts.server import VLLMServer

_LOOK = 0.0002
"""Seconds between two looks whether a tensor has been sent."""


@runtime_checkable
class Link(Protocol):
    """The learner's end of a group with one server."""

    def send(self, tensor: Tensor) -> None:
        """Broadcast a whole tensor.

        Raises:
            RuntimeError: if the server is gone or too slow.
        """

    def close(self) -> None:
        """Give up the group."""


class GlooLink:
    """A group of ``p3o.rollouts.group`` with a server that runs our plugin.

    Args:
        server: started with the backend ``p3o_gloo``.
        address: of this machine, as the server reaches it.
        timeout: seconds for every transfer.

    Raises:
        ServerError: if the server refuses.
        RuntimeError: if it does not come in time.
        P3OError: if this machine has no such address.
    """

    def __init__(self, server: VLLMServer, address: str, *, timeout: float) -> None:
        size = 1 + server.world_size()
        try:
            store = listening_store(address, timeout=timeout)
        except OSError as error:
            raise _no_such_address(address, error) from error
        # The server blocks in its half of the rendezvous until we are in ours.
        with ThreadPoolExecutor(1) as executor:
            joined = executor.submit(
                server.post,
                "/init_weight_transfer_engine",
                {"init_info": {"address": address, "port": store.port, "world_size": size, "timeout": timeout}},
            )
            self._group = _meet(joined, lambda: GlooGroup(store, address, 0, size, timeout=timeout))

    def send(self, tensor: Tensor) -> None:
        """Broadcast a whole tensor, as bytes: every dtype goes the same way."""
        self._group.broadcast(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8))

    def close(self) -> None:
        """Give up the group."""
        self._group.close()


class NcclLink:
    """A group of vLLM's own nccl engine: between GPUs, no plugin on the server, vLLM importable here.

    Written after the protocol of vLLM 0.32; never run, for want of two GPUs. Tensors go one by one (``packed`` off).

    Args:
        server: started with the backend ``nccl``.
        address: of this machine, as the server reaches it.
        timeout: seconds for every transfer; the rendezvous has vLLM's own limit.

    Raises:
        ServerError: if the server refuses.
        RuntimeError: if it does not come in time.
        P3OError: if vLLM or nccl cannot be used here, or this machine has no such address.
    """

    def __init__(self, server: VLLMServer, address: str, *, timeout: float) -> None:
        try:
            from vllm.distributed.weight_transfer.nccl_common import trainer_init
            from vllm.utils.network_utils import get_open_port
        except ImportError as error:
            raise P3OError(
                "rl.rollout.weights: nccl needs vllm in the learner's environment, too; install it there, or use disk"
            ) from error
        self._timeout = timeout
        size, port = 1 + server.world_size(), get_open_port()
        meeting = {"master_address": address, "master_port": port, "world_size": size}
        with ThreadPoolExecutor(1) as executor:
            joined = executor.submit(
                server.post,
                "/init_weight_transfer_engine",
                {"init_info": meeting | {"rank_offset": 1, "packed": False}},
            )
            try:
                self._group: Any = _meet(joined, lambda: trainer_init(meeting))
            except OSError as error:
                server.cut()  # it waits for us in vain
                raise _no_such_address(address, error) from error
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


def _meet(joined: "Future[Any]", open_here: Any) -> Any:
    """Our half of the rendezvous while the server's request runs; the server's reason, if it has one, is the better one."""
    try:
        group = open_here()
    except RuntimeError:
        joined.result()
        raise
    joined.result()
    return group
