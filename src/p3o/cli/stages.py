"""Commands that run stages: the whole run, the demo, and every stage by itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from p3o.cli.app import RUNS, ConfigFile, Name, Output, Overrides, Overwrite, Resume, app
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
    config: ConfigFile = None,
    set_: Overrides = None,
    name: Name = None,
    output: Output = RUNS,
    overwrite: Overwrite = False,
    resume: Resume = False,
) -> None:
    """Run all stages of a configuration: SFT, preferences, reward model, RL, evaluation, report."""
    if resume:
        settings, folder = _resume(config, set_ or (), name, output)
    else:
        if config is None:
            raise P3OError("give --config FILE, or --resume with the --name of a run that was stopped")
        settings = _load(config, set_ or ())
        folder = _create_folder(settings, name or settings.name, output, overwrite)
    _run_stages(folder, settings, None, resume=resume)


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
        resume: Resume = False,
    ) -> None:
        run_stage(stage, config, set_ or (), name, output, overwrite=overwrite, resume=resume)


def run_stage(
    stage: str,
    config: Path | None,
    overrides: Sequence[str],
    name: str | None,
    output: Path,
    *,
    overwrite: bool,
    resume: bool,
) -> None:
    """One stage, in a run's folder or a new one."""
    if resume:
        settings, folder = _resume(config, overrides, name, output)
        folder.refuse_if_done(stage)
    else:
        settings, folder = _open_or_create(stage, config, overrides, name, output, overwrite)
    _run_stages(folder, settings, [stage], resume=resume)


for _stage, _summary in STAGES.items():
    if _stage != "report":  # which also takes run folders: p3o.cli.report
        _add_stage_command(_stage, _summary)


def _load(path: Path, overrides: Sequence[str]) -> "RunConfig":
    with open_for_reading(path):  # a wrong path is told now, not after seconds of imports
        pass
    from p3o.config import RunConfig
    from p3o.config_loading import load_config

    return load_config(path, overrides, RunConfig)


def _open_or_create(
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


def _resume(
    config: Path | None, overrides: Sequence[str], name: str | None, output: Path
) -> "tuple[RunConfig, RunFolder]":
    """The settings and the folder of a run that was stopped. They stay what they were: a resumed run is the same run."""
    from p3o.config_loading import first_difference
    from p3o.training.tracking import CONFIG_FILE, RunFolder

    asked = _load(config, overrides) if config is not None else None
    if name is None and asked is None:
        raise P3OError("--resume: give --name of the run that was stopped, or its --config")
    folder = RunFolder.open(output, name or (asked.name if asked is not None else ""))
    stored = folder.path / CONFIG_FILE
    settings = _load(stored, ())
    if asked is None and overrides:
        asked = _load(stored, overrides)
    if asked is not None and (key := first_difference(settings, asked.model_copy(update={"name": settings.name}))):
        raise P3OError(
            f"--resume: {key} differs from {stored}; leave it as it was, or take another --name for another run"
        )
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


def _run_stages(
    folder: "RunFolder", settings: "RunConfig", stages: Sequence[str] | None, *, resume: bool = False
) -> None:
    from p3o import pipeline
    from p3o.training.progress import Progress

    with folder:
        pipeline.run(settings, folder=folder, stages=stages, progress=Progress(), resume=resume)
    if stages is None:
        from rich.console import Console

        from p3o.report import terminal_summary

        Console().print(terminal_summary(folder.path))
    typer.echo(f"written to {folder.path}")
