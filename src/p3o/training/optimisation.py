"""What every training stage shares: the optimiser, the learning-rate schedule, the order of the rows."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from p3o.distributed.sharding import is_sharded, settle, whole
from p3o.distributed.world import world
from p3o.errors import P3OError
from p3o.training.checkpoint import State, optimiser_state, restore_optimiser, restore_trainable, trainable_state
from p3o.training.faults import FaultAction, NumericalError


class OptimiserConfig(BaseModel):
    """AdamW with a schedule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(gt=0, description="Peak learning rate of AdamW.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="Learning rate schedule after the warm-up."
    )
    warmup_fraction: float = Field(
        0.03, ge=0, lt=1, description="Share of the updates spent warming up the learning rate."
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Maximum norm of the gradient; larger ones are scaled down.")
    optimiser: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw",
        description="Optimiser. 8-bit ones need bitsandbytes; paged ones move their states to CPU memory when the "
        "GPU's is full.",
    )
    adam_betas: tuple[float, float] = Field((0.9, 0.95), description="Decay rates of AdamW's two moments.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's ε.")
    on_fault: FaultAction = Field(
        "stop",
        description="On a number that is not finite: stop; skip the update or group; rollback to the last checkpoint.",
    )


CANNOT_SHARD = "cannot be sharded; use adamw, or parallel.mode: data"


