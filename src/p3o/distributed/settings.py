"""Settings of a training on several processes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ParallelConfig(BaseModel):
    """How training is divided among the processes that torchrun or Ray started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["data", "fsdp"] = Field(
        "data",
        description="data: every process holds the models; fsdp: parameters, gradients and moments are sharded (FSDP2).",
    )
    processes: int | None = Field(
        None, gt=0, description="How many processes there must be; null: as many as were started."
    )
    timeout_minutes: int | float = Field(30, gt=0, description="Limit on every collective operation.")
    reshard_after_forward: bool = Field(
        True,
        description="fsdp: drop a block's whole weights after its forward pass and gather them again for the backward.",
    )
    cpu_offload: bool = Field(
        False,
        description="fsdp: keep shards, gradients and moments in the CPU's memory; the GPU holds a block at a time.",
    )
