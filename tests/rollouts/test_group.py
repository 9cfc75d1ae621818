"""The gloo group of a push: what every rank sends, and what the others do when one is gone."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from p3o.rollouts.group import PIECE, GlooGroup, listening_store

HOST = "127.0.0.1"
SIZE = 4
Member = Callable[[GlooGroup], Any]


class Counted:
    """A process group, counting what is sent through it."""

    def __init__(self, group: Any) -> None:
        self.group, self.sent = group, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.group, name)

    def send(self, tensors: list[torch.Tensor], rank: int, tag: int) -> Any:
        self.sent += sum(tensor.nbytes for tensor in tensors)
        return self.group.send(tensors, rank, tag)


def together(*members: Member, timeout: float = 20.0) -> list[Any]:
    """What each rank of a group returns or raises."""
    store, size = listening_store(HOST, timeout=timeout), len(members)

    def take_part(rank: int) -> Any:
        try:
            if rank == 0:
                group = GlooGroup.host(store, HOST, size, timeout=timeout, watch=lambda: None)
            else:
                group = GlooGroup.join(HOST, store.port, rank, size, timeout=timeout)
            return members[rank](group)
        except RuntimeError as error:
            return error

    with ThreadPoolExecutor(size) as executor:
        return list(executor.map(take_part, range(size)))


@pytest.mark.parametrize("length", [0, 1, PIECE, 3 * PIECE + 5])
def test_all_get_everything_and_nobody_sends_it_twice(length: int) -> None:
    sent = torch.randint(256, (length,), dtype=torch.uint8)

    def member(group: GlooGroup) -> int:
        group._group = counted = Counted(group._group)
        for _ in range(2):
            data = sent.clone() if group.rank == 0 else torch.zeros(length, dtype=torch.uint8)
            group.broadcast(data)
            assert torch.equal(data, sent)
        group.close()
        return counted.sent

    # Every rank but the learner tells the one before it with one byte that it has everything.
    assert together(*[member] * SIZE) == [2 * length, 2 * length + 2, 2 * length + 2, 2]


@pytest.mark.parametrize("gone", range(SIZE))
def test_when_one_goes_away_all_others_know(gone: int) -> None:
    """Their limit is a minute; that it has not to pass is what ``close`` is for."""
    left = threading.Event()

    def member(group: GlooGroup) -> None:
        data = torch.zeros(8 * PIECE, dtype=torch.uint8)
        group.broadcast(data)
        if group.rank == gone:
            group.close()
            left.set()
            return
        assert left.wait(20)
        for _ in range(2):  # the learner's first may all be under way before the last of the chain is missed
            group.broadcast(data)

    found = together(*[member] * SIZE, timeout=60.0)
    assert [isinstance(error, RuntimeError) for error in found] == [rank != gone for rank in range(SIZE)]


def test_one_that_hangs_is_waited_for_no_longer_than_the_limit() -> None:
    over = threading.Event()

    def member(group: GlooGroup) -> None:
        if group.rank == 2:
            assert over.wait(20)
            return
        try:
            for _ in range(2):  # the learner's first is over when rank 1 has it
                group.broadcast(torch.zeros(64 * PIECE, dtype=torch.uint8))  # more than the kernel's buffers hold
        finally:
            if group.rank == 1:
                over.set()

    found = together(*[member] * SIZE, timeout=1.0)
    assert [isinstance(error, RuntimeError) for error in found] == [True, True, False, True]


def test_a_group_that_is_closed_says_so() -> None:
    def member(group: GlooGroup) -> None:
        group.close()
        group.close()
        group.broadcast(torch.zeros(1, dtype=torch.uint8))

    assert [str(error) for error in together(member, member)] == ["the group is closed"] * 2


def test_one_that_will_not_come_ends_the_rendezvous_for_all_at_once() -> None:
    store = listening_store(HOST, timeout=60.0)
    waiting: list[Any] = []

    def refused() -> None:
        if store.check(["here/1"]):
            raise ConnectionError("rank 2 is gone")

    with ThreadPoolExecutor(1) as executor:
        waiting.append(executor.submit(GlooGroup.join, HOST, store.port, 1, 3, timeout=60.0))
        with pytest.raises(ConnectionError, match="rank 2 is gone"):
            GlooGroup.host(store, HOST, 3, timeout=60.0, watch=refused)
        with pytest.raises(RuntimeError, match="the learner gave up the rendezvous"):
            waiting[0].result()


def test_one_that_does_not_come_in_time_is_told() -> None:
    store = listening_store(HOST, timeout=1.0)
    with pytest.raises(RuntimeError, match=r"not all workers came to the rendezvous in 0\.05 s"):
        GlooGroup.host(store, HOST, 2, timeout=0.05, watch=lambda: None)
