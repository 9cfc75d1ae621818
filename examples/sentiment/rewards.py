"""A reward as a Python function: favourable words less unfavourable ones, for each response."""

import re
from collections.abc import Sequence

FAVOURABLE = frozenset(["wonderful", "funny", "moving", "brilliant", "joy", "loved", "again", "great", "good", "best"])
UNFAVOURABLE = frozenset(["boring", "terrible", "mess", "dull", "awful", "hated", "bad", "worst", "waste"])


def sentiment(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Between −1 and 1: the balance of the words that have an opinion; 0 where none has."""
    del prompts  # the opinion is in the response
    scores = []
    for response in responses:
        words = re.findall(r"[a-z]+", response.lower())
        for_, against = (sum(word in lexicon for word in words) for lexicon in (FAVOURABLE, UNFAVOURABLE))
        scores.append((for_ - against) / max(for_ + against, 1))
    return scores
