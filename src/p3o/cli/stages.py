"""Commands that run stages: the whole run, the demo, and every stage by itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from p3o.cli.app import RUNS, ConfigFile, Name, Output, Overrides, Overwrite, app
from p3o.errors import P3OError
from p3o.files import open_for_reading

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
