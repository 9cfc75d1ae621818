"""What sharded processes cannot do, refused before the first stage and not when the stage that would do it has its turn."""

from collections.abc import Sequence

from p3o.config import RunConfig
from p3o.distributed.start import announced
from p3o.distributed.world import world
from p3o.errors import P3OError
from p3o.stages.models import CANNOT_SAVE_MERGED
from p3o.training.asynchrony import CANNOT_SAMPLE_AHEAD
from p3o.training.optimisation import CANNOT_SHARD, OptimiserConfig


def refuse_unshardable(config: RunConfig, stages: Sequence[str]) -> None:
    """Look at the training stages among these; nothing happens without ``parallel.mode: fsdp`` and several processes, those
    included that are still to be started.

    Raises:
        P3OError: as ``Models.shard``, ``Optimisation`` and ``RolloutsAhead`` do later.
    """
    _, there = announced()
    together = max(world().size, there, config.engine.workers, config.parallel.processes or 1)
    trainings = _trainings(config, stages)
    if config.parallel.mode != "fsdp" or together == 1 or not trainings:
        return
    if config.lora is not None and config.lora.save == "merged":
        raise P3OError(CANNOT_SAVE_MERGED)
    for key, training in trainings.items():
        if training.optimiser != "adamw":
            raise P3OError(f"{key}.optimiser: {training.optimiser} {CANNOT_SHARD}")
    if "rl" in stages and config.rl.rollout.engine == "local":
        for name in config.rl.runs:
            if config.rl.training_of(name).max_staleness:
                raise P3OError(f"rl.runs.{name}: {CANNOT_SAMPLE_AHEAD}")


def _trainings(config: RunConfig, stages: Sequence[str]) -> dict[str, OptimiserConfig]:
    """The settings of every training that these stages do, by their keys."""
    trainings: dict[str, OptimiserConfig] = {}
    if "sft" in stages and config.sft is not None:
        trainings["sft"] = config.sft
    if "reward" in stages and config.reward.is_trained:
        trainings["reward.train"] = config.reward.train
    if "rl" in stages:
        trainings |= {f"rl.runs.{name}: rl.training": config.rl.training_of(name) for name in config.rl.runs}
    return trainings
