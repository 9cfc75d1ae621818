"""From what was typed to the resolved settings of a command and the folder that it works in."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os.path import exists
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p3o.cli.options import ALGORITHM, ALGORITHM_SETTINGS, ENGINE, STAGE_OPTIONS, Given
from p3o.errors import P3OError, did_you_mean
from p3o.files import open_for_reading

if TYPE_CHECKING:
    from p3o.config import RunConfig
    from p3o.config_loading import Override
    from p3o.training.tracking import RunFolder


@dataclass(frozen=True)
class Asked:
    """What every command of a stage takes.

    Attributes:
        command: its name: a stage, or "run".
        config: a file of settings.
        overrides: of ``--set``.
        given: the options that stand for settings, by flag.
        name: of the run's folder.
        output: the folder of all runs.
        overwrite: whether what is there may be replaced.
        resume: whether to go on where an earlier attempt stopped.
    """

    command: str
    config: Path | None
    overrides: Sequence[str]
    given: Given
    name: str | None
    output: Path
    overwrite: bool
    resume: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that the command runs."""
        return tuple(name for name in STAGE_OPTIONS if name != "run") if self.command == "run" else (self.command,)

    @property
    def is_new(self) -> bool:
        """Whether a run begins here, with settings of its own."""
        return self.config is not None or "model" in self.given or any(_begins_a_run(text) for text in self.overrides)


@dataclass(frozen=True)
class Work:
    """Resolved settings, and the folder they are for, which may not be there yet."""

    settings: "RunConfig"
    output: Path
    name: str
    is_there: bool


def going_on(asked: Asked, attempt: int) -> Asked:
    """The same; with ``resume`` where torchrun has started these processes again after a failure and the run's folder is there,
    unless what it holds is still to be replaced.

    Args:
        asked: by the user.
        attempt: more than 0 where they were started again, as all of them have agreed: hosts count differently.
    """
    from p3o.training.replacing import still_to_replace

    if attempt == 0 or asked.resume:
        return asked
    name = asked.name
    if name is None and asked.config is not None:
        name = _load(asked.config, asked).name
    if name is None or not (asked.output / name / "run.json").is_file():
        return asked
    if asked.overwrite and still_to_replace(asked.output / name):
        return asked
    return replace(asked, resume=True, overwrite=False)


def resolve(asked: Asked) -> Work:
    """Read the settings: of the file, or of the folder that is gone on in, or the defaults; then the options, then ``--set``.

    Nothing is written.

    Raises:
        P3OError: for a mistake in the settings, no settings at all, a run that is not there, or a missing input.
    """
    if asked.resume:
        return _resumed(asked)
    source = asked.config
    if not asked.is_new:
        if asked.command == "run":
            raise P3OError(
                "give --config FILE, or --model MODEL and the data files, or --resume with the --name of a run "
                "that was stopped"
            )
        if asked.name is None and asked.command == "report":
            raise P3OError("name a run: p3o report runs/NAME; several runs make one page that compares them")
        if asked.name is None:
            raise P3OError("give --name of an existing run, or --config FILE or --model MODEL for a new one")
        from p3o.training.tracking import CONFIG_FILE, RunFolder

        source = RunFolder.open(asked.output, asked.name).path / CONFIG_FILE
    elif source is None and asked.name is not None and asked.command != "run":
        folder = asked.output / asked.name
        source = folder / "config.yaml" if (folder / "run.json").is_file() else None
    settings = _load(source, asked)
    name = asked.name or settings.name
    if source is None and asked.name is None:
        from p3o.training.tracking import free_name

        name = free_name(asked.output, name)
    settings = settings.model_copy(update={"name": name})
    settings.require_inputs(asked.stages)
    return Work(settings, asked.output, name, is_there=asked.command != "run" and (asked.output / name).exists())


def open_folder(work: Work, asked: Asked) -> "RunFolder":
    """The folder to work in, made or gone on in; from its ``begin`` on its config.yaml holds what was asked for last.

    Raises:
        P3OError: if it may not be made, or its stage is done and may not be replaced.
    """
    from p3o.config_loading import dump_config
    from p3o.training.tracking import RunFolder

    if not work.is_there:
        if asked.overwrite:
            require_nothing_of_ours_inside(work, asked)
        return create_folder(work.settings, work.name, work.output, asked.overwrite)
    folder = RunFolder.open(
        work.output,
        work.name,
        overwrite=asked.overwrite and not asked.resume,
        config=None if asked.resume else dump_config(work.settings),
    )
    if asked.command != "run":
        folder.refuse_if_done(asked.command)
    return folder


