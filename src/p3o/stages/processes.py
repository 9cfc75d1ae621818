"""How many processes train together, as the configuration and the environment say before any of them has started."""

from dataclasses import dataclass

from p3o.config import RunConfig
from p3o.distributed.start import announced
from p3o.errors import P3OError


@dataclass(frozen=True)
class Processes:
    """Those that train together.

    Attributes:
        count: how many.
        sharded: whether they share what is trained, or each holds all of it.
    """

    count: int = 1
    sharded: bool = False

    @property
    def shares(self) -> int:
        """Parts that what is trained is cut into."""
        return self.count if self.sharded else 1


ONE = Processes()


def processes_of(config: RunConfig) -> Processes:
    """Who does the stages that train: the workers of Ray, as many as ``parallel.processes`` asks for, or those of torchrun.

    Raises:
        P3OError: if the processes that there are, or will be, are not as many as there must be.
    """
    wanted, mode = config.parallel.processes, config.parallel.mode
    if config.engine.name != "local":
        count, given = config.engine.workers, "engine.workers"
    else:
        _, there = announced()
        count, given = (there, "WORLD_SIZE") if there > 1 else (wanted or 1, "")
    if wanted not in (None, count):
        raise P3OError(
            f"parallel.processes: {wanted} processes are required, but {given} is {count}; make the two numbers equal"
        )
    return Processes(count, sharded=mode == "fsdp" and count > 1)
