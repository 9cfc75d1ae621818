"""A name that the processes of one start agree on, in a store that may remember those of earlier starts.

torchrun's store outlives the processes that torchrun starts again. Who reads there the address of one that was killed waits
for it until the time limit. TORCHELASTIC_RESTART_COUNT cannot tell the starts apart: each host counts for itself, and a host
whose processes were started again because of another host's failure, or that has joined anew, has counted less.

So every process says that it is here, with a word of its own that no other process ever used. The first one invites those whom
it finds, under a name; when all have come it lets them go. One that was there before, and is not any more, never comes: in its
place a new one says that it is here, and all are invited again, under another name.
"""

import json
import secrets
import time
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed.distributed_c10d import Store

_LOOK = 0.05
"""Seconds between two looks of the first process at who has come."""


@dataclass(frozen=True)
class Meeting:
    """What the processes have agreed on.

    Attributes:
        name: used once in this store.
        attempt: 0 at the first start; more, as far as the store or any of the processes knows of earlier ones.
    """

    name: str
    attempt: int


def meet(store: Store, rank: int, size: int, *, restarts: int, limit: timedelta) -> Meeting:
    """Agree with the other processes of this start.

    Args:
        store: of the rendezvous.
        rank: of this process.
        size: number of processes.
        restarts: how often this process was started before, as far as it knows.
        limit: how long the others may take to come.

    Raises:
        RuntimeError: if not all come in time.
    """
    word = f"{secrets.token_hex(16)} {restarts}"
    store.set(f"p3o/here/{rank}", word)
    if rank == 0:
        return _invite(store, size, limit)
    store.wait([f"p3o/invited/{word}"], limit)
    name = store.get(f"p3o/invited/{word}").decode()
    while True:
        store.set(f"p3o/came/{name}/{rank}", "")
        store.wait([f"p3o/then/{name}"], limit)
        then = json.loads(store.get(f"p3o/then/{name}"))
        if "attempt" in then:
            return Meeting(name, then["attempt"])
        name = then["name"]


def _invite(store: Store, size: int, limit: timedelta) -> Meeting:
    deadline = time.monotonic() + limit.total_seconds()
    start, places = store.add("p3o/starts", 1), [f"p3o/here/{rank}" for rank in range(size)]
    store.wait(places, limit)
    here, tries = store.multi_get(places), 0
    while True:
        name = f"{start}.{tries}"
        came = [f"p3o/came/{name}/{rank}" for rank in range(1, size)]
        for word in here[1:]:
            store.set(f"p3o/invited/{word.decode()}", name)
        if tries:
            store.set(f"p3o/then/{start}.{tries - 1}", json.dumps({"name": name}))
        while (now := store.multi_get(places)) == here and not store.check(came):
            if time.monotonic() > deadline:
                away = [rank for rank, key in enumerate(came, start=1) if not store.check([key])]
                raise RuntimeError(f"process {away[0] if away else 1} of {size} did not come")
            time.sleep(_LOOK)
        if now == here:
            attempt = max(start - 1, *(int(word.decode().rpartition(" ")[2]) for word in here))
            store.set(f"p3o/then/{name}", json.dumps({"attempt": attempt}))
            return Meeting(name, attempt)
        here, tries = now, tries + 1
