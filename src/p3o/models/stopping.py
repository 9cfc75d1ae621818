"""Stop strings: a response ends when one of them appears in its text.

The tokens up to and including the one that completes the stop string belong to the response, which counts as ended; the text
of the response ends before the stop string (as vLLM does it by default). A stop string that is a special token, such as the
<|im_end|> of a base model, is never in the text, which holds none; the token itself ends the response, and only that: the same
characters written by ordinary tokens do not.
"""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from p3o.errors import P3OError


class Stops(NamedTuple):
    """What ends a response, apart from the end of sequence: these tokens, and these strings in its text."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]


def split_stops(tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> Stops:
    """Stop strings apart: the ids of those that are special tokens, and the others.

    Raises:
        P3OError: if a stop string is empty; every response would end before it began.
    """
    if not all(stop):
        raise P3OError("stop: an empty stop string would end every response immediately; remove it")
    special = special_tokens(tokenizer) if stop else {}
    ids = dict.fromkeys(special[text] for text in stop if text in special)
    return Stops(tuple(ids), tuple(text for text in stop if text not in special))


class StopStrings:
    """Looks for stop strings while tokens come in."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        """
        Raises:
            P3OError: as ``split_stops``.
        """
        self.tokenizer, self.stops = tokenizer, split_stops(tokenizer, stop)
        self.special = frozenset(special_tokens(tokenizer).values())
        # A token that is no special token stands for a byte at least. Some more, because decoders treat the first differently.
        self.window = max((len(text.encode()) for text in self.stops.texts), default=0) + 8

    def found(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """Whether the last token of each row of ids completes a stop string; to be asked after every token."""
        ids, texts = self.stops
        tails = [[token for token in row if token not in self.special][-self.window :] for row in rows] if texts else []
        decoded: list[str] = self.tokenizer.batch_decode(tails) if tails else [""] * len(rows)
        return [
            (bool(row) and row[-1] in ids) or any(text in tail for text in texts)
            for row, tail in zip(rows, decoded, strict=True)
        ]


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop string in it."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """All of them, whether listed among the special ones or only added as such, with their ids."""
    special: dict[str, int] = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return special | {
        token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
