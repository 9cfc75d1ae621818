"""A gloo group of its own between the learner (rank 0) and the workers of vLLM servers.

It stands beside whatever default process group either side has. The learner's store listens on the one address that the
configuration names, never on all interfaces. Imported on both sides, so it needs nothing but torch.

What the learner sends goes from rank to rank in a chain, piece by piece: every rank sends at most once what it receives, and
all work at the same time. So the learner's line carries the weights once, however many servers there are; gloo's own broadcast
is a tree, in which its root sends them log2(size) times, one after another. When a rank is gone, its neighbours in the chain
see that, give up, and so their neighbours do.
"""

import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]

PIECE = 1 << 20
"""Bytes that a rank passes on at a time."""

_PREFIX = "p3o"
_DATA, _WORD = 0, 1
_BEGIN = "begin"
_GO, _GIVEN_UP = "go", "given up"
_LOOK = 0.002
"""Seconds between two looks whether all are there."""


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
        self.rank, self.size = rank, size
        self._group: Any = gloo(PrefixStore(_PREFIX, store), rank, size, options)

    @classmethod
    def host(
        cls, store: TCPStore, address: str, size: int, *, timeout: float, watch: Callable[[], None]
    ) -> "GlooGroup":
        """The learner's end: nobody connects to anybody before all are there, so that one who will not come is no loss.

        Args:
            watch: called while others are waited for; what it raises ends the rendezvous for all, at once.
        """
        deadline, expected = time.monotonic() + timeout, [_here(rank) for rank in range(1, size)]
        try:
            while not store.check(expected):
                watch()
                if time.monotonic() > deadline:
                    raise RuntimeError(f"not all workers came to the rendezvous in {timeout:g} s")
                time.sleep(_LOOK)
        except BaseException:
            store.set(_BEGIN, _GIVEN_UP)
            raise
        store.set(_BEGIN, _GO)
        return cls(store, address, 0, size, timeout=timeout)

    @classmethod
    def join(cls, address: str, port: int, rank: int, size: int, *, timeout: float) -> "GlooGroup":
        """A server's end: find the learner's store, and the address of this machine on the way there."""
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))
            own: str = probe.getsockname()[0]
        store.set(_here(rank), "")
        if store.get(_BEGIN).decode() != _GO:
            raise RuntimeError("the learner gave up the rendezvous: another server did not come")
        return cls(store, own, rank, size, timeout=timeout)

    def broadcast(self, data: torch.Tensor) -> None:
        """From rank 0 to all: a flat uint8 tensor on the CPU, in place. When it returns, this rank and the next one have all of
        it.

        Raises:
            RuntimeError: if one of the others is gone or too slow; the group is closed then.
        """
        if self._group is None:
            raise RuntimeError("the group is closed")
        broken = None
        try:
            self._pass_on(self._group, data)
        except RuntimeError as error:
            broken = str(error)  # not the error itself: its frames hold what is under way, and so the connections
        if broken is not None:
            self.close()
            raise RuntimeError(broken)

    def _pass_on(self, group: Any, data: torch.Tensor) -> None:
        before, after, last = self.rank - 1, self.rank + 1, self.rank + 1 == self.size
        # Gloo leaves a send that is half written to its time limit when the other end goes away, but no receive: so what is
        # waited for is the next one's word that it has everything.
        word, got = torch.empty(1, dtype=torch.uint8), torch.empty(1, dtype=torch.uint8)
        confirmed = None if last else group.recv([word], after, _WORD)
        sent = []
        for piece in data.split(PIECE):
            if self.rank > 0:
                group.recv([piece], before, _DATA).wait()
            if not last:
                sent.append(group.send([piece], after, _DATA))
        if self.rank > 0:
            group.send([got], before, _WORD).wait()
        for work in () if confirmed is None else (confirmed, *sent):
            work.wait()

    def close(self) -> None:
        """Give up the connections: whoever waits for us learns it at once."""
        self._group = None


def _here(rank: int) -> str:
    return f"here/{rank}"