class Optimisation:
    """AdamW (fused, or in 8 bits), its schedule and the clipping of gradients for the modules that are trained together.

    Args:
        modules: what is trained, by name; parameters that do not require gradients stay as they are.
        config: settings.
        updates: length of the schedule.
        learning_rates: of modules whose peak rate is not the config's.

    Raises:
        P3OError: if 8-bit states are asked for and bitsandbytes is not there.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        config: OptimiserConfig,
        updates: int,
        *,
        learning_rates: Mapping[str, float] | None = None,
    ) -> None:
        rates = learning_rates or {}
        self._modules, self._max_grad_norm, self._on_fault = modules, config.max_grad_norm, config.on_fault
        settle(*modules.values())  # while a root is gathered its parameters are not the shards that learn
        groups = [
            {
                "params": [parameter for parameter in module.parameters() if parameter.requires_grad],
                "lr": rates.get(name, config.learning_rate),
            }
            for name, module in modules.items()
        ]
        self._parameters = [parameter for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
        if config.optimiser != "adamw" and any(map(is_sharded, modules.values())):
            raise P3OError(f"optimiser: {config.optimiser} {CANNOT_SHARD}")
        self.optimiser = _make_optimiser(groups, config)
        name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
        warmup = round(config.warmup_fraction * updates)
        # transformers' ramp begins with a rate of 0, at which an update, and all that was sampled for it, would be for
        # nothing: begin one step into it. With that one more step the rates after the ramp are those without it.
        self.schedule: LRScheduler = get_scheduler(
            name, self.optimiser, num_warmup_steps=warmup + 1, num_training_steps=updates + 1
        )
        self.advance_schedule()

    def update(self, where: Callable[[], str] = str, *, at_peak: bool = False) -> bool:
        """One optimiser step on the gradients that have been accumulated, on all processes; False if they were not finite and
        were skipped.

        Args:
            where: tells, for an error, in which data the fault is.
            at_peak: with the peak learning rates, wherever the schedule stands.

        Raises:
            NumericalError: if the gradients are not finite and ``on_fault`` is not "skip".
        """
        settle(*self._modules.values())
        world().add_gradients(self._parameters)
        norm = whole(torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm))
        finite = bool(norm.isfinite())
        if finite:
            with self._peak_rates() if at_peak else nullcontext():
                self.optimiser.step()
        elif self._on_fault != "skip":
            raise NumericalError(
                f"the gradient is not finite{where()}; lower the learning rate, or choose on_fault: skip or rollback"
            )
        self.optimiser.zero_grad()
        return finite

    @contextmanager
    def _peak_rates(self) -> Iterator[None]:
        groups = self.optimiser.param_groups
        scheduled = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["initial_lr"]
        try:
            yield
        finally:
            for group, rate in zip(groups, scheduled, strict=True):
                group["lr"] = rate

    def advance_schedule(self) -> None:
        """Go to the learning rate of the next step."""
        with warnings.catch_warnings():
            # torch takes it for a mistake when the first update was skipped.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.schedule.step()

    def state_dict(self) -> State:
        """The trained weights, the optimiser's moments and the place in the schedule."""
        settle(*self._modules.values())
        return {
            "modules": {name: trainable_state(module) for name, module in self._modules.items()},
            "optimiser": optimiser_state(self.optimiser),
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go back to where ``state_dict`` was taken.

        Raises:
            P3OError: if the state belongs to other modules.
        """
        settle(*self._modules.values())
        for name, module in self._modules.items():
            restore_trainable(module, state["modules"].get(name, {}))
        restore_optimiser(self.optimiser, state["optimiser"])
        self.optimiser.zero_grad()
        self.schedule.load_state_dict(state["schedule"])


def _make_optimiser(groups: list[dict[str, object]], config: OptimiserConfig) -> torch.optim.Optimizer:
    if config.optimiser == "adamw":
        return torch.optim.AdamW(
            groups, weight_decay=config.weight_decay, betas=config.adam_betas, eps=config.adam_epsilon, fused=True
        )
    make = _eight_bit(config.optimiser)
    return make(groups, weight_decay=config.weight_decay, betas=config.adam_betas, eps=config.adam_epsilon)


def _eight_bit(name: str) -> Callable[..., torch.optim.Optimizer]:
    try:
        from bitsandbytes import optim
    except ImportError as error:
        raise P3OError(
            f"optimiser: {name} needs bitsandbytes, which is not installed; pip install bitsandbytes, or use adamw"
        ) from error
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
    }
    return kinds[name]


def unseen(rows: int, batch_size: int, steps: int | None) -> str | None:
    """In words, that a training of as many whole batches as there are rows for leaves some rows out; None if it leaves none out
    or was told how many steps to take."""
    left = rows % batch_size
    if steps is not None or left == 0 or rows < batch_size:
        return None
    return (
        f"{left} of {rows} rows are left out, as they do not fill a batch of {batch_size}; set steps to train for more "
        "than one pass"
    )


class BatchOrder:
    """Row indices, endlessly: every row once before any row a second time; batches run across epochs.

    Args:
        rows: number of rows.
        batch_size: indices that ``next`` gives at a time.
        seed: of the order.
        shuffle: whether to draw a new order for each epoch; otherwise rows come as they stand.

    Raises:
        P3OError: if there are no rows; a batch would never be full.
    """

    def __init__(self, rows: int, batch_size: int, *, seed: int, shuffle: bool = True) -> None:
        if rows == 0:
            raise P3OError("there are no rows to train on; give at least one")
        self.rows, self.batch_size, self.shuffle = rows, batch_size, shuffle
        self._generator = torch.Generator().manual_seed(seed)
        self._pending = torch.empty(0, dtype=torch.long)

    def next(self) -> Int[Tensor, " batch"]:
        """The next batch of indices."""
        while len(self._pending) < self.batch_size:
            epoch = torch.randperm(self.rows, generator=self._generator) if self.shuffle else torch.arange(self.rows)
            self._pending = torch.cat([self._pending, epoch])
        batch, self._pending = self._pending[: self.batch_size], self._pending[self.batch_size :]
        return batch

    def divert(self, attempt: int) -> None:
        """Go on in another order, after a fault in this one."""
        self._generator.manual_seed(self._generator.initial_seed() + attempt)
        self._pending = self._pending[:0]

    def state_dict(self) -> State:
        """Where in the data it stands."""
        return {"pending": self._pending, "generator": self._generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        """Go back to where ``state_dict`` was taken."""
        self._pending = state["pending"]
        self._generator.set_state(state["generator"])
