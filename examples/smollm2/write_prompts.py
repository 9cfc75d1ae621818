"""Writes prompts.jsonl: requests about everyday things, most of them dull or tiresome, as chat messages."""

import json
from pathlib import Path

THINGS = [
    "a rainy Monday morning", "waiting for a late train", "a broken washing machine", "an old umbrella",
    "the first day of school",
    "a long queue at the bank", "a forgotten birthday", "moving to another town", "a walk in the fog", "a burnt dinner",
    "a noisy neighbour", "the last page of a book", "a lost key", "a cold cup of coffee", "an empty fridge",
    "a stray cat at the door", "a power cut", "a dentist appointment", "the smell of new paint", "a flat tyre",
    "an unexpected letter", "a crowded bus", "a garden in November", "a broken window", "a night without sleep",
    "cleaning the attic", "a missed phone call", "a small office", "a wet dog", "the end of a holiday",
    "a slow computer", "a bridge at dawn", "a job interview", "an abandoned house", "a bad haircut",
    "peeling potatoes", "a foggy harbour", "a parking ticket", "a library on a Sunday", "an old photograph",
]  # fmt: skip
FORMS = [
    "Describe {}.",
    "Begin a story about {}.",
    "What does {} make you think of?",
    "Tell a friend about {}.",
    "Write a diary entry about {}.",
]
SYSTEM = "Answer in one short sentence."  # in the place of the template's longer default


def main() -> None:
    """Every form with every thing."""
    rows = [
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": form.format(thing)}]
        for thing in THINGS
        for form in FORMS
    ]
    lines = "".join(json.dumps({"prompt": row}) + "\n" for row in rows)
    (Path(__file__).parent / "prompts.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
