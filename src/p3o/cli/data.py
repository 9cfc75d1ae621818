"""Commands about data: what is in a source, and any source as plain JSONL files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p3o.cli.app import Commands, ConfigFile, Group, JsonFile, Overrides, app
from p3o.errors import P3OError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from p3o.data.formats import Kind
    from p3o.data.reading import Limits
    from p3o.data.sources import SourceConfig
    from p3o.inspection import Inspection

data = Commands(cls=Group, help="Inspect and prepare data: files, folders and hub data sets.")
app.add_typer(data, name="data")

_SOURCE_HELP = "A .jsonl, .csv, .tsv or .parquet file, a folder of such files, or hub:OWNER/NAME."
Adapter = Annotated[
    str | None,
    typer.Option("--adapter", metavar="NAME", help="Adapter for a known data set: tldr, summarize_feedback or hh."),
]
As = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="KIND",
        help="What the rows are: prompts, demonstrations or preferences. If not given, the columns decide.",
    ),
]
Configuration = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Configuration of the data set.")]
DataDir = Annotated[str | None, typer.Option("--data-dir", metavar="DIR", help="Folder inside the data set.")]
Split = Annotated[str | None, typer.Option("--split", metavar="SPLIT", help="Split or slice, such as train[:1000].")]
Revision = Annotated[str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit on the hub.")]
_FEW = 5
"""So many dropped rows are shown where all were: they are mostly wrong in one way."""
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="OURS=THEIRS",
        help="Read column OURS from the column THEIRS of the source; OURS= leaves it out.",
    ),
]


@data.command()
def inspect(
    source: Annotated[str | None, typer.Argument(metavar="SOURCE", help=_SOURCE_HELP)] = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    kind: As = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Model whose tokenizer counts the tokens.")
    ] = None,
    adapter: Adapter = None,
    name: Configuration = None,
    data_dir: DataDir = None,
    split: Split = None,
    revision: Revision = None,
    column: Columns = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rows with a longer prompt are treated as bad rows.")
    ] = None,
    max_completion_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rows with a longer answer are treated as bad rows.")
    ] = None,
    dropped: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", show_default="20, or 5 if no row is left", help="Number of dropped rows to show."
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Show what a source contains, or all sources of a configuration: counts, lengths, an example, every dropped row.

    If no row of a source can be used, this is reported as an error at the end.
    """
    from p3o.data.reading import Limits, richest_kind
    from p3o.data.rows import SHOWN
    from p3o.files import write_json
    from p3o.inputs import context_length
    from p3o.inspection import inspect as look
    from p3o.training.progress import Progress

    if (source is None) == (config is None):
        raise P3OError("give either a SOURCE or --config FILE")
    tokenizer = None
    wanted: list[tuple[SourceConfig, Kind, Limits]] = []
    if config is not None:
        wanted, tokenizer = _of_configuration(config, set_ or ())
    elif source is not None:
        one = _source(source, adapter, name, data_dir, split, revision, column or ())
        context = None
        if model is not None:
            tokenizer = _tokenizer(model)
            context = context_length(model, tokenizer)
        limits = Limits(max_prompt_tokens, max_completion_tokens, context)
        wanted = [(one, _kind(kind) or richest_kind(one), limits)]
    progress = Progress()
    inspections = []
    for number, (one, of_kind, limits) in enumerate(wanted):
        found = look(one, of_kind, tokenizer, limits, shown=SHOWN if dropped is None else dropped, progress=progress)
        inspections.append(found)
        few = _FEW if dropped is None and not found.report.kept else None
        typer.echo(("\n" if number else "") + "\n".join(_lines(found, few)))
    if json_file is not None:
        write_json(json_file, [found.record() for found in inspections])
    for found in inspections:
        found.report.refuse_if_empty()


