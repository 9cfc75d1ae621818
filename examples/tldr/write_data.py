"""Writes posts and comparisons of summaries in the form of the TL;DR data sets, made from a small grammar of our own.

    python examples/tldr/write_data.py FOLDER

`posts.jsonl` has the columns of OpenAI's release (subreddit, title, post, summary), `comparisons.jsonl` those of
openai/summarize_from_feedback, so the same adapters read them that read the real ones. A good summary says who, what and the
question; a worse one leaves something out, gets it wrong, or rambles. Authors write either:
half of the posts have a good one. The comparisons prefer it. A tenth of all posts that the grammar can write occurs
only in `heldout.jsonl`.
"""

import json
import random
import sys
import zlib
from pathlib import Path

PEOPLE = ("roommate", "sister", "boss", "neighbour", "best friend", "cousin", "landlord", "coworker")
TROUBLES = (
    ("relationships", "borrowed my car and brought it back with a dent", "dented my car"),
    ("relationships", "told everyone about my surprise party", "spoiled my surprise party"),
    ("personalfinance", "owes me two hundred dollars since spring", "owes me two hundred dollars"),
    ("personalfinance", "wants me to sign a loan together", "wants a loan with me"),
    ("legaladvice", "keeps parking in the spot that I pay for", "parks in my paid spot"),
    ("legaladvice", "cut down the tree between our gardens", "cut down our tree"),
    ("jobs", "took the credit for my report in front of everyone", "took credit for my report"),
    ("jobs", "changes my shifts without telling me", "changes my shifts"),
)
QUESTIONS = (
    ("Should I say something or let it go?", "should I say something?"),
    ("How do I bring this up without a fight?", "how do I bring it up?"),
    ("Am I wrong to be angry?", "am I wrong to be angry?"),
    ("What would you do?", "what would you do?"),
)
FILLERS = (
    "This has been going on for a while now.",
    "I did not sleep much because of it.",
    "We have known each other for years.",
    "It sounds small, I know, but it bothers me.",
    "Sorry for the long text, I am on my phone.",
    "Nobody else seems to mind.",
)
RAMBLES = ("so this is a long story and I do not know where to begin", "sorry for the long text", "it bothers me a lot")


def post_of(random_: random.Random) -> tuple[dict[str, str], str, list[str]]:
    """A post, its good summary, and worse ones."""
    person, (subreddit, deed, short), (question, asked) = (
        random_.choice(PEOPLE),
        random_.choice(TROUBLES),
        random_.choice(QUESTIONS),
    )
    sentences = [f"My {person} {deed}.", *random_.sample(FILLERS, random_.randint(1, 3)), question]
    post = {"subreddit": subreddit, "title": f"My {person} {short}", "post": " ".join(sentences)}
    stranger = random_.choice([other for other in PEOPLE if other != person])
    worse = [
        f"My {stranger} {short}, {asked}",
        f"My {person} did something, {asked}",
        random_.choice(RAMBLES),
        f"{random_.choice(RAMBLES)}, {asked}",
    ]
    return post, f"My {person} {short}, {asked}", worse


def drawn(random_: random.Random, *, held_out: bool) -> tuple[dict[str, str], str, list[str]]:
    """A post of the split: about a tenth of the posts, by a checksum of their text, are kept for the test."""
    while True:
        row = post_of(random_)
        if (zlib.crc32(row[0]["post"].encode()) % 10 == 0) == held_out:
            return row


def write(folder: Path, *, posts: int = 1500, comparisons: int = 1500, heldout: int = 128, seed: int = 0) -> None:
    """The three files. A held-out post occurs once; the others as often as they are drawn."""
    random_ = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "posts.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(posts):
            post, good, worse = drawn(random_, held_out=False)
            summary = good if random_.random() < 0.5 else random_.choice(worse)
            file.write(json.dumps(post | {"summary": summary}) + "\n")
    with (folder / "comparisons.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(comparisons):
            post, good, worse = drawn(random_, held_out=False)
            texts = [good, random_.choice(worse)]
            choice = random_.randint(0, 1)
            summaries = [{"text": f" {text}", "policy": "grammar"} for text in (texts if choice == 0 else texts[::-1])]
            file.write(json.dumps({"info": post, "summaries": summaries, "choice": choice}) + "\n")
    kept: dict[str, dict[str, str]] = {}
    while len(kept) < heldout:
        post, good, _ = drawn(random_, held_out=True)
        kept[post["post"]] = post | {"summary": good}
    with (folder / "heldout.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in kept.values())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    write(Path(sys.argv[1]))
