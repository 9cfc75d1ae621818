"""Any readable source as plain JSONL files of our own columns, split into training and held-out rows by prompt.

A prompt is held out or not by a hash of its text and the seed: all rows of a prompt are on the same side, whatever else the
source holds, and two sources prepared with the same seed and share never have a prompt on both sides.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from p3o.data.formats import ANSWERS, Example, Kind, Prompt
from p3o.data.holding_out import LOTS, lot_of
from p3o.data.reading import PlacedExample, read_examples
from p3o.data.rows import Policy
from p3o.data.sources import SourceConfig
from p3o.errors import P3OError
from p3o.files import atomic_directory, write_json, write_jsonl

REPORT_FILE = "data.json"


def prepare(
    source: SourceConfig, kind: Kind, output: Path, *, heldout: float, seed: int, policy: Policy
) -> dict[str, Any]:
    """Write KIND.jsonl, prompts.jsonl (each prompt once) and the same of the held-out prompts, heldout_*.jsonl, as one folder.

    Args:
        output: the folder to make; it must not exist.
        heldout: share of the prompts to hold out; 0: none, and no such files.

    Returns:
        What data.json in the folder holds: the source, the settings, rows and distinct prompts of every file, dropped rows.

    Raises:
        P3OError: if the source cannot be read, has a bad row that stops, or is too small to split; if ``output`` exists.
    """
    if output.exists():  # told before minutes of reading
        raise P3OError(f"{output}: already exists; choose another name or remove it")
    examples, report = read_examples(source, kind, policy)
    report.refuse_if_empty()
    sides: dict[str, list[PlacedExample]] = {"": [], "heldout_": []}
    for placed in examples:
        sides["heldout_" if is_held_out(placed.example.prompt, share=heldout, seed=seed) else ""].append(placed)
    if not heldout:
        del sides["heldout_"]
    empty = [side for side, rows in sides.items() if not rows]
    if empty:
        side = "held-out" if empty[0] else "training"
        raise P3OError(
            f"{source}: {len(examples)} rows leave no {side} rows at a held-out share of {heldout}; change it"
        )
    files: dict[str, list[dict[str, Any]]] = {}
    for side, rows in sides.items():
        files[f"{side}{kind}.jsonl"] = [_row(placed.example, kind) for placed in rows]
        files[f"{side}prompts.jsonl"] = _distinct_prompts(rows)
    summary = {
        **report.record(),
        "seed": seed,
        "heldout": heldout,
        "files": {name: {"rows": len(rows), "prompts": _count(rows)} for name, rows in files.items()},
    }
    with atomic_directory(output) as folder:
        for name, plain in files.items():
            write_jsonl(folder / name, plain)
        write_json(folder / REPORT_FILE, summary)
    return summary


def is_held_out(prompt: Prompt, *, share: float, seed: int) -> bool:
    """Whether a prompt is among the held-out ones; each is with a chance of ``share``, by a hash."""
    return lot_of(_plain(prompt), seed=seed) < share * LOTS


def _row(example: Example, kind: Kind) -> dict[str, Any]:
    return {"prompt": _plain(example.prompt), **dict(zip(ANSWERS[kind], example.answers, strict=True))}


def _distinct_prompts(rows: Sequence[PlacedExample]) -> list[dict[str, Any]]:
    return [{"prompt": _plain(prompt)} for prompt in dict.fromkeys(placed.example.prompt for placed in rows)]


def _count(rows: Sequence[Mapping[str, Any]]) -> int:
    return len({json.dumps(row["prompt"]) for row in rows})


def _plain(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt as a JSON value."""
    if isinstance(prompt, str):
        return prompt
    return [{"role": message.role, "content": message.content} for message in prompt]
