"""The whole method over a run folder: sft → sample → reward → rl → evaluate → report.

Each stage reads what the earlier ones left in the folder, so a run can be done in one go or stage by stage.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

import torch
from transformers.utils import logging as transformers_logging

from p3o.config import RunConfig
from p3o.data.rows import write_row_reports
from p3o.distributed import world
from p3o.files import clear_leftovers
from p3o.report import build_report
from p3o.report.card import write_model_cards
from p3o.stages.context import GROWING_FILES, ROWS_FILE, RunContext
from p3o.stages.evaluate import evaluate
from p3o.stages.preferences import sample
from p3o.stages.reward import reward
from p3o.stages.rl import rl
from p3o.stages.sft import sft
from p3o.training.growing import drop_torn_lines
from p3o.training.progress import Progress
from p3o.training.trackers import open_trackers, require_trackers
from p3o.training.tracking import RunFolder


def report(run: RunContext) -> None:
    """Draw the report."""
    with run.folder.stage("report"):
        build_report(run.folder.path)


Stage = Callable[[RunContext], None]

Elsewhere = Callable[[RunContext, Sequence[str]], None]
"""Has stages that follow each other done by other processes, and comes back when they are."""

STAGES: dict[str, Stage] = {
    "sft": sft,
    "sample": sample,
    "reward": reward,
    "rl": rl,
    "evaluate": evaluate,
    "report": report,
}

TRAINING_STAGES = ("sft", "reward", "rl")
"""That all processes do together."""


def run(
    config: RunConfig,
    *,
    folder: RunFolder,
    stages: Sequence[str] | None,
    progress: Progress,
    resume: bool = False,
    elsewhere: Elsewhere | None = None,
) -> None:
    """Run these stages (all by default) in the folder.

    Of several processes, all take part in the stages that train; the others are done by the first one, while the rest wait.

    Args:
        config: of the run.
        folder: of the run; on all processes but the first, one that follows (``open_together``).
        stages: names of stages; None: all.
        progress: shows how far they are.
        resume: go on where an earlier attempt stopped: stages that are done are passed over, and the one that was
            interrupted goes on from its last checkpoint.
        elsewhere: has the stages that train done by other processes; None: they are done here.

    Raises:
        P3OError: for bad input, before the first stage begins.
        Stopped: when a signal asked for it and everything is saved.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    chosen = tuple(stages or STAGES)
    together = world()
    if resume and together.first:
        clear_leftovers(folder.path)
    together.barrier()
    context = RunContext(config, folder, progress, chosen, resume=resume)
    # Whoever does a stage loads its models and writes its metrics.
    context.check(load_models=elsewhere is None)
    tracks = together.first and (elsewhere is None or not set(chosen) <= set(TRAINING_STAGES))
    trackers = config.tracking if tracks else ()
    require_trackers(trackers, online=config.tracking_online)
    together.barrier()  # nobody has found a mistake: what is to be replaced may go
    folder.begin()
    for told in drop_torn_lines(folder.path, GROWING_FILES):
        progress.print(told)
    if set(chosen) - {"report"} and together.first:
        write_row_reports(folder.path / ROWS_FILE, context.inputs.reports)
    settings = config.model_dump(mode="json")
    with open_trackers(
        trackers, folder=folder.path, online=config.tracking_online, settings=settings
    ) as folder.trackers:
        for part in _parts(config, chosen):
            due = [stage for stage in part if not _is_done(context, stage)]
            if elsewhere is not None and any(_trains(config, stage) for stage in due):
                elsewhere(context, due)
                continue
            for stage in due:
                if stage in TRAINING_STAGES or together.size == 1:
                    STAGES[stage](context)
                else:
                    together.wait_for_first(partial(STAGES[stage], context))
                if stage != "report" and together.first:
                    write_model_cards(folder.path, settings)


def _parts(config: RunConfig, chosen: Sequence[str]) -> Iterator[list[str]]:
    """The stages in their order, in parts that the same processes can do in one go.

    What trains stays together; a stage that will be skipped keeps nothing apart.
    """
    for _, part in groupby(chosen, key=lambda stage: stage in TRAINING_STAGES or _is_skipped(config, stage)):
        yield list(part)


def _trains(config: RunConfig, stage: str) -> bool:
    return stage in TRAINING_STAGES and not _is_skipped(config, stage)


def _is_skipped(config: RunConfig, stage: str) -> bool:
    """Whether the stage will find that it has nothing to do in this run."""
    if stage == "sft":
        return config.sft is None
    if stage == "sample":
        return not config.reward.is_trained if config.embedded is not None else config.sampling is None
    return stage == "reward" and not config.reward.is_trained


def _is_done(run: RunContext, stage: str) -> bool:
    """Whether an earlier attempt has done it; then this is told."""
    done = bool(world().from_first(run.resume and run.folder.done(stage)))
    if done:
        run.progress.print(f"{stage}: already done")
    return done
