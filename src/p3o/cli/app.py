"""The application that commands register with, and the options that several of them share."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from p3o import __version__
from p3o.errors import P3OError

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML file of settings, or the name of one that comes with p3o."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. --set sft.steps=300; may be repeated."),
]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name of the run's folder.")]
Output = Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder that holds the runs' folders.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left under this name.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on where an earlier attempt under this name stopped, from its last checkpoint."),
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to this file.")]
RUNS = Path("runs")
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or its name.")]

_ORDER = (
    "init",
    "doctor",
    "data",
    "run",
    "demo",
    "sft",
    "sample",
    "label",
    "reward",
    "rl",
    "evaluate",
    "judge",
    "report",
    "samples",
    "serve-reward",
    "gate",
    "bench",
)


def run_folder(given: Path, runs: Path = RUNS) -> Path:
    """The folder that RUN on the command line means: that folder, or the run of that name; of both the one that is a run's.

    Args:
        given: as it was typed.
        runs: the folder that holds the runs' folders.

    Raises:
        P3OError: if neither is there.
    """
    folders = [folder for folder in (given, runs / given) if folder.is_dir()]
    if not folders:
        raise P3OError(f"{given}: no such run folder, and no run of this name in {runs}; check the name, or the path")
    return next((folder for folder in folders if (folder / "run.json").is_file()), folders[0])


class _InOrder(TyperGroup):
    """Lists the commands in the order of the method, whatever the order in which their files register them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names as --help shows them."""
        names = list(super().list_commands(ctx))
        return [name for name in _ORDER if name in names] + [name for name in names if name not in _ORDER]


app = typer.Typer(
    name="p3o",
    cls=_InOrder,
    help="Align language models from relative feedback with Pairwise Proximal Policy Optimization (arXiv:2310.00212).",
    add_completion=True,
)
bench = typer.Typer(
    help="Benchmarks: algorithms against known optima, stale samples, speed beside TRL, the scaling plan.",
    no_args_is_help=True,
)
app.add_typer(bench, name="bench")


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"p3o {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass
