"""What is in a source of data: counts, lengths in tokens, one example as the model will see it, and every dropped row."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from transformers import PreTrainedTokenizerBase

from p3o.data.chat import adopt_turn_end, is_conversation
from p3o.data.formats import ANSWERS, Kind
from p3o.data.reading import Lengths, Limits, TextRow, drop_too_long, read_examples, render_rows
from p3o.data.rows import RowReport
from p3o.data.sources import SourceConfig
from p3o.inputs import token_lengths
from p3o.models.tokens import encode_prompts, encode_responses
from p3o.training.progress import Progress

QUANTILES = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        report: rows read, kept and dropped; bad rows are always skipped here.
        distinct_prompts: of the kept rows.
        tokens: quantiles of the lengths of prompt and answers, by name; None without a tokenizer.
        example: the place of a row and the texts of its parts by name; None if no row was kept.
        note: how the end of sequence was changed to the chat template's, if it was.
    """

    report: RowReport
    distinct_prompts: int
    tokens: dict[str, dict[str, int]] | None
    example: dict[str, str] | None
    note: str | None

    def record(self) -> dict[str, Any]:
        """The inspection as JSON values."""
        return {
            **self.report.record(),
            "distinct_prompts": self.distinct_prompts,
            "tokens": self.tokens,
            "example": self.example,
            "end_of_sequence": self.note,
        }


def inspect(
    source: SourceConfig,
    kind: Kind,
    tokenizer: PreTrainedTokenizerBase | None,
    limits: Limits,
    *,
    shown: int,
    progress: Progress,
) -> Inspection:
    """Read a source to its end and tell what is in it.

    Args:
        tokenizer: of the model that is to learn from it; it takes the chat template's end of turn as its end of sequence.
            None: lengths are not counted and conversations not rendered.
        limits: longer rows are counted as dropped.
        shown: how many dropped rows to keep with their place.
        progress: shows how many rows have been tokenised.

    Raises:
        P3OError: if the source cannot be read, or holds conversations and the tokenizer has no chat template.
    """
    examples, report = read_examples(source, kind, "skip", shown=shown)
    if tokenizer is None:
        prompts = {placed.example.prompt for placed in examples}
        plain = next((placed for placed in examples if not is_conversation(placed.example.prompt)), None)
        row = None if plain is None else TextRow(plain.place, str(plain.example.prompt), plain.example.answers)
        return Inspection(report, len(prompts), None, _example(row, kind, None), None)
    note = None
    if any(is_conversation(placed.example.prompt) for placed in examples):
        note = adopt_turn_end(tokenizer)
    rows = render_rows(examples, tokenizer, report)
    lengths = token_lengths(rows, tokenizer, progress, str(source))
    kept = drop_too_long(rows, lengths, limits, report)
    places = {row.place for row in kept}
    lengths = [length for row, length in zip(rows, lengths, strict=True) if row.place in places]
    example = _example(kept[0] if kept else None, kind, tokenizer)
    return Inspection(report, len({row.prompt for row in kept}), _table(lengths, kind), example, note)


def _table(lengths: Sequence[Lengths], kind: Kind) -> dict[str, dict[str, int]]:
    if not lengths:
        return {}
    table = {"prompt": _quantiles([length.prompt for length in lengths])}
    for index, name in enumerate(ANSWERS[kind]):
        table[name] = _quantiles([length.answers[index] for length in lengths])
    return table


def _quantiles(values: Sequence[int]) -> dict[str, int]:
    """The least value that at least this share of the values does not pass."""
    ordered = sorted(values)
    return {name: ordered[max(0, ceil(share * len(ordered)) - 1)] for name, share in QUANTILES.items()}


def _example(row: TextRow | None, kind: Kind, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, str] | None:
    """The parts of a row: encoded and decoded again, special tokens shown, so that it is what the model reads."""
    if row is None:
        return None
    prompt, answers = row.prompt, list(row.answers)
    if tokenizer is not None:
        prompt = str(tokenizer.decode(encode_prompts(tokenizer, [prompt])[0]))
        answers = [str(tokenizer.decode(ids)) for ids in encode_responses(tokenizer, answers)]
    return {"place": row.place, "prompt": prompt, **dict(zip(ANSWERS[kind], answers, strict=True))}
