"""Settings of the engine that starts the processes that train."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

RECOUNT_SECONDS = 30.0
"""Ray counts the nodes of its cluster every 20 s. Where fewer workers are allowed, a group that finds no room for so long was
planned from an old count and is planned again."""


class EngineConfig(BaseModel):
    """Who starts the processes that train together, and what happens when one is lost."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["local", "ray"] = Field(
        "local", description="local: this process (or those started by torchrun); ray: Ray Train workers."
    )
    workers: int = Field(1, gt=0, description="ray: number of training processes.")
    min_workers: int | None = Field(
        None,
        gt=0,
        description="ray: continue with fewer workers, down to this number, while hosts are missing; "
        "null: never with fewer.",
    )
    address: str | None = Field(
        None,
        min_length=1,
        description="ray: HOST:PORT of a cluster, or auto for the cluster of this host; null: start one here for this run.",
    )
    cpus_per_worker: int | float = Field(1, gt=0, description="ray: CPU cores reserved per worker.")
    gpus_per_worker: int | float | None = Field(
        None,
        ge=0,
        description="ray: GPUs reserved per worker; null: one if the cluster has any and device allows it.",
    )
    max_failures: int = Field(
        3, ge=0, description="ray: how many times to restart from the last checkpoint after a worker is lost."
    )
    start_seconds: int | float = Field(
        180, gt=0, description="ray: seconds that an attempt waits for room for all its workers."
    )
    resize_seconds: int | float = Field(
        300,
        gt=0,
        description="ray: with min_workers, seconds between checks for hosts that are back; adding workers "
        "restarts from a checkpoint.",
    )

    @model_validator(mode="after")
    def consistent(self) -> "EngineConfig":
        """What only Ray understands is said of Ray, and the least number of workers is not above their number."""
        if self.name == "local":
            if self.workers != 1:
                raise ValueError(
                    f"workers: {self.workers} workers need an engine that starts them; use name: ray (--engine "
                    f"ray), or start p3o with "
                    "torchrun"
                )
            if self.address is not None:
                raise ValueError("address: only name: ray (--engine ray) connects to a cluster")
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers: {self.min_workers} is more than workers: {self.workers}")
        return self

    @property
    def is_elastic(self) -> bool:
        """Whether it may go on with fewer workers than it began with."""
        return self.min_workers is not None and self.min_workers < self.workers

    @property
    def room_seconds(self) -> int | float:
        """How long Ray looks for room for a group of workers of a given number."""
        return min(self.start_seconds, RECOUNT_SECONDS) if self.is_elastic else self.start_seconds

    @property
    def resources_per_worker(self) -> dict[str, int | float]:
        """What a worker reserves, in Ray's words; GPUs only where their number is given."""
        found = {"CPU": self.cpus_per_worker}
        return found if self.gpus_per_worker is None else found | {"GPU": self.gpus_per_worker}
