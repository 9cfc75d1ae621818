"""Which prompts are held out. All rows of a prompt are on the same side: a model that has learned from one answer to a prompt,
or from a label of a pair, is not tested by another.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence

LOTS = 2**64
"""How many different lots there are."""


def lot_of(prompt: object, *, seed: int) -> int:
    """A number in 0 … LOTS − 1 that the prompt draws, by a hash: always the same, whatever other prompts there are.

    Args:
        prompt: text or messages, as a JSON value.
        seed: prompts draw anew for another one.
    """
    digest = hashlib.sha256(f"{seed} {json.dumps(prompt)}".encode()).digest()
    return int.from_bytes(digest[:8])


def held_out_prompts(rows: Sequence[str], wanted: int, *, order: Iterable[str] | None = None) -> set[str]:
    """Prompts that together have as near to the wanted number of rows as taking them one by one gets.

    Args:
        rows: the prompt of every row.
        wanted: number of rows to hold out.
        order: in which the prompts are looked at, all of them; None: as they first appear. One is taken if that brings the
            number nearer to the wanted one, or as near from above.
    """
    counts, held, found = Counter(rows), set[str](), 0
    for prompt in counts if order is None else order:
        if counts[prompt] <= 2 * (wanted - found):
            held.add(prompt)
            found += counts[prompt]
    return held
