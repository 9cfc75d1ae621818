"""Stop strings: a response ends when one of them appears in its text.

The tokens up to and including the one that completes the stop string belong to the response, which counts as ended; the text
of the response ends before the stop string (as vLLM does it by default). A stop string that is a special token, such as the
<|im_end|> of a base model, is never in the text, which holds none; the token itself ends the response.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from p3o.errors import P3OError


class StopStrings:
    """Looks for stop strings while tokens come in."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        """
        Raises:
            P3OError: if a stop string is empty; every response would end before it began.
        """
        if not all(stop):
            raise P3OError("stop: an empty stop string would end every response at once; leave it out")
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        special |= {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special = frozenset(special.values())
        self.ends = frozenset(special[text] for text in stop if text in special)
        # A token that is no special token stands for a byte at least. Some more, because decoders treat the first differently.
        self.window = max((len(text.encode()) for text in stop), default=0) + 8

    def found(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """Whether the last token of each row of ids completes a stop string; to be asked after every token."""
        tails = [[token for token in row if token not in self.special][-self.window :] for row in rows]
        texts: list[str] = self.tokenizer.batch_decode(tails)
        return [
            (bool(row) and row[-1] in self.ends) or any(stop in text for stop in self.stop)
            for row, text in zip(rows, texts, strict=True)
        ]


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop string in it."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]
