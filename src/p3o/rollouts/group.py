"""A gloo group of its own between the learner (rank 0) and the workers of one vLLM server.

It stands beside whatever default process group either side has. The learner's store listens on the one address that the
configuration names, never on all interfaces. Imported on both sides, so it needs nothing but torch.
"""

import socket
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]

_PREFIX = "p3o"


def listening_store(address: str, *, timeout: float) -> TCPStore:
    """The learner's end of the rendezvous, on a free port of ``address`` (``store.port``).

    Raises:
        OSError: if this machine has no such address.
    """
    listener = socket.create_server((address, 0))
    port = listener.getsockname()[1]
    return TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout),
        # The store takes the socket over.
        master_listen_fd=listener.detach(),
    )


class GlooGroup:
    """One end of the group.

    Args:
        store: of the rendezvous.
        address: of this machine, as the others reach it.
        rank: 0 is the learner.
        size: of the group.
        timeout: seconds for every transfer.

    Raises:
        RuntimeError: if not all come in time.
    """

    def __init__(self, store: TCPStore, address: str, rank: int, size: int, *, timeout: float) -> None:
        # torch's typing does not know its gloo; without the device it would choose an interface by the host's name.
        gloo: Any = ProcessGroupGloo
        options = gloo._Options()  # noqa: SLF001
        options._devices = [gloo.create_device(hostname=address)]  # noqa: SLF001
        options._timeout = timedelta(seconds=timeout)  # noqa: SLF001
        self._store = store  # must outlive the group
        self._group: Any = gloo(PrefixStore(_PREFIX, store), rank, size, options)

    @classmethod
    def join(cls, address: str, port: int, rank: int, size: int, *, timeout: float) -> "GlooGroup":
        """A server's end: find the learner's store, and the address of this machine on the way there."""
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))
            own: str = probe.getsockname()[0]
        return cls(store, own, rank, size, timeout=timeout)

    def broadcast(self, data: torch.Tensor) -> None:
        """From rank 0 to all: a flat uint8 tensor on the CPU, in place.

        Raises:
            RuntimeError: if one of the others is gone or too slow.
        """
        if self._group is None:
            raise RuntimeError("the group is closed")
        self._group.broadcast(data, 0).wait()

    def close(self) -> None:
        """Give up the connections."""
        self._group = None
