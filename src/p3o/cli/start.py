"""Commands to begin with: `init` writes a configuration, `doctor` looks at the machine."""

from pathlib import Path
from typing import Annotated

import typer

from p3o.cli.app import JsonFile, app
from p3o.errors import P3OError


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.")] = Path("p3o.yaml"),
    task: Annotated[
        str,
        typer.Option(
            "--task", metavar="NAME", help="Task to start from: own (your model and files), tldr, hh, demo, …"
        ),
    ] = "own",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write a configuration with every key explained in a comment; fill in the marked lines."""
    if file.exists() and not overwrite:
        raise P3OError(f"{file}: already exists; choose another name or pass --overwrite")
    from p3o.cli.template import FILL_IN, configuration_text
    from p3o.files import write_text

    text = configuration_text(task)
    write_text(file, text)
    advice = f"fill in the lines marked {FILL_IN}, then try" if FILL_IN in text else "now try"
    typer.echo(f"written to {file}; {advice}: p3o run --config {file} --dry-run")


@app.command()
def doctor(json_file: JsonFile = None) -> None:
    """Check this machine: versions, devices, number format, disk, offline switches, optional packages."""
    from p3o.cli.doctor import examine
    from p3o.files import write_json

    findings = examine()
    for line in findings.lines():
        typer.echo(line)
    if json_file is not None:
        write_json(json_file, findings.figures())
    if findings.problems:
        raise typer.Exit(1)
