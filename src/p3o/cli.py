"""The command line: parse, call, print. What takes long to import is imported inside the commands.

Exit codes: 0 done; 1 a gate that was not passed, or a mistake in p3o itself; 2 a mistake in what it was given, told in a
line that begins with "error:"; 130 stopped by Ctrl-C.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from p3o import __version__
from p3o.errors import P3OError
from p3o.files import open_for_reading, plain_reason

if TYPE_CHECKING:
    from p3o.config import RunConfig
    from p3o.training.tracking import RunFolder

STAGES = {
    "sft": "Fine-tune the model on the demonstrations.",
    "sample": "Sample pairs of responses from the SFT model and label them.",
    "reward": "Train the reward model on the preferences.",
    "rl": "Optimise the policy against the reward, once for each run of the configuration.",
    "evaluate": "Score every policy on held-out prompts.",
    "report": "Write report.html from what the run folder holds.",
}

ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="YAML file of settings.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. --set sft.steps=300; may be repeated."),
]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name of the run's folder.")]
Output = Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder that holds the runs' folders.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left under this name.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to this file.")]
RUNS = Path("runs")

app = typer.Typer(
    name="p3o",
    help="Align language models from relative feedback with Pairwise Proximal Policy Optimization (arXiv:2310.00212).",
    add_completion=False,
)
bench = typer.Typer(help="Benchmarks with a known optimum.")
app.add_typer(bench, name="bench")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; ``sys.argv`` is read when ``arguments`` is None."""
    try:
        code = _invoke(sys.argv[1:] if arguments is None else arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk or a reader who has left can still be told apart
        return code
    except P3OError as error:
        return _fail(str(error))
    except typer.TyperException as error:  # wrong usage
        context = getattr(error, "ctx", None)
        return _fail(f"{error.format_message().rstrip('.')} (see {context.command_path if context else 'p3o'} --help)")
    except KeyboardInterrupt:
        return _fail("interrupted", code=130)
    except BrokenPipeError:
        _discard_output()
        return 0
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich's answer to a closed pipe, in help and tables
            return 0
        raise
    except Exception as error:
        if isinstance(error, OSError) and (reason := plain_reason(error)) is not None:
            _discard_output()
            return _fail(f"{error.filename or 'writing'}: {reason}")
        traceback.print_exc()
        return _fail("this is a mistake in p3o; please report it with the command and the lines above", code=1)


def _invoke(arguments: Sequence[str]) -> int:
    """The command, without its own main(), which would turn a closed pipe into exit code 1 and hide Ctrl-C."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("p3o", list(arguments) or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    return 0


def _fail(message: str, code: int = 2) -> int:
    for line in message.splitlines():
        typer.echo(f"error: {line}", err=True)
    return code


def _discard_output() -> None:
    """What standard output still holds goes nowhere, or the interpreter would fail on it again at its end."""
    with suppress(AttributeError, OSError):  # no standard output, or one that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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


@app.command()
def run(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="YAML file of settings.")],
    set_: Overrides = None,
    name: Name = None,
    output: Output = RUNS,
    overwrite: Overwrite = False,
) -> None:
    """Run all stages of a configuration: SFT, preferences, reward model, RL, evaluation, report."""
    settings = _load(config, set_ or ())
    _run_stages(_create_folder(settings, name or settings.name, output, overwrite), settings, None)


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="The same path in a minute, too short to learn much.")] = False,
    reward_shift: Annotated[
        float,
        typer.Option(
            min=0, metavar="S", help="Run each algorithm again with offsets of this size on every prompt's reward."
        ),
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Seed of everything random.")] = None,
    name: Name = None,
    output: Output = RUNS,
) -> None:
    """Show the whole method on a small task that comes with the package; needs no network."""
    from p3o.config import RunConfig
    from p3o.config_loading import load_packaged_config
    from p3o.training.tracking import free_name

    overrides = [] if seed is None else [f"seed={seed}"]
    settings = load_packaged_config("demo_quick" if quick else "demo", overrides, RunConfig)
    if reward_shift:
        settings = settings.with_shifted_runs(reward_shift)
    folder = _create_folder(settings, name or free_name(output, settings.name), output, overwrite=False)
    _run_stages(folder, settings, None)


def _add_stage_command(stage: str, summary: str) -> None:
    @app.command(stage, short_help=summary, help=f"{summary} One stage of `run`, in a run's folder or a new one.")
    def command(
        config: ConfigFile = None,
        set_: Overrides = None,
        name: Name = None,
        output: Output = RUNS,
        overwrite: Overwrite = False,
    ) -> None:
        settings, folder = _resume_or_create(stage, config, set_ or (), name, output, overwrite)
        _run_stages(folder, settings, [stage])


for _stage, _summary in STAGES.items():
    _add_stage_command(_stage, _summary)


@app.command()
def gate(
    json_file: JsonFile = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="How many times to run the whole chain.")] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="Try the gate itself with `demo --quick`; it will fail.")
    ] = False,
    output: Output = RUNS,
) -> None:
    """Check that the embedded task is learned: pass or fail for each claim, over several seeds. Exit code 1 on a fail."""
    from p3o import gate as acceptance
    from p3o.training.progress import Progress

    lines = acceptance.run_gate(seeds, output=output, json_path=json_file, progress=Progress(), quick=quick)
    for line in lines:
        measured = "  ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in line.values)
        typer.echo(f"{'pass' if line.passed else 'FAIL'}  {line.name}: {measured} (wanted: {line.wanted})")
    if not all(line.passed for line in lines):
        raise typer.Exit(1)


@bench.command()
def frontier(
    json_file: JsonFile = None,
    full: Annotated[bool, typer.Option("--full", help="All problems, seeds and settings; takes hours.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Also write the chart and tables to this folder.")
    ] = None,
) -> None:
    """Measure every algorithm against the exact KL–reward frontier of problems small enough to enumerate."""
    from p3o.bench import frontier as benchmark

    benchmark.main(json_file, full=full, output=output)


def _load(path: Path, overrides: Sequence[str]) -> "RunConfig":
    with open_for_reading(path):  # a wrong path is told now, not after seconds of imports
        pass
    from p3o.config import RunConfig
    from p3o.config_loading import load_config

    return load_config(path, overrides, RunConfig)


def _resume_or_create(
    stage: str, config: Path | None, overrides: Sequence[str], name: str | None, output: Path, overwrite: bool
) -> "tuple[RunConfig, RunFolder]":
    """The settings and the folder of a single stage.

    Without --config the folder's own settings are taken. Its config.yaml then holds what was asked for last.
    """
    from p3o.config_loading import dump_config
    from p3o.files import write_text
    from p3o.training.tracking import CONFIG_FILE, RunFolder

    if config is None and name is None:
        raise P3OError("give --name of a run that is there, or --config FILE for a new one")
    source = config if config is not None else RunFolder.open(output, name or "").path / CONFIG_FILE
    settings = _load(source, overrides)
    name = name or settings.name
    if not (output / name).exists():
        return settings, _create_folder(settings, name, output, overwrite=False)
    folder = RunFolder.open(output, name, overwrite=overwrite)
    folder.refuse_if_done(stage)
    write_text(folder.path / CONFIG_FILE, dump_config(settings.model_copy(update={"name": name})))
    return settings, folder


def _create_folder(settings: "RunConfig", name: str, output: Path, overwrite: bool) -> "RunFolder":
    import torch

    from p3o.config_loading import dump_config
    from p3o.training.tracking import RunFolder

    return RunFolder.create(
        output,
        name,
        config=dump_config(settings.model_copy(update={"name": name})),
        seed=settings.seed,
        threads=settings.threads or torch.get_num_threads(),
        overwrite=overwrite,
    )


def _run_stages(folder: "RunFolder", settings: "RunConfig", stages: Sequence[str] | None) -> None:
    from p3o import pipeline
    from p3o.training.progress import Progress

    with folder:
        pipeline.run(settings, folder=folder, stages=stages, progress=Progress())
    if stages is None:
        from rich.console import Console

        from p3o.report import terminal_summary

        Console().print(terminal_summary(folder.path))
    typer.echo(f"written to {folder.path}")
