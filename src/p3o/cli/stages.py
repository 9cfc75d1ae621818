"""Commands that run stages: the whole run, the demo, and every stage by itself."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p3o.cli.app import RUNS, ConfigFile, JsonFile, Name, Output, Overrides, Overwrite, Resume, app
from p3o.cli.engine import on_workers, require_one_process
from p3o.cli.options import STAGE_OPTIONS, Given, takes
from p3o.cli.settings import Asked, Work, create_folder, going_on, open_folder, require_nothing_of_ours_inside, resolve
from p3o.errors import P3OError

if TYPE_CHECKING:
    from p3o.config import RunConfig
    from p3o.distributed import World
    from p3o.training.hub import HubTarget
    from p3o.training.tracking import RunFolder

STAGES = {
    "sft": "Fine-tune the model on the demonstrations.",
    "sample": "Sample pairs of responses from the SFT model, to be labelled by the configured labeller or with "
    "p3o label.",
    "reward": "Train the reward model on the preferences.",
    "rl": "Optimise the policy against the reward, once for each run in the configuration.",
    "evaluate": "Score every policy on held-out prompts.",
    "report": "Write report.html from the contents of the run folder.",
}
RUN = "Run all stages of a configuration: SFT, preferences, reward model, RL, evaluation, report."
MAKES_A_MODEL = ("sft", "reward", "rl", "run")


def _print_keys(wanted: bool) -> bool:
    if wanted:
        from p3o.cli.keys import print_keys

        print_keys()
        raise typer.Exit
    return wanted


HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all", callback=_print_keys, is_eager=True, help="List every setting that --config and --set accept."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, without writing anything.")]
PushToHub = Annotated[
    str | None,
    typer.Option("--push-to-hub", metavar="REPO", help="Publish the model on the Hugging Face hub once it is trained."),
]
Private = Annotated[bool, typer.Option("--private", help="With --push-to-hub: make the repository private.")]


def _add_stage_command(stage: str, summary: str) -> None:
    describe = summary if stage == "run" else f"{summary} One stage of `run`, in an existing run folder or a new one."

    @app.command(stage, short_help=summary, help=describe)
    @takes(STAGE_OPTIONS[stage], without=() if stage in MAKES_A_MODEL else ("push_to_hub", "private"))
    def command(
        given: Given,
        config: ConfigFile = None,
        set_: Overrides = None,
        name: Name = None,
        output: Output = RUNS,
        overwrite: Overwrite = False,
        resume: Resume = False,
        dry_run: DryRun = False,
        json_file: JsonFile = None,
        push_to_hub: PushToHub = None,
        private: Private = False,
        help_all: HelpAll = False,  # noqa: ARG001 (its callback has done it)
    ) -> None:
        asked = Asked(stage, config, set_ or (), given, name, output, overwrite, resume)
        do(asked, dry=dry_run, json_file=json_file, repository=push_to_hub, private=private)


_add_stage_command("run", RUN)


@app.command()
def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="The same stages in under a minute, too short to learn much.")
    ] = False,
    reward_shift: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="S",
            help="Run each algorithm a second time with a random offset of this size added to every prompt's rewards.",
        ),
    ] = 0.0,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Random seed.")] = None,
    name: Name = None,
    output: Output = RUNS,
) -> None:
    """Run the whole pipeline on a small built-in task; needs no network."""
    from p3o.config import RunConfig
    from p3o.config_loading import load_packaged_config
    from p3o.training.following import open_together
    from p3o.training.tracking import free_name

    overrides = [] if seed is None else [f"seed={seed}"]
    settings = load_packaged_config("demo_quick" if quick else "demo", overrides, RunConfig)
    if reward_shift:
        settings = settings.with_shifted_runs(reward_shift)
    called = name or free_name(output, settings.name)
    with _in_its_world(settings) as together:
        folder = open_together(lambda: create_folder(settings, called, output, overwrite=False))
        _run_stages(folder, settings, None)
        if together.first:
            if quick:
                typer.echo(
                    "this was the quick demo, too short for its numbers to mean much; the full p3o demo "
                    "takes a few minutes"
                )
            _tell_where("demo", folder.path)


for _stage, _summary in STAGES.items():
    if _stage != "report":  # which takes run folders too: p3o.cli.report
        _add_stage_command(_stage, _summary)


def do(asked: Asked, *, dry: bool, json_file: Path | None, repository: str | None, private: bool) -> None:
    """Resolve the settings and look ahead, or do it and record what came of it."""
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise P3OError(f"--json {json_file}: its folder does not exist; create it first")
    work = resolve(asked)
    if dry:
        _look_ahead(work, asked, json_file)
        return
    with _in_its_world(work.settings) as together:
        if (again := going_on(asked, together.attempt)) != asked:
            asked, work = again, resolve(again)
        _train(work, asked, together, json_file=json_file, repository=repository, private=private)


def _train(
    work: Work, asked: Asked, together: "World", *, json_file: Path | None, repository: str | None, private: bool
) -> None:
    """Do it, in the world of all processes that were started; the first one tells what came of it."""
    from p3o.training.following import open_together

    targets = _hub_targets(asked, work.settings, repository, private) if together.first else {}

    def make() -> "RunFolder":
        for target in targets.values():
            target.prepare()
        return open_folder(work, asked)

    folder = open_together(make)
    stages = None if asked.command == "run" else list(asked.stages)
    _run_stages(folder, work.settings, stages, resume=asked.resume)
    if not together.first:
        return
    if json_file is not None:
        from p3o.report.figures import final_figures

        _write_json(json_file, final_figures(folder.path))
    for made, target in targets.items():
        typer.echo(f"published {target.push(folder.path / made, message=f'{made} of {work.name}, trained with p3o')}")
    _tell_where(asked.command, folder.path)


def _tell_where(command: str, folder: Path) -> None:
    """Where everything is, and what to look at."""
    page = folder / "report.html"
    if command in ("run", "demo", "report") and page.is_file():
        typer.echo(f"written to {folder}; open {page}")
    elif command in ("rl", "evaluate"):
        typer.echo(f"written to {folder}; for a report, run: p3o report {folder}")
    else:
        typer.echo(f"written to {folder}")


def _in_its_world(settings: "RunConfig") -> "AbstractContextManager[World]":
    from p3o.distributed import ParallelConfig, started

    if settings.engine.name != "local":
        require_one_process()
        return started(ParallelConfig(), use_gpu=False)  # the engine's workers meet each other
    return started(settings.parallel, use_gpu=settings.device not in ("cpu", "mps"))


def _look_ahead(work: Work, asked: Asked, json_file: Path | None) -> None:
    """Tell what would be done; of several processes that torchrun started, the first one tells."""
    from rich.console import Console

    from p3o.cli.keys import changed_settings
    from p3o.cli.outlook import print_outlook
    from p3o.distributed.start import announced
    from p3o.stages.context import RunContext
    from p3o.stages.dry_run import dry_run
    from p3o.training.progress import Nowhere, Progress
    from p3o.training.tracking import RunFolder

    rank, _ = announced()
    path = work.output / work.name
    record = RunFolder.open(work.output, work.name).record if work.is_there else {"seconds": {}}
    if path.exists() and not work.is_there and not asked.overwrite:
        raise P3OError(f"{path}: already exists; choose another --name or pass --overwrite")
    if asked.overwrite:
        if not work.is_there:
            require_nothing_of_ours_inside(work, asked)
        record["seconds"] = {}  # what would be done again is not done
    progress = Progress() if rank == 0 else Progress(Nowhere())
    outlook = dry_run(RunContext(work.settings, RunFolder(path, record), progress, asked.stages))
    if rank == 0:
        print_outlook(outlook, Console(), changed=changed_settings(work.settings))
        _write_json(json_file, outlook.figures())


def _run_stages(
    folder: "RunFolder", settings: "RunConfig", stages: Sequence[str] | None, *, resume: bool = False
) -> None:
    from p3o import pipeline
    from p3o.distributed import world
    from p3o.training.progress import Nowhere, Progress

    first = world().first
    with folder, on_workers(settings, stages, resume=resume) as elsewhere:
        pipeline.run(
            settings,
            folder=folder,
            stages=stages,
            progress=Progress() if first else Progress(Nowhere()),
            resume=resume,
            elsewhere=elsewhere,
        )
    if stages is None and first:
        from rich.console import Console

        from p3o.report import terminal_summary

        Console().print(terminal_summary(folder.path))


def _hub_targets(asked: Asked, settings: "RunConfig", repository: str | None, private: bool) -> "dict[str, HubTarget]":
    """Where each model goes, by its place in the run's folder; of several policies each under a name of its own.

    Raises:
        P3OError: if the command will make no model.
    """
    if repository is None:
        if private:
            raise P3OError("--private: has no effect without --push-to-hub REPO; give both")
        return {}
    from p3o.training.hub import HubTarget

    hub = HubTarget(repository, private=True if private else None)
    if asked.command == "sft":
        return {"sft": hub}
    if asked.command == "reward":
        if not settings.reward.is_trained:
            raise P3OError(f"--push-to-hub {repository}: the reward is given, so no reward model is trained")
        return {"reward_model": hub}
    runs = settings.rl.runs
    return {f"rl/{name}": hub if len(runs) == 1 else hub.named(name) for name in runs}


def _write_json(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        from p3o.files import write_json

        write_json(path, figures)
