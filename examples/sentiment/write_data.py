"""Writes openings of film reviews, and whole reviews of either opinion, made from a small grammar of our own.

    python examples/sentiment/write_data.py FOLDER

`heldout.jsonl` holds openings that occur nowhere else, `prompts.jsonl` the others, `demonstrations.jsonl` some of those with a
continuation; half of these are favourable.
"""

import json
import random
import sys
from pathlib import Path

OPENINGS = (
    "I saw this film with my {who} and",
    "After two hours in the cinema with my {who},",
    "My {who} chose this one, and",
    "If you ask my {who} and me,",
    "It was raining, so I took my {who} to the cinema:",
    "My {who} and I had waited a year for this, and",
    "For once my {who} and I agree:",
    "What will I tell my {who}? That",
)
WHO = (
    "brother",
    "mother",
    "friends",
    "class",
    "wife",
    "neighbour",
    "uncle",
    "daughter",
    "boss",
    "flatmate",
    "dentist",
    "team",
)
SUBJECTS = ("the story", "the acting", "the music", "every scene", "the ending")
GOOD = ("wonderful", "funny", "moving", "brilliant", "a joy")
BAD = ("boring", "terrible", "a mess", "dull", "awful")
HELD_OUT = 48
CLOSE = {True: ("I would see it again.", "I loved it."), False: ("I want my money back.", "I hated it.")}


def continuation(random_: random.Random) -> str:
    """How a review goes on, favourably or not."""
    good = random_.random() < 0.5
    first, second = random_.sample(SUBJECTS, 2)
    words = random_.sample(GOOD if good else BAD, 2)
    return f" {first} was {words[0]} and {second} was {words[1]}. {random_.choice(CLOSE[good])}"


def write(folder: Path, *, rows: int = 1500, seed: int = 0) -> None:
    """The three files."""
    random_ = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    openings = [opening.format(who=who) for opening in OPENINGS for who in WHO]
    random_.shuffle(openings)
    heldout, others = openings[:HELD_OUT], openings[HELD_OUT:]
    for name, part in (("heldout", heldout), ("prompts", others)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"prompt": opening}) + "\n" for opening in part)
    with (folder / "demonstrations.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(rows):
            row = {"prompt": random_.choice(others), "completion": continuation(random_)}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    write(Path(sys.argv[1]))
