"""Processes of one start meet under a name of their own, whatever an earlier start left in the store."""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from torch.distributed import Store, TCPStore

from p3o.distributed.meeting import Meeting, meet

LIMIT = timedelta(seconds=20)


@pytest.fixture
def store() -> Store:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def client(store: Store) -> Store:
    """A connection of its own: one that waits holds up whoever else uses it."""
    assert isinstance(store, TCPStore)
    return TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)


def together(store: Store, counts: list[int], *, late: Callable[[], None] = lambda: None) -> list[Meeting]:
    """What each of so many processes finds; the last one comes after the others have begun and ``late`` was called."""
    found: dict[int, Meeting] = {}

    def one(rank: int) -> None:
        found[rank] = meet(client(store), rank, len(counts), restarts=counts[rank], limit=LIMIT)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(counts))]
    for thread in threads[:-1]:
        thread.start()
    late()
    threads[-1].start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(len(counts))]


def test_all_find_the_same_name_and_nobody_was_there_before(store: Store) -> None:
    first, *others = together(store, [0, 0, 0])
    assert others == [first, first]
    assert first.attempt == 0


@pytest.mark.parametrize("counts", [[1, 0], [0, 1], [0, 0]], ids=str)
def test_a_second_start_has_another_name_though_hosts_count_differently(store: Store, counts: list[int]) -> None:
    """torchrun counts on each host, and a start for another host's sake not at all."""
    before, _ = together(store, [0, 0])
    first, other = together(store, counts)
    assert first == other
    assert first.name != before.name
    assert first.attempt == 1


def test_a_host_that_joined_anew_learns_that_the_others_were_started_again(store: Store) -> None:
    """The store is new, so only the count of one of them knows."""
    assert [found.attempt for found in together(store, [2, 0])] == [2, 2]


def test_one_that_said_it_was_here_and_died_is_not_waited_for(store: Store) -> None:
    """Two are invited with it and have come; they go on under the name that the next invitation has."""
    store.set("p3o/here/2", "of a process that was killed 0")

    def late() -> None:
        store.wait(["p3o/invited/of a process that was killed 0", "p3o/came/1.0/1"], LIMIT)

    first, *others = together(store, [0, 0, 0], late=late)
    assert others == [first, first]
    assert first.name == "1.1"


@pytest.mark.parametrize("rank", [0, 1])
def test_who_comes_alone_waits_no_longer_than_it_may(store: Store, rank: int) -> None:
    with pytest.raises(RuntimeError):
        meet(client(store), rank, 2, restarts=0, limit=timedelta(seconds=0.2))


def test_who_never_came_is_named(store: Store) -> None:
    store.set("p3o/here/1", "of a process that was killed 0")
    with pytest.raises(RuntimeError, match="process 1 of 2 did not come"):
        meet(client(store), 0, 2, restarts=0, limit=timedelta(seconds=0.2))
