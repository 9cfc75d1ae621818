"""The loop around every trainer: step, tell, checkpoint; resume where a checkpoint stands; stop when asked to.

trainer = SFTTrainer(model, rows, SFTConfig(steps=300), fill=pad, seed=0)
fit(trainer, lambda step, metrics: print(step, metrics))
"""

import random
import signal
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from p3o.distributed.world import world
from p3o.stopping import Stopped, note_signals
from p3o.training.checkpoint import Checkpoints, State
from p3o.training.faults import MAX_ROLLBACKS, MAX_SKIPPED_STEPS, NumericalError

Callback = Callable[[int, Mapping[str, int | float]], bool | None]
"""Told the number of the step that is done and its metrics; True ends the training there."""


class CheckpointConfig(BaseModel):
    """How often a stage's training can be gone back to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int | None = Field(50, gt=0, description="Steps between checkpoints; null: only when training is stopped.")
    keep: int = Field(2, gt=0, description="Number of checkpoints to keep per training.")
    best: bool = Field(
        False,
        description="Also keep the best model found at an evaluation (RL: by reward − β·KL), in the folder best/ of the run.",
    )


@runtime_checkable
class Trainer(Protocol):
    """What the loop needs of a trainer."""

    done: int
    """Steps taken so far."""

    @property
    def total(self) -> int:
        """Steps in all."""
        ...

    def step(self) -> Mapping[str, int | float]:
        """Take one step and tell its metrics."""
        ...

    def divert(self, attempt: int) -> None:
        """Go on with other random numbers than before, after a fault."""
        ...

    def state_dict(self) -> State:
        """Everything that the next step depends on, but for the configuration and the data."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Go back to where ``state_dict`` was taken."""
        ...


def fit(
    trainer: Trainer,
    callback: Callback | None = None,
    *,
    checkpoints: Checkpoints | None = None,
    every: int | None = None,
    extra_state: Callable[[], State] = dict,
    roll_back: Callable[[NumericalError, int], None] | None = None,
) -> None:
    """Take the steps that are left.

    Args:
        trainer: at the start, or where ``resume`` put it.
        callback: called, if there is one, after every step, before a checkpoint is written. One that takes long may raise
            ``Stopped`` on all processes: the checkpoint is written, and who resumes does what it left undone.
        checkpoints: where to save; None saves nothing, and a signal then ends the process as usual.
        every: steps between checkpoints; None writes one only when asked to stop.
        extra_state: what the caller wants to find again in the checkpoint, under "extra".
        roll_back: puts the trainer back before a numerical fault, told which one and how often it has happened; None: faults
            end the training.

    Raises:
        NumericalError: if a number is not finite and there is no way back, or after MAX_ROLLBACKS of them.
        Stopped: after SIGINT or SIGTERM, when the step is finished or left and its checkpoint written. A second SIGINT
            interrupts at once.
    """

    def save() -> None:
        if checkpoints is not None:
            state = {"trainer": trainer.state_dict(), "random": random_state(), "extra": extra_state()}
            checkpoints.save(trainer.done, state)

    with note_signals(armed=checkpoints is not None) as asked:
        faults = idle = 0
        while trainer.done < trainer.total:
            try:
                metrics = trainer.step()
            except NumericalError as fault:
                faults += 1
                if roll_back is None or faults > MAX_ROLLBACKS:
                    raise
                roll_back(fault, faults)
                trainer.divert(faults)
                continue
            idle = idle + 1 if metrics.get("skipped_updates") and not metrics.get("updates") else 0
            if idle >= MAX_SKIPPED_STEPS:
                raise NumericalError(
                    f"{idle} steps in a row, up to step {trainer.done}, had no finite gradient; lower the "
                    f"learning rate and check the data"
                )
            finished = callback is not None and _told(callback, trainer.done, metrics, save)
            # Whichever process was asked, all stop after the same step.
            if number := max(world().gather(asked[0] if asked else 0)):
                save()
                name = signal.Signals(number).name
                raise Stopped(
                    number, f"stopped by {name} after step {trainer.done}; everything is saved; continue with --resume"
                )
            if finished:
                return
            if every is not None and trainer.done % every == 0 and trainer.done < trainer.total:
                save()


def _told(callback: Callback, done: int, metrics: Mapping[str, int | float], save: Callable[[], None]) -> bool:
    try:
        return bool(callback(done, metrics))
    except Stopped:
        save()
        raise


def resume(trainer: Trainer, checkpoints: Checkpoints) -> State | None:
    """Put the trainer and all random numbers where the newest whole checkpoint was; returns its "extra", None if there is none.

    Raises:
        P3OError: if all checkpoints are damaged or belong to another model.
    """
    state = checkpoints.latest()
    if state is None:
        return None
    trainer.load_state_dict(state["trainer"])
    restore_random_state(state["random"])
    extra: State = state["extra"]
    return extra


def random_state() -> State:
    """The state of every global random number generator: ours have their own, a user's reward function may use these."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state: State = {
        "python": [version, list(numbers), gauss],
        "numpy": [str(name), [int(key) for key in np.asarray(keys)], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # a run on the processor of a machine with GPUs leaves them alone
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: State) -> None:
    """Put back what ``random_state`` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    saved: list[Any] = state.get("cuda", [])
    if len(saved) == torch.cuda.device_count() and saved:
        torch.cuda.set_rng_state_all(saved)
