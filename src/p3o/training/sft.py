"""Stage 1: supervised fine-tuning. Maximum likelihood of the demonstrations, loss on response tokens only.

Several processes draw the same batches; each makes the passes over its share of a batch, whole rows balanced by tokens, and
gradients and losses are summed.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from p3o.distributed.sharding import is_sharded
from p3o.distributed.shares import passes
from p3o.distributed.world import world
from p3o.functional.devices import numbers
from p3o.models.layouts import Layout, Padded
from p3o.models.probe import choose_layout
from p3o.models.tokens import GroupTokens
from p3o.training.checkpoint import State
from p3o.training.checks import check_demonstrations
from p3o.training.optimisation import BatchOrder, Optimisation, OptimiserConfig

EncodedPair = tuple[list[int], list[int]]
"""Ids of a prompt and of a finished response."""


class SFTConfig(OptimiserConfig):
    """Settings of supervised fine-tuning."""

    learning_rate: float = Field(2e-5, gt=0, description="Peak learning rate of AdamW.")
    steps: int | None = Field(
        None, gt=0, description="Number of updates; null: one pass over the rows, in whole batches."
    )
    batch_size: int = Field(32, gt=0, description="Demonstrations per update, over all processes.")
    micro_batch_size: int = Field(32, gt=0, description="Demonstrations per forward pass.")
    evaluate_every: int | None = Field(
        None, gt=0, description="Steps between evaluations of the held-out loss; null: only at the end."
    )


def completion_logprobs(
    model: nn.Module, rows: Sequence[EncodedPair], *, fill: int, layout: Layout | None = None
) -> Float[Tensor, "row time"]:
    """Log-prob of every completion token given what precedes it, with its graph; 0 on padding.

    The head runs where a completion token is predicted, nowhere else.

    Args:
        model: a causal language model of transformers.
        rows: as ids; no prompt is empty.
        fill: the id that padding holds.
        layout: as ``choose_layout`` found it for this model; None: padded, with all predicted logits at once.
    """
    groups = [GroupTokens(list(prompt), [list(completion)], [True]) for prompt, completion in rows]
    time = max(len(completion) for _, completion in rows)
    layout = Padded(budget=None) if layout is None else layout
    return layout.logprobs(model, groups, temperature=1.0, time=time, fill=fill).squeeze(1)


class SFTTrainer:
    """Supervised fine-tuning of ``model`` in place.

    Args:
        model: a causal language model, without dropout.
        rows: demonstrations as ids.
        config: settings.
        fill: the id of padding.
        seed: of the order of the rows.

    Attributes:
        layout: one row per demonstration, its logits in chunks where all of a pass would be too many.

    Raises:
        P3OError: if there are no rows, one has an empty prompt or is longer than the model can read, or the model disagrees
            with itself about padded rows.
    """

    def __init__(
        self, model: nn.Module, rows: Sequence[EncodedPair], config: SFTConfig, *, fill: int, seed: int
    ) -> None:
        self.model, self.rows, self.config, self.fill = model, rows, config, fill
        check_demonstrations(model, rows)
        self.layout = choose_layout(model, choice="padded", responses=1).layout
        self.done = 0
        self.total = config.steps if config.steps is not None else max(1, len(rows) // config.batch_size)
        self.optimisation = Optimisation({"model": model}, config, self.total)
        self.order = BatchOrder(len(rows), config.batch_size, seed=seed)

    def step(self) -> dict[str, int | float]:
        """One update. Returns {"loss": nats per completion token}, or that it was skipped."""
        batch = [self.rows[i] for i in self.order.next().tolist()]
        completion_tokens, losses = sum(len(completion) for _, completion in batch), list[Tensor]()
        for chosen, counts in own_passes(self.model, batch, self.config.micro_batch_size):
            rows = [batch[i] for i in chosen]
            logprobs = completion_logprobs(self.model, rows, fill=self.fill, layout=self.layout)
            # Every completion token of the batch weighs the same, however the rows are split.
            loss = -logprobs.sum() / completion_tokens
            if not counts:
                loss = loss * 0.0
            loss.backward()
            losses.append(loss)
        (total,) = world().totals(sum(numbers(losses)))
        learned = self.optimisation.update(lambda: f" in step {self.done + 1} (loss {total})")
        self.optimisation.advance_schedule()
        self.done += 1
        return {"loss": total} if learned else {"skipped_updates": 1}

    def divert(self, attempt: int) -> None:
        """Take the rows in another order from here on."""
        self.order.divert(attempt)

    def state_dict(self) -> State:
        """Everything that the next step depends on, but for the configuration and the data."""
        return {"done": self.done, "optimisation": self.optimisation.state_dict(), "order": self.order.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Go back to where ``state_dict`` was taken."""
        self.optimisation.load_state_dict(state["optimisation"])
        self.order.load_state_dict(state["order"])
        self.done = state["done"]


@torch.no_grad()
def completion_loss(
    model: nn.Module, rows: Sequence[EncodedPair], *, fill: int, batch_size: int, layout: Layout | None = None
) -> float:
    """Mean negative log-likelihood of these completions, in nats per token; arguments as of ``completion_logprobs``.

    Each process makes its share of the passes, and all get the mean over all rows.
    """
    own = []
    for chosen, counts in own_passes(model, rows, batch_size):
        logprobs = completion_logprobs(model, [rows[i] for i in chosen], fill=fill, layout=layout)
        if counts:
            own.append(-logprobs.sum())
    (total,) = world().totals(sum(numbers(own)))
    return total / sum(len(completion) for _, completion in rows)


def own_passes(model: nn.Module, rows: Sequence[EncodedPair], most: int) -> list[tuple[list[int], bool]]:
    """Indices of the rows of each of this process's passes, ``most`` at a time, and whether the pass counts
    (``shares.passes``)."""
    together = world()
    sizes = [len(prompt) + len(completion) for prompt, completion in rows]
    return passes(sizes, rank=together.rank, parts=together.size, most=most, in_step=is_sharded(model))
