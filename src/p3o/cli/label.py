"""p3o label: have pairs of responses compared, by people in a browser or by a judge, and move labels in and out."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from p3o.cli.app import Commands, Group, app
from p3o.errors import P3OError

if TYPE_CHECKING:
    from p3o.labeling.judging import Judge
    from p3o.labeling.server import Link
    from p3o.labeling.store import Store
    from p3o.labeling.tables import Choice


class _ServeByDefault(Group):
    """``p3o label --pairs FILE`` is ``p3o label serve --pairs FILE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As of the base class, after putting in the command that was left out."""
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = ["serve", *args]
        return super().parse_args(ctx, args)


label = Commands(help="Have pairs of responses compared by people in a browser, or by a judge.", cls=_ServeByDefault)
app.add_typer(label, name="label")

StoreFile = Annotated[Path, typer.Option("--store", metavar="FILE", help="SQLite file for the pairs and labels.")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database-url", metavar="URL", help="PostgreSQL database to use instead: postgresql://user@host/database."
    ),
]
STORE = Path("labels.db")


@label.command()
def serve(
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", metavar="FILE", help="Pairs to add: JSONL with prompt, response_a and response_b."),
    ] = None,
    store: StoreFile = STORE,
    database_url: DatabaseUrl = None,
    instructions: Annotated[
        Path | None,
        typer.Option(
            "--instructions", metavar="FILE", help="Text that tells annotators what to prefer; saved in the store."
        ),
    ] = None,
    annotators: Annotated[
        str, typer.Option("--annotators", metavar="A,B", help="Names of the annotators, separated by commas.")
    ] = "me",
    overlap: Annotated[
        int | None,
        typer.Option(
            "--overlap", min=1, metavar="K", help="Labels wanted for each pair; default 1. Saved in the store."
        ),
    ] = None,
    lease_minutes: Annotated[
        int | None,
        typer.Option(
            "--lease-minutes",
            min=1,
            metavar="N",
            help="Minutes that an open pair stays reserved for its annotator; default 30. Saved in the store.",
        ),
    ] = None,
    gold_every: Annotated[
        int | None,
        typer.Option(
            "--gold-every", min=1, metavar="N", help="Show a gold pair every N pairs; default 10. Saved in the store."
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option("--host", metavar="HOST", help="Address to listen on; by default only this machine can connect."),
    ] = ("127.0.0.1"),
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="Port to listen on; 0: any free port.")
    ] = 8765,
    new_links: Annotated[bool, typer.Option("--new-links", help="Print new links; the old ones stop working.")] = False,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="CONFIG",
            help="Have a judge (YAML file or MODULE:FUNCTION) compare the pairs instead of serving the page.",
        ),
    ] = None,
    judge_name: Annotated[
        str | None,
        typer.Option(
            "--judge-name",
            metavar="NAME",
            help="Name of the judge in the store; default: the name of its file or function.",
        ),
    ] = None,
    tie_margin: Annotated[
        float,
        typer.Option(
            "--tie-margin", metavar="X", min=0, max=1, help="Preferences of the judge up to this size count as ties."
        ),
    ] = 0.0,
) -> None:
    """Serve the labelling page, or have a judge label the pairs. `p3o label` without a command does this."""
    if instructions is not None and judge is not None:
        raise P3OError(
            "--instructions: they are for people on the labelling page, and a judge's are in its own "
            "settings; leave out --instructions or --judge"
        )
    _need_packages()
    from p3o.labeling.instructions import change_instructions, read_instructions
    from p3o.labeling.pairs import read_pairs

    # Before a store is made for them.
    read = None if pairs is None else read_pairs(pairs)
    told = None if instructions is None else read_instructions(instructions)
    opened = _open(store, database_url, create=pairs is not None)
    if read is not None:
        typer.echo(f"{pairs}: {_count(len(read), 'pair')}, {opened.add_items(read)} of them new")
    if told is not None:
        new = change_instructions(opened, told)
        typer.echo(
            f"{instructions}: {'annotators will see these from now on' if new else 'annotators see these already'}"
        )
    wanted = {
        "overlap": overlap,
        "lease_seconds": None if lease_minutes is None else 60 * lease_minutes,
        "gold_every": gold_every,
    }
    opened.change_settings(**{name: value for name, value in wanted.items() if value is not None})
    if judge is not None:
        _judge(opened, judge, judge_name or _name_of(judge), tie_margin, store.parent)
        return
    _serve_page(opened, annotators.split(","), host=host, port=port, new_links=new_links)


@label.command()
def export(
    output: Annotated[Path, typer.Argument(metavar="FILE", help="File to write, .jsonl or .parquet.")],
    store: StoreFile = STORE,
    database_url: DatabaseUrl = None,
) -> None:
    """Export the labels: prompt/chosen/rejected to FILE, ties and instructions to files next to it."""
    opened = _open(store, database_url)
    from p3o.labeling.exchange import export_labels, instructions_path, ties_path, write_rows

    exported = export_labels(opened)
    write_rows(output, exported.preferences)
    write_rows(ties_path(output), exported.ties)
    typer.echo(f"{output}: {_count(len(exported.preferences), 'preference')}")
    typer.echo(f"{ties_path(output)}: {_count(len(exported.ties), 'tie')} (pairs with two bad responses included)")
    if exported.instructions:
        write_rows(instructions_path(output), exported.instructions)
        typer.echo(
            f"{instructions_path(output)}: {_count(len(exported.instructions), 'version')} of the instructions to annotators"
        )
    typer.echo(f"left out: {_count(exported.skipped, 'skip')}, {_count(exported.gold, 'label')} of gold pairs")


@label.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of labels, .jsonl, .json or .parquet.")],
    store: StoreFile = STORE,
    database_url: DatabaseUrl = None,
    format: Annotated[
        Literal["p3o", "argilla", "label-studio"] | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="Format of the file: p3o, argilla or label-studio. If not given, it is detected.",
        ),
    ] = None,
    prompt_field: Annotated[
        str | None,
        typer.Option("--prompt-field", metavar="NAME", help="Field with the prompt. If not given, it is guessed."),
    ] = None,
    response_a_field: Annotated[
        str | None, typer.Option("--response-a-field", metavar="NAME", help="Field with response a.")
    ] = None,
    response_b_field: Annotated[
        str | None, typer.Option("--response-b-field", metavar="NAME", help="Field with response b.")
    ] = None,
    question: Annotated[
        str | None, typer.Option("--question", metavar="NAME", help="Question whose answers are the labels.")
    ] = None,
    meaning: Annotated[
        list[str] | None,
        typer.Option(
            "--meaning", metavar="LABEL=a|b|tie|bad|skip", help="What a label in the file means; can be repeated."
        ),
    ] = None,
) -> None:
    """Add labels from a file: an export of p3o, Argilla or Label Studio, or prompt/chosen/rejected rows."""
    from p3o.labeling.exchange import import_labels
    from p3o.labeling.foreign import Naming, read_labels

    naming = Naming(prompt_field, response_a_field, response_b_field, question, _meanings(meaning or ()))
    labels, without = read_labels(file, format, naming)
    imported = import_labels(_open(store, database_url, create=True), labels)
    typer.echo(
        f"{_count(imported.labels, 'label')} added, {imported.known} already in the store, "
        f"{_count(imported.items, 'new pair')}; {_count(without, 'answer')} in the file without a label"
    )


@label.command()
def status(store: StoreFile = STORE, database_url: DatabaseUrl = None) -> None:
    """Show the progress of a store, and check its history."""
    opened = _open(store, database_url)
    from p3o.labeling.records import status_of
    from p3o.labeling.statistics import krippendorff_alpha, raw_agreement, summarise, units_of

    found = status_of(opened, datetime.now(UTC))
    overlap = opened.settings().overlap
    units = units_of([one for one in found.labels if one.gold is None])
    typer.echo(f"pairs: {found.finished} of {found.items} with {_count(overlap, 'label')}, plus {found.gold} gold")
    for annotator in found.annotators:
        line = summarise(annotator.name, [one for one in found.labels if one.annotator == annotator.name])
        typer.echo(f"{annotator.name} ({annotator.role}): {_count(line.labels, 'label')}")
    alpha, raw = krippendorff_alpha(units), raw_agreement(units)
    if raw is not None:
        typer.echo(f"agreement: {raw:.1%} raw" + ("" if alpha is None else f", Krippendorff's alpha {alpha:.3f}"))
    checked = opened.verify()
    typer.echo(f"history: intact, {_count(checked['labels'], 'valid label')}, {checked['undone']} withdrawn")


def _open(store: Path, database_url: str | None, *, create: bool = False) -> "Store":
    _need_packages()
    from p3o.labeling.store import Store

    return Store.open(database_url if database_url is not None else store, create=create)


def _need_packages() -> None:
    try:
        import p3o.labeling.store  # noqa: F401
    except ModuleNotFoundError as error:
        raise P3OError(f"p3o label needs the package {error.name!r}; run: pip install 'p3o[label]'") from error


def _judge(store: "Store", spec: str, name: str, tie_margin: float, folder: Path) -> None:
    from p3o.labeling.judging import count_waiting, label_with_judge
    from p3o.training.progress import Progress

    judge = load_judge(spec, folder)
    waiting = count_waiting(store, name)
    with Progress().stage("judge", total=waiting) as advance:
        labelled = label_with_judge(store, judge, name=name, tie_margin=tie_margin, advance=advance)
    typer.echo(f"{name}: {_count(labelled, 'pair')} labelled, {waiting - labelled} without a valid answer")


def _is_file(spec: str) -> bool:
    return Path(spec).suffix in (".yaml", ".yml")


def _name_of(spec: str) -> str:
    """What the store calls a judge: its file without folder and ending, or the whole name of its function."""
    return Path(spec).stem if _is_file(spec) else spec


def load_judge(spec: str, folder: Path) -> "Judge":
    """The judge that --judge names: a comparison function, asked in both orders, or a YAML file of a judge's settings.

    Args:
        folder: of the store; a judge that is asked in words keeps its answers there.
    """
    if _is_file(spec):
        from p3o.config_loading import load_config
        from p3o.feedback.judge import ANSWERS_FILE, JudgeConfig, open_judge

        return open_judge(load_config(Path(spec), [], JudgeConfig), cache=folder / ANSWERS_FILE)
    from p3o.feedback.comparison import load_comparison_function
    from p3o.feedback.judge.scores import FunctionJudge

    return FunctionJudge(load_comparison_function(spec), name=spec, contradictions="average")


def _serve_page(store: "Store", names: Sequence[str], *, host: str, port: int, new_links: bool) -> None:
    from p3o.labeling import server

    listening = server.listen(host, port)
    address = server.address_of(listening)
    links = server.links_for(store, names, renew=new_links)
    if not server.is_loopback(listening):
        typer.echo(
            "warning: other machines can reach this page, and its links are sent unencrypted; put it behind a proxy with TLS",
            err=True,
        )
    server.serve(store, listening, ready=_announce(address, links))


def _announce(address: str, links: Sequence["Link"]) -> Callable[[], None]:
    def announce() -> None:
        for link in links:
            again = "use the link printed before (--new-links makes a new one)"
            typer.echo(f"{link.name}: {again if link.token is None else f'{address}/enter/{link.token}'}")
        typer.echo(f"serving {address}; stop with Ctrl-C")

    return announce


def _meanings(texts: Sequence[str]) -> "dict[str, Choice]":
    from p3o.labeling.tables import CHOICES

    meanings: dict[str, Choice] = {}
    for text in texts:
        name, equals, choice = text.rpartition("=")
        if not equals or choice not in CHOICES:
            raise P3OError(f"--meaning {text!r}: must be LABEL=a, LABEL=b, LABEL=tie, LABEL=bad or LABEL=skip")
        meanings[name] = cast("Choice", choice)
    return meanings


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
