"""The command that has responses compared by a judge: a served model, a local one, a reward, a function."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p3o.cli.app import ConfigFile, Overrides, app, run_folder
from p3o.errors import P3OError

if TYPE_CHECKING:
    from rich.table import Table

    from p3o.evaluation.contest import Contest
    from p3o.evaluation.judging import Judged
    from p3o.evaluation.ranking import Ranked
    from p3o.feedback.judge.sidebyside import CostEstimate

_FileA = Annotated[
    Path | None, typer.Option("--a", metavar="FILE", help='Responses of A, one {"prompt", "response"} per line.')
]
_FileB = Annotated[Path | None, typer.Option("--b", metavar="FILE", help="Responses of B to the same prompts.")]
_Run = Annotated[Path | None, typer.Argument(metavar="RUN", help="A run's folder, or its name.")]


@app.command()
def judge(
    run: _Run = None,
    a: _FileA = None,
    b: _FileB = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="DIR", help="Folder for the verdicts on --a and --b; default: the current one."
        ),
    ] = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="KIND",
            help="Kind of judge: openai, transformers, reward_model, reward_function or function.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model name at the endpoint, or a model folder.")
    ] = None,
    function: Annotated[
        str | None,
        typer.Option(metavar="MODULE:NAME", help="Function to call, for the kinds reward_function and function."),
    ] = None,
    base_url: Annotated[str | None, typer.Option(metavar="URL", help="Address of an OpenAI-compatible server.")] = None,
    template: Annotated[
        str | None, typer.Option(metavar="NAME", help="Prompt template: tldr, helpfulness, or a jinja file.")
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(metavar="X", help="Do not start if the cost, earlier runs included, may exceed this."),
    ] = None,
    pair: Annotated[
        list[str] | None, typer.Option(metavar="A:B", help="Compare only this pair; can be repeated.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="NAME", help="Compare every policy with this one only.")
    ] = None,
    prompts: Annotated[int | None, typer.Option(min=1, metavar="N", help="Use only the first N prompts.")] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Print what it would cost, and exit.")] = False,
) -> None:
    """Have a judge compare the responses of a run's policies, or of two files. API keys are read only from the environment.

    The judge sees every pair in both orders. Answers are saved, so after a failure the same command continues.
    """
    from datetime import date

    from rich.console import Console

    from p3o.evaluation.contest import BASELINE, choose_pairs
    from p3o.evaluation.judging import judge_contest, rank, texts_of, write_judgements
    from p3o.feedback.judge.sidebyside import SideBySideJudge
    from p3o.training.progress import Progress

    contest, folder = _contest(run, a, b, output)
    contest = contest.first(prompts)
    pairs = choose_pairs(contest, pair or (), against)
    options: dict[str, Any] = {"kind": kind, "model": model, "function": function, "base_url": base_url}
    options |= {"template": template, "max_cost": max_cost}
    chosen = _open(config, set_ or (), options, folder)
    texts = texts_of(contest, pairs)
    if isinstance(chosen, SideBySideJudge):
        typer.echo(_cost(chosen.estimate(*texts)))
    if estimate:
        return
    with Progress().stage("judge", total=2 * len(texts[0])) as advance:
        judged = judge_contest(contest, pairs, chosen, advance=advance)
    write_judgements(folder, judged, judge=chosen.name, date=date.today().isoformat())
    console = Console()
    console.print(_table(judged, chosen.name))
    if ranked := rank(contest, judged, baseline=BASELINE):
        console.print(_ranking(ranked))
    for line in _remarks(judged):
        typer.echo(line)
    typer.echo(f"written to {folder / 'judgements.jsonl'} and {folder / 'head_to_head.json'}")


def _contest(run: Path | None, a: Path | None, b: Path | None, output: Path | None) -> "tuple[Contest, Path]":
    """What is to be judged, and the folder for the verdicts."""
    from p3o.evaluation.contest import read_file_contest, read_run_contest
    from p3o.files import make_folder

    if (run is None) == (a is None and b is None) or (a is None) != (b is None):
        raise P3OError("give either a run's folder, or --a FILE and --b FILE")
    if run is not None:
        if output is not None:
            raise P3OError("--output: the verdicts on a run are written to its own folder; leave --output out")
        folder = run_folder(run)
        if not (folder / "responses.jsonl").is_file():
            raise P3OError(f"{folder}: there are no responses to judge yet; run `p3o evaluate` on this run first")
        return read_run_contest(folder / "responses.jsonl"), folder
    assert a is not None
    assert b is not None
    folder = output or Path()
    contest = read_file_contest(a, b)
    make_folder(folder)
    return contest, folder


def _open(config: Path | None, overrides: Sequence[str], options: dict[str, Any], folder: Path) -> Any:
    """The judge; options of the command line win over --set, and that over the file."""
    from p3o.config_loading import Override, load_config
    from p3o.feedback.judge import ANSWERS_FILE, JudgeConfig, open_judge

    given = [
        Override((key,), value, f"--{'judge' if key == 'kind' else key.replace('_', '-')} {value}")
        for key, value in options.items()
        if value is not None
    ]
    if config is None and options["kind"] is None and not any(text.startswith("kind=") for text in overrides):
        raise P3OError("name a judge: --judge openai --model NAME, or --config FILE with its settings")
    settings = load_config(config, [*overrides, *given], JudgeConfig)
    return open_judge(settings, cache=folder / ANSWERS_FILE)


def _cost(estimate: "CostEstimate") -> str:
    known = f", {estimate.known} answers already saved" if estimate.known else ""
    tokens = f"at most about {estimate.input_tokens} tokens to read and {estimate.output_tokens} to write"
    cost = f", cost at most about {estimate.cost:.4g}" if estimate.cost is not None else ""
    spent = f"; {estimate.spent:.4g} already spent" if estimate.spent else ""
    return f"{estimate.questions} questions to ask{known}: {tokens}{cost}{spent}"


def _table(judged: "Sequence[Judged]", name: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"judged by {name}", title_justify="left")
    for head in ("A", "against B"):
        table.add_column(head, overflow="fold")
    for head in ("A wins", "same length", "won/tied/lost", "flips", "unjudged"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in judged:
        rates, controlled = row.rates, row.length_controlled
        table.add_row(
            row.a,
            row.b,
            _rate(row.result.win_rate, row.result.low, row.result.high) if row.result else "–",
            _rate(controlled.win_rate, controlled.low, controlled.high) if controlled else "–",
            f"{rates.wins}/{rates.ties}/{rates.losses}",
            f"{rates.flip_rate:.0%}" if rates.flip_rate is not None else "–",
            str(rates.unjudged),
        )
    return table


def _ranking(ranked: "Sequence[Ranked]") -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="Bradley–Terry ranking", title_justify="left")
    for head, justify in (("rank", "right"), ("policy", "left"), ("log-odds (95 %)", "right"), ("ranks", "right")):
        table.add_column(head, justify="right" if justify == "right" else "left")
    for row in ranked:
        interval = f"{row.low:+.2f} to {row.high:+.2f}" if row.low < row.high else "by definition"
        strength = f"{row.strength:+.2f} ({interval})"
        ranks = str(row.rank_low) if row.rank_low == row.rank_high else f"{row.rank_low}–{row.rank_high}"
        table.add_row(str(row.rank), row.name, strength, ranks)
    return table


def _remarks(judged: "Sequence[Judged]") -> list[str]:
    """What a reader must know before believing the table."""
    from p3o.feedback.judge import verdict_rates

    rates = verdict_rates(verdict for row in judged for verdict in row.verdicts)
    lines = []
    if rates.first_position_rate is not None:
        lines.append(f"the response shown first was chosen in {rates.first_position_rate:.1%} of valid answers")
    if rates.invalid:
        lines.append(f"{rates.invalid} pairs without a verdict: the answer chose neither response")
    if rates.failed:
        lines.append(
            f"{rates.failed} pairs without a verdict: no answer arrived; run the same command again to ask once more"
        )
    if any(row.unit == "words" for row in judged):
        lines.append(
            "lengths are counted in words, because some responses do not have their number of tokens as 'length'"
        )
    if alone := sum(row.alone for row in judged):
        lines.append(f"{alone} prompts were left out because only one of the two policies answered them")
    return lines


def _rate(rate: float, low: float, high: float) -> str:
    return f"{100 * rate:.0f} % ({100 * low:.0f}–{100 * high:.0f})"
