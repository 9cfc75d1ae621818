"""Settings of a training on several processes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ParallelConfig(BaseModel):
    """How training is divided among the processes that torchrun or Ray started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["data", "fsdp"] = Field(
        "data",
        description="data: every process holds complete models; fsdp: parameters, gradients and optimiser states "
        "are sharded (FSDP2).",
    )
    processes: int | None = Field(
        None, gt=0, description="Required number of processes; null: as many as were started."
    )
    timeout_minutes: int | float = Field(30, gt=0, description="Time limit of a collective operation, in minutes.")
    reshard_after_forward: bool = Field(
        True,
        description="fsdp: free a block's gathered weights after its forward pass and gather them again for the backward pass.",
    )
    cpu_offload: bool = Field(
        False,
        description="fsdp: keep shards, gradients and optimiser states in CPU memory; the GPU holds one block at a time.",
    )
