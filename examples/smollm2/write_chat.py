"""Writes a small conversational data set: what a patient assistant says to small requests, and what a curt one would say.

The requests of ``chat_heldout.jsonl`` occur in no other file.
"""

import json
from collections.abc import Iterable
from pathlib import Path

# Request, the good answer's substance, what a curt assistant says.
TALKS = [
    (
        "How do I descale a kettle?",
        "fill it with equal parts of water and vinegar, boil it once and rinse it twice",
        "Vinegar.",
    ),
    ("What do I wear to an interview?", "choose something plain in which you can sit and breathe", "Clothes."),
    (
        "How do I sew on a button?",
        "push the needle up and down through the holes six times and knot it behind",
        "With a needle.",
    ),
    ("Can I freeze cooked rice?", "let it cool quickly, freeze it flat and eat it within a month", "Yes."),
    (
        "How do I write to my landlord?",
        "say what is broken, since when, and by what date you need it mended",
        "Use paper.",
    ),
    (
        "Why does my bread not rise?",
        "check that the yeast is fresh and give it a warm place and an hour more",
        "Bad yeast.",
    ),
    (
        "How do I fold a fitted sheet?",
        "tuck the corners into each other, lay it flat and fold it in thirds",
        "You don't.",
    ),
    ("How do I remember names?", "say the name aloud at once and tie it to something you see", "Try harder."),
    ("What do I feed a hedgehog?", "put out a little cat food and a shallow dish of water", "Food."),
    ("How do I unblock a sink?", "pour in baking soda and vinegar, wait ten minutes and add hot water", "Plunger."),
    ("How do I start running?", "run one minute and walk two, ten times, three days a week", "Just run."),
    ("How do I keep basil alive?", "give it light, water it from below and pick the tips often", "Water."),
    ("How do I pack for a week?", "roll your clothes and leave a quarter of the bag empty", "In a bag."),
    ("What helps against hiccups?", "hold your breath for ten seconds and then sip cold water slowly", "Nothing."),
    ("How do I store onions?", "hang them in a dry, dark place and keep them away from potatoes", "Anywhere."),
    ("How do I clean a window?", "wipe it with soapy water and pull it dry from the top down", "Wipe it."),
]
OPENINGS = ["Happy to help", "Good question", "Of course"]
HELD_OUT = 3
SYSTEM = {"role": "system", "content": "Answer in one short sentence."}


def main() -> None:
    """Demonstrations, preferences and prompts, as conversations; the last requests are held out."""
    talks, heldout = TALKS[:-HELD_OUT], TALKS[-HELD_OUT:]
    rows = [(request, f"{opening}: {substance}.", curt) for request, substance, curt in talks for opening in OPENINGS]
    asked = [[SYSTEM, {"role": "user", "content": request}] for request, _, _ in rows]
    write(
        "chat_demonstrations.jsonl",
        [
            {"messages": [*prompt, {"role": "assistant", "content": good}]}
            for prompt, (_, good, _) in zip(asked, rows, strict=True)
        ],
    )
    write(
        "chat_preferences.jsonl",
        [
            {
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": good}],
                "rejected": [{"role": "assistant", "content": curt}],
            }
            for prompt, (_, good, curt) in zip(asked, rows, strict=True)
        ],
    )
    for name, part in (("prompts", talks), ("heldout", heldout)):
        prompts = [[SYSTEM, {"role": "user", "content": request}] for request, _, _ in part]
        write(f"chat_{name}.jsonl", [{"prompt": prompt} for prompt in prompts])


def write(name: str, rows: Iterable[object]) -> None:
    """One JSON object a line, beside this file."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (Path(__file__).parent / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
