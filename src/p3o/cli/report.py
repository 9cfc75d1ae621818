"""The command that draws the report: of a run as its last stage, of any run folder, or of several held against each other."""

from pathlib import Path
from typing import Annotated

import typer

from p3o.cli.app import RUNS, ConfigFile, JsonFile, Name, Output, Overrides, Overwrite, Resume, app, run_folder
from p3o.cli.settings import Asked
from p3o.cli.stages import STAGES, DryRun, HelpAll, do
from p3o.errors import P3OError

_Runs = Annotated[list[Path] | None, typer.Argument(metavar="RUN", help="Run folders, or their names.")]


@app.command(short_help=STAGES["report"])
def report(
    runs: _Runs = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", metavar="FILE", help="Page to write; default: RUN/report.html, or comparison.html for several runs."
        ),
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="DIR", help="Also write every chart as SVG, PNG, PDF and CSV.")
    ] = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    name: Name = None,
    output: Output = RUNS,
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    json_file: JsonFile = None,
    help_all: HelpAll = False,  # noqa: ARG001 (its callback has done it)
) -> None:
    """Write report.html from the contents of a run folder, or one page that compares several runs over β and seeds.

    Without RUN, it works as a stage of `run`, on the run that --name or --config names.
    """
    if not runs:
        if to is not None or export is not None:
            raise P3OError("--to and --export need a run folder: p3o report runs/NAME --export charts")
        asked = Asked("report", config, set_ or (), {}, name, output, overwrite, resume)
        do(asked, dry=dry_run, json_file=json_file, repository=None, private=False)
        return
    if config is not None or set_ or name is not None or overwrite or resume or dry_run or json_file is not None:
        raise P3OError("with run folders, report takes only --to and --export; leave the other options out")
    from p3o.report import build_comparison, build_report, export_charts

    runs = [run_folder(run) for run in runs]
    page = build_report(runs[0], to) if len(runs) == 1 else build_comparison(runs, to or Path("comparison.html"))
    typer.echo(f"written to {page}")
    if export is not None:
        written = export_charts(runs, export)
        typer.echo(f"{len(written)} files written to {export}")
