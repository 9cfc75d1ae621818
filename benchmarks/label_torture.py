"""Kill -9 the labelling server at random moments while annotators label; then look for every label that it said is saved.

python benchmarks/label_torture.py --kills 50
python benchmarks/label_torture.py --kills 50 --database-url postgresql://user@host/empty_database
"""

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.label_clients import PATIENCE, Client, Server, fresh_names, write_sample_pairs
from sqlmodel import select

from p3o.labeling.store import Store
from p3o.labeling.tables import Event

CHOICES = ("first", "second", "tie", "bad", "skip")


@dataclass(frozen=True)
class Outcome:
    """What was found after the last restart.

    Attributes:
        acknowledged: labels that a client was told are saved.
        unacknowledged: labels in the store whose client never got an answer, because the run ended.
        lost, doubled, changed: acknowledged labels that are not there, there twice, or there with another answer.
        undone, undos_lost: undos that were acknowledged, and those of them that are not there.
        retries: requests that had to be sent again.
    """

    kills: int
    acknowledged: int
    unacknowledged: int
    lost: int
    doubled: int
    changed: int
    undone: int
    undos_lost: int
    retries: int

    @property
    def whole(self) -> bool:
        """Whether every acknowledged label is there exactly once, as it was given."""
        return self.lost == self.doubled == self.changed == self.undos_lost == 0


def torture(folder: Path, *, kills: int, annotators: int, seed: int, database_url: str | None = None) -> Outcome:
    """Run it. The store is in ``folder``, or behind the URL, where it must be empty."""
    rng = random.Random(seed)
    pairs = folder / "pairs.jsonl"
    write_sample_pairs(pairs, 200 + 100 * kills)
    place = ["--database-url", database_url] if database_url else ["--store", str(folder / "labels.db")]
    server = Server(place, pairs, names := fresh_names(annotators))
    clients = [Client(server, name) for name in names]
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(client: Client, own: random.Random) -> None:
        try:
            client.log_in()
            while not stop.is_set():
                if own.random() < 0.1:
                    client.undo_one()
                client.label_one(own.choice(CHOICES))
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            client.close()

    threads = [
        threading.Thread(target=work, args=(client, random.Random(f"{seed} {client.name}"))) for client in clients
    ]
    for thread in threads:
        thread.start()
    for _ in range(kills):
        _wait_for_labels(clients)  # so that the kill falls among them, and not into the start of the server
        time.sleep(rng.uniform(0.0, 0.5))
        server.kill()
        server.restart()
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join()
    server.stop()
    if failures:
        raise failures[0]
    return _compare(Store.open(database_url or folder / "labels.db"), clients, kills)


def _wait_for_labels(clients: Sequence[Client]) -> None:
    wanted = sum(len(client.acknowledged) for client in clients) + len(clients) // 2
    until = time.monotonic() + PATIENCE
    while sum(len(client.acknowledged) for client in clients) < wanted and time.monotonic() < until:
        time.sleep(0.005)


def _compare(store: Store, clients: Sequence[Client], kills: int) -> Outcome:
    store.verify()  # raises at any contradiction between the history and what is derived from it
    with store.database.reading() as session:
        events = list(session.exec(select(Event)))
    store.close()
    by_key = {event.key: event for event in events}
    times = Counter(event.key for event in events)
    acknowledged = {key: choice for client in clients for key, choice in client.acknowledged.items()}
    undone = [event for client in clients for event in client.undone]
    there = {event.undoes for event in events}
    labels = {event.key for event in events if event.choice is not None}
    return Outcome(
        kills=kills,
        acknowledged=len(acknowledged),
        unacknowledged=len(labels - set(acknowledged)),
        lost=sum(key not in by_key for key in acknowledged),
        doubled=sum(times[key] > 1 for key in acknowledged),
        changed=sum(key in by_key and not _same(by_key[key], choice) for key, choice in acknowledged.items()),
        undone=len(undone),
        undos_lost=sum(event not in there for event in undone),
        retries=sum(client.retries for client in clients),
    )


def _same(event: Event, choice: str) -> bool:
    if choice in ("first", "second"):
        return event.choice == ("b" if (choice == "first") == event.swapped else "a")
    return event.choice == choice


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--annotators", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database-url")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = torture(
            Path(folder),
            kills=options.kills,
            annotators=options.annotators,
            seed=options.seed,
            database_url=options.database_url,
        )
    print(outcome)
    raise SystemExit(0 if outcome.whole else 1)


if __name__ == "__main__":
    main()