def require_nothing_of_ours_inside(work: Work, asked: Asked) -> None:
    """Check that the run does not start from what its --overwrite would remove: a model or labels of the earlier run, say.

    Raises:
        P3OError: for the first setting that names something in the run's folder.
    """
    from p3o.training.tracking import CONFIG_FILE

    folder = (work.output / work.name).resolve()
    named = [("--config", asked.config.resolve())] if asked.config is not None else []
    settings = work.settings.model_dump(mode="json", exclude={"name"})
    named += [(key, Path(text).resolve()) for key, text in _texts(settings) if exists(text)]
    for key, path in named:
        if path.is_relative_to(folder) and path != folder / CONFIG_FILE:
            raise P3OError(
                f"{key}: {path} is inside the folder that --overwrite would empty; move it, or choose another --name"
            )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text inside a tree of settings, with its dotted key."""
    if isinstance(value, str):
        yield key, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from _texts(item, f"{key}.{name}" if key else str(name))


def create_folder(settings: "RunConfig", name: str, output: Path, overwrite: bool) -> "RunFolder":
    """A new folder of a run.

    Raises:
        P3OError: if there is one that may not be replaced.
    """
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


def _resumed(asked: Asked) -> Work:
    """The settings of a run that was stopped. They stay what they were: a resumed run is the same run."""
    from p3o.config import RunConfig
    from p3o.config_loading import first_difference, load_config
    from p3o.training.tracking import CONFIG_FILE, RunFolder

    now = _load(asked.config, asked) if asked.config is not None else None
    name = asked.name or (now.name if now is not None else None)
    if name is None:
        raise P3OError("--resume: give --name of the run that was stopped, or its --config")
    stored = RunFolder.open(asked.output, name).path / CONFIG_FILE
    settings = load_config(stored, [], RunConfig)
    if now is None and (asked.overrides or asked.given):
        now = _load(stored, asked)
    if now is not None:
        # Who starts the processes makes no difference to what comes of them.
        settings = settings.model_copy(update={"engine": now.engine})
    if now is not None and (key := first_difference(settings, now.model_copy(update={"name": settings.name}))):
        raise P3OError(
            f"--resume: {key} differs from {stored}; keep the old value, or start a new run under another --name"
        )
    return Work(settings, asked.output, name, is_there=True)


def _load(source: Path | None, asked: Asked) -> "RunConfig":
    if source is not None:
        source = _configuration(source)
    from p3o.config import RunConfig
    from p3o.config_loading import Override, load_config

    options = [
        Override(tuple(option.key.split(".")), asked.given[option.flag], f"--{option.flag} {asked.given[option.flag]}")
        for option in STAGE_OPTIONS[asked.command]
        if option.key and option.flag in asked.given
    ]
    if asked.given.get(ENGINE.flag) == "local":  # what the file says of workers and addresses is of another engine
        options = [Override(("engine",), {}, f"--{ENGINE.flag} local"), *options]
    settings = load_config(source, [*options, *asked.overrides], RunConfig)
    derived = [*_wanted_sft(settings, asked), *_algorithm(settings, asked)]
    return load_config(source, [*options, *derived, *asked.overrides], RunConfig) if derived else settings


def _configuration(given: Path) -> Path:
    """The file that --config means: a path, or the name of a configuration that comes with the package.

    Raises:
        P3OError: if it is neither; now, not after seconds of imports.
    """
    packaged = {file.stem: file for file in (Path(__file__).parent.parent / "configs").glob("*.yaml")}
    if not given.exists() and str(given) in packaged:
        return packaged[str(given)]
    if not given.exists() and given.parent == Path() and not given.suffix:
        advice = did_you_mean(str(given), packaged) or f"give a file, or one of {', '.join(sorted(packaged))}"
        raise P3OError(f"--config {given}: neither a file nor a packaged configuration; {advice}")
    with open_for_reading(given):
        return given


def _wanted_sft(settings: "RunConfig", asked: Asked) -> "Iterator[Override]":
    """Who says `p3o sft`, or gives demonstrations to a whole run, wants the section that turns this stage on."""
    from p3o.config_loading import Override

    if settings.sft is None and (asked.command == "sft" or "demonstrations" in asked.given):
        yield Override(("sft",), {}, f"p3o {asked.command}")


def _algorithm(settings: "RunConfig", asked: Asked) -> "Iterator[Override]":
    """The RL runs of this command: those of the named algorithm, or a new one; each with what was given."""
    from p3o.config_loading import Override

    runs = {name: run.model_dump(mode="json") for name, run in settings.rl.runs.items()}
    wanted = asked.given.get(ALGORITHM.flag)
    if wanted is not None:
        kept = {name: run for name, run in runs.items() if run["algorithm"] == wanted}
        runs = kept or {wanted: {"algorithm": wanted}}
        yield Override(("rl", "runs"), runs, f"--{ALGORITHM.flag} {wanted}")
    for option in ALGORITHM_SETTINGS:
        if option.flag in asked.given:
            value = asked.given[option.flag]
            for name, run in runs.items():
                place = f"--{option.flag} {value}"
                yield Override(("rl", "runs", name, "algorithm"), run["algorithm"], place)
                yield Override(("rl", "runs", name, "settings", option.flag), value, place)
    for option in STAGE_OPTIONS[asked.command]:
        section, _, key = option.key.rpartition(".")
        if section == "rl.training" and option.flag in asked.given:
            # What a run says for itself would win over what is shared, and the option would do nothing there.
            for name in (name for name, run in runs.items() if key in run.get("training", {})):
                value = asked.given[option.flag]
                yield Override(("rl", "runs", name, "training", key), value, f"--{option.flag} {value}")


def _begins_a_run(text: str) -> bool:
    """Whether a ``--set`` says what to start from."""
    return text.partition("=")[0].strip().split(".")[0] in ("model", "embedded")