@data.command()
def prepare(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=_SOURCE_HELP)],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder to create.")],
    kind: As = None,
    adapter: Adapter = None,
    name: Configuration = None,
    data_dir: DataDir = None,
    split: Split = None,
    revision: Revision = None,
    column: Columns = None,
    heldout: Annotated[
        float, typer.Option(min=0.0, max=0.9, metavar="SHARE", help="Share of the prompts to hold out.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Random seed of the split.")] = 0,
    bad_rows: Annotated[
        str,
        typer.Option("--bad-rows", metavar="stop|skip", help="Stop at the first bad row, or skip and count bad rows."),
    ] = "stop",
) -> None:
    """Convert any source to plain JSONL files, split by prompt into training and held-out rows."""
    from p3o.data.preparing import REPORT_FILE
    from p3o.data.preparing import prepare as write
    from p3o.data.reading import richest_kind

    if bad_rows not in ("stop", "skip"):
        raise P3OError(f"--bad-rows {bad_rows}: must be stop or skip")
    one = _source(source, adapter, name, data_dir, split, revision, column or ())
    policy: Any = bad_rows
    summary = write(one, _kind(kind) or richest_kind(one), output, heldout=heldout, seed=seed, policy=policy)
    typer.echo(f"{summary['source']} as {summary['kind']}: {summary['kept']} of {summary['read']} rows")
    for line in _dropped(summary):
        typer.echo(line)
    for file, counts in summary["files"].items():
        typer.echo(f"{output / file}: {counts['rows']} rows, {counts['prompts']} distinct prompts")
    typer.echo(f"{output / REPORT_FILE}: these counts")


def _source(
    path: str,
    adapter: str | None,
    name: str | None,
    data_dir: str | None,
    split: str | None,
    revision: str | None,
    columns: Sequence[str],
) -> "SourceConfig":
    from pydantic import ValidationError

    from p3o.data.sources import SourceConfig

    renamed: dict[str, str | None] = {}
    for text in columns:
        ours, equals, theirs = text.partition("=")
        if not ours or not equals:
            raise P3OError(f"--column {text}: must have the form OURS=THEIRS, for example --column completion=chosen")
        renamed[ours] = theirs or None
    try:
        return SourceConfig(
            path=path, adapter=adapter, name=name, data_dir=data_dir, split=split, revision=revision, columns=renamed
        )
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise P3OError(f"{path}: {problem}") from error


def _kind(text: str | None) -> "Kind | None":
    from p3o.data.formats import KINDS

    for kind in KINDS:
        if text == kind:
            return kind
    if text is None:
        return None
    raise P3OError(f"--as {text}: {did_you_mean(text, KINDS) or 'known are ' + ', '.join(KINDS)}")


def _of_configuration(
    path: Path, overrides: Sequence[str]
) -> "tuple[list[tuple[SourceConfig, Kind, Limits]], PreTrainedTokenizerBase]":
    """The sources of a configuration with the limits of its run, and the tokenizer of its model."""
    from p3o.config import RunConfig
    from p3o.config_loading import load_config
    from p3o.inputs import KINDS, limits_of

    config = load_config(path, overrides, RunConfig)
    if config.model is None:
        raise P3OError(f"{path}: uses the embedded task, which reads no data files; there is nothing to inspect")
    tokenizer = _tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    limits = limits_of(config, tokenizer)
    return [(source, KINDS[name], limits) for name, source in config.data.sources().items()], tokenizer


def _tokenizer(model: str, *, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    from p3o.models.language import load_tokenizer

    return load_tokenizer(model, trust_remote_code=trust_remote_code)


def _lines(found: "Inspection", few: int | None) -> list[str]:
    """The inspection for a reader, with so few of the dropped rows; None: all that are kept."""
    report = found.report
    lines = [
        f"{report.source} as {report.kind}: {report.kept} of {report.read} rows, {found.distinct_prompts} distinct prompts",
        *_dropped(report.record(), few),
    ]
    if found.note is not None:
        lines.append(found.note)
    if found.tokens is None:
        lines.append("tokens: not counted; name the model with --model")
    elif found.tokens:
        names = list(next(iter(found.tokens.values())))
        lines.append(f"{'tokens':<12}" + "".join(f"{name:>8}" for name in names))
        for part, values in found.tokens.items():
            lines.append(f"{part:<12}" + "".join(f"{values[name]:>8}" for name in names))
    if found.example is not None:
        lines.append(f"example: {found.example['place']}")
        for part, text in found.example.items():
            if part != "place":
                lines += [f"----- {part}", _printable(text)]
        lines.append("-----")
    return lines


def _dropped(record: Mapping[str, Any], few: int | None = None) -> list[str]:
    """The counts by reason, then the first dropped rows."""
    counts, first = record["dropped"], record["first_dropped"][:few]
    if not counts:
        return []
    more = sum(counts.values()) - len(first)
    lines = ["dropped: " + ", ".join(f"{count} {reason}" for reason, count in counts.items())]
    lines += [f"  {row}" for row in first]
    return [*lines, f"  and {more} more"] if more else lines


def _printable(text: str) -> str:
    """Text of a data set may hold codes that a terminal would obey; they are shown instead."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)
