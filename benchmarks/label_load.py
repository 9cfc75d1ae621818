"""Many annotators at once on one labelling server: how long a page and an answer take.

python benchmarks/label_load.py --annotators 50 --seconds 60
"""

import argparse
import random
import tempfile
import threading
import time
from pathlib import Path
from statistics import quantiles

from benchmarks.label_clients import Client, Server, fresh_names, write_sample_pairs

from p3o.labeling.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--think", type=float, default=2.0, help="mean seconds between an answer and the next")
    parser.add_argument("--database-url")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        write_sample_pairs(pairs, 5000)
        place = ["--database-url", options.database_url] if options.database_url else ["--store", f"{folder}/labels.db"]
        server = Server(place, pairs, names := fresh_names(options.annotators))
        clients = [Client(server, name) for name in names]
        until = time.monotonic() + options.seconds

        def work(client: Client) -> None:
            rng = random.Random(client.name)
            client.log_in()
            while time.monotonic() < until:
                time.sleep(rng.expovariate(1 / options.think))
                client.label_one(rng.choice(("first", "second", "tie")))
            client.close()

        threads = [threading.Thread(target=work, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.stop()
        store = Store.open(options.database_url or Path(folder) / "labels.db")
        found = store.verify()["labels"]
        store.close()
    acknowledged = sum(len(client.acknowledged) for client in clients)
    print(f"{options.annotators} annotators, {options.seconds:.0f} s, {acknowledged / options.seconds:.1f} labels/s")
    print(
        f"{acknowledged} labels acknowledged, {found} in the store, {sum(client.retries for client in clients)} retries"
    )
    for path, meaning in (("GET /", "a page"), ("POST /label", "an answer")):
        times = [second for client in clients for second in client.seconds.get(path, [])]
        cuts = quantiles(times, n=100)
        print(
            f"{meaning}: median {1e3 * cuts[49]:.0f} ms, p95 {1e3 * cuts[94]:.0f} ms, longest {1e3 * max(times):.0f} ms"
        )
    raise SystemExit(0 if acknowledged == found else 1)


if __name__ == "__main__":
    main()
