"""What every training stage shares: the optimiser, the learning-rate schedule, the order of the rows."""

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler


class OptimiserConfig(BaseModel):
    """AdamW with a schedule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(gt=0, description="Peak learning rate of AdamW.")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="Learning rate after the warm-up.")
    warmup_fraction: float = Field(0.03, ge=0, lt=1, description="Share of the updates with a rising learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")


def make_optimiser(
    parameters: Iterable[nn.Parameter] | list[dict[str, object]], config: OptimiserConfig, updates: int
) -> tuple[torch.optim.AdamW, LRScheduler]:
    """Fused AdamW and its schedule over this many updates."""
    optimiser = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.95), fused=True
    )
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    warmup = round(config.warmup_fraction * updates)
    return optimiser, get_scheduler(name, optimiser, num_warmup_steps=warmup, num_training_steps=updates)


def batches_of(rows: int, batch_size: int, *, generator: torch.Generator, shuffle: bool = True) -> Iterator[Tensor]:
    """Row indices, endlessly: every row once before any row a second time; batches run across epochs."""
    pending = torch.empty(0, dtype=torch.long)
    while True:
        while len(pending) < batch_size:
            epoch = torch.randperm(rows, generator=generator) if shuffle else torch.arange(rows)
            pending = torch.cat([pending, epoch])
        yield pending[:batch_size]
        pending = pending[batch_size:]
