"""The completions table of a run: what each policy said to the followed prompts, over the steps."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from p3o.errors import P3OError, did_you_mean
from p3o.files import write_jsonl, write_text
from p3o.report.numbers import number
from p3o.report.reading import read_samples
from p3o.report.rundata import Sample

COLUMNS = ("policy", "step", "prompt_index", "prompt", "response", "reward", "gold")


def completions(
    run: Path, *, policy: str | None = None, step: int | None = None, prompt: int | None = None
) -> list[Sample]:
    """The rows of samples.jsonl, by policy, prompt and step: a prompt's responses stand one below the other.

    Raises:
        P3OError: if there are none, naming what was recorded.
    """
    rows = read_samples(run)
    if not rows:
        raise P3OError(f"{run}: no samples yet; the rl stage writes them (evaluation.followed_prompts)")
    for name, wanted, known in (
        ("--policy", policy, list(dict.fromkeys(row.policy for row in rows))),
        ("--step", step, sorted({row.step for row in rows})),
        ("--prompt", prompt, sorted({row.prompt_index for row in rows})),
    ):
        if wanted is not None and wanted not in known:
            advice = did_you_mean(str(wanted), map(str, known)) or f"recorded are {', '.join(map(str, known))}"
            raise P3OError(f"{name} {wanted}: not among the samples of {run}; {advice}")
    order = {name: place for place, name in enumerate(dict.fromkeys(row.policy for row in rows))}
    chosen = [
        row
        for row in rows
        if policy in (None, row.policy) and step in (None, row.step) and prompt in (None, row.prompt_index)
    ]
    if not chosen:
        raise P3OError(f"{run}: no sample matches all of these; leave one out")
    return sorted(chosen, key=lambda row: (order[row.policy], row.prompt_index, row.step))


def terminal_table(rows: Sequence[Sample]) -> Table:
    """The rows for a terminal; a prompt is shown once above its responses."""
    has_gold = any(row.gold is not None for row in rows)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("policy", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("prompt", ratio=1, overflow="fold")
    table.add_column("response", ratio=2, overflow="fold")
    for head in ["reward", *(["gold"] if has_gold else [])]:
        table.add_column(head, justify="right", no_wrap=True)
    before: tuple[str, int] | None = None
    for row in rows:
        here = (row.policy, row.prompt_index)
        if before not in (None, here):
            table.add_section()
        prompt = "" if before == here else row.prompt.strip()
        cells = [row.policy if before != here else "", str(row.step), prompt, row.response.strip(), number(row.reward)]
        table.add_row(*map(Text, [*cells, *([number(row.gold)] if has_gold else [])]))
        before = here
    return table


def export_completions(rows: Sequence[Sample], path: Path) -> None:
    """Write the rows as CSV, JSON Lines or Markdown, by the ending of the path; whole or not at all.

    Raises:
        P3OError: for another ending, or if the system refuses.
    """
    records = [{name: getattr(row, name) for name in COLUMNS if getattr(row, name) is not None} for row in rows]
    if path.suffix == ".jsonl":
        write_jsonl(path, records)
    elif path.suffix == ".csv":
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS)
        writer.writeheader()
        writer.writerows(records)
        write_text(path, buffer.getvalue())
    elif path.suffix == ".md":
        lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
        lines += [f"| {' | '.join(_markdown(record.get(name, '')) for name in COLUMNS)} |" for record in records]
        write_text(path, "\n".join(lines) + "\n")
    else:
        raise P3OError(f"--export {path}: end its name in .csv, .jsonl or .md")


def _markdown(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")
