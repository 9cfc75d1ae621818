"""Commands that show what a run recorded."""

from pathlib import Path
from typing import Annotated

import typer

from p3o.cli.app import RUNS, Output, RunArgument, app, run_folder


@app.command()
def samples(
    run: RunArgument,
    output: Output = RUNS,
    policy: Annotated[str | None, typer.Option("--policy", metavar="NAME", help="Show only this RL run.")] = None,
    step: Annotated[int | None, typer.Option("--step", metavar="N", min=0, help="Show only this step.")] = None,
    prompt: Annotated[
        int | None, typer.Option("--prompt", metavar="N", min=0, help="Show only this prompt, counted from 0.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write the table to a .csv, .jsonl or .md file.")
    ] = None,
) -> None:
    """Show how the responses to a few fixed prompts changed over the steps."""
    from rich.console import Console

    from p3o.report.completions import completions, export_completions, terminal_table

    rows = completions(run_folder(run, output), policy=policy, step=step, prompt=prompt)
    if export is not None:
        export_completions(rows, export)
        typer.echo(f"{len(rows)} rows written to {export}")
    else:
        Console().print(terminal_table(rows))
