"""The application that commands register with, and the options that several of them share."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from p3o import __version__
from p3o.errors import P3OError

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file (YAML), or the name of one that comes with p3o."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, e.g. --set sft.steps=300; can be repeated."),
]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name of the run, and of its folder.")]
Output = Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder that contains the run folders.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left under this name.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Continue an earlier attempt under this name from its last checkpoint."),
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to this file.")]
_Function = TypeVar("_Function", bound=Callable[..., Any])

RUNS = Path("runs")
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or its name.")]

PANELS = {
    "Get started": ("init", "doctor", "data", "demo"),
    "Train": ("run", "sft", "sample", "reward", "rl", "evaluate"),
    "Feedback": ("label", "judge", "serve-reward"),
    "Results": ("report", "samples"),
    "Benchmarks": ("gate", "bench"),
}
"""The commands as --help groups them, in the order in which one needs them."""


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
        raise P3OError(f"{given}: no such run folder, and no run of this name in {runs}; check the name or the path")
    return next((folder for folder in folders if (folder / "run.json").is_file()), folders[0])


class _Plain:
    """Shows flags without a type, as they take no value, and arguments by their name alone, not as <list[Path]>."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, --help among them."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
            if parameter.param_type_name == "argument":
                parameter.display_type_rich = _no_type
        return parameters


def _no_type(ctx: Any) -> None:
    """No word of Python's in the help."""


class Command(_Plain, TyperCommand):
    """A command whose help shows flags and arguments without a type."""


class Group(_Plain, TyperGroup):
    """A group of commands that shows its help, and flags in it without a type, where none of them is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As of the base class; no words are a question for help."""
        return super().parse_args(ctx, args or ["--help"])


class _Grouped(Group):
    """Lists the commands by panel, whatever the order in which their files register them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names as --help shows them."""
        names = list(super().list_commands(ctx))
        ordered = [name for panel in PANELS.values() for name in panel]
        return [name for name in ordered if name in names] + [name for name in names if name not in ordered]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, in its panel."""
        command: Any = super().get_command(ctx, cmd_name)
        for panel, names in PANELS.items():
            if command is not None and cmd_name in names:
                command.rich_help_panel = panel
        return command


class Commands(typer.Typer):
    """A set of commands whose help shows flags without a type."""

    def command(self, *arguments: Any, **settings: Any) -> Callable[[_Function], _Function]:
        """As in Typer; the class of the command is ours."""
        return super().command(*arguments, **{"cls": Command, **settings})


app = Commands(
    name="p3o",
    cls=_Grouped,
    help="Align language models from relative feedback with Pairwise Proximal Policy Optimization (arXiv:2310.00212).",
    epilog="Start with `p3o demo --quick`, or with `p3o init` for your own model and data. `p3o COMMAND --help` "
    "lists a command's options.",
    add_completion=True,
)
bench = Commands(
    cls=Group,
    help="Benchmarks: algorithms against known optima, stale samples, speed compared with TRL, the scaling plan.",
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
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
