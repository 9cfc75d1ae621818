"""Writes transcripts of a helpful assistant in the form of Anthropic/hh-rlhf, made from a small grammar of our own.

    python examples/hh/write_data.py FOLDER

A row is two whole transcripts, `chosen` and `rejected`, that part at the last answer. The preferred answer names the
thing asked for and gives the two steps; the other one is rude, evasive, or about something else. Some have an earlier turn.
"""

import json
import random
import sys
import zlib
from pathlib import Path

TASKS = {
    "bake bread": ("mix flour, water and yeast", "bake the dough for forty minutes"),
    "paint a wall": ("wash the wall and let it dry", "roll on two thin coats"),
    "plant a tree": ("dig a wide hole", "water the roots every day"),
    "fix a flat tyre": ("take off the wheel", "patch the hole in the tube"),
    "brew tea": ("boil fresh water", "let the leaves stand for three minutes"),
    "clean a window": ("wet the glass with a sponge", "wipe it dry from the top"),
}
ASKS = (
    "How do I {task}?",
    "How would you {task}?",
    "Can you tell me how to {task}?",
    "Please tell me how to {task}.",
    "What is the best way to {task}?",
)
REFUSALS = ("Why would you want that?", "I have no idea.", "Look it up yourself.", "That is a boring question.")


def answer(task: str) -> str:
    """The helpful answer."""
    first, second = TASKS[task]
    return f"To {task}, first {first}, then {second}."


def row(random_: random.Random) -> dict[str, str]:
    """One pair of transcripts."""
    task, other = random_.sample(list(TASKS), 2)
    worse = random_.choice([random_.choice(REFUSALS), answer(other), f"To {task}, first {TASKS[task][0]}."])
    earlier = ""
    if random_.random() < 0.5:
        earlier = f"\n\nHuman: {random_.choice(ASKS).format(task=other)}\n\nAssistant: {answer(other)}"
    shared = f"{earlier}\n\nHuman: {random_.choice(ASKS).format(task=task)}\n\nAssistant:"
    return {"chosen": f"{shared} {answer(task)}", "rejected": f"{shared} {worse}"}


def row_of(random_: random.Random, *, held_out: bool) -> dict[str, str]:
    """A pair of the split: about a fifth of the conversations, by a checksum, are kept for the test."""
    while True:
        pair = row(random_)
        conversation = pair["chosen"].rpartition("Assistant:")[0]
        if (zlib.crc32(conversation.encode()) % 5 == 0) == held_out:
            return pair


def write(folder: Path, *, train: int = 1500, test: int = 128, seed: int = 0) -> None:
    """The two splits. Half of the demonstrations are the answers that lost, as an assistant before RLHF would write."""
    random_ = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("test", test)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for _ in range(count):
                file.write(json.dumps(row_of(random_, held_out=name == "test")) + "\n")
    with (folder / "demonstrations.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(train):
            pair = row_of(random_, held_out=False)
            if random_.random() < 0.5:
                pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
            file.write(json.dumps(pair) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    write(Path(sys.argv[1]))
