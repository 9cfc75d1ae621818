"""Stage 1: supervised fine-tuning. Maximum likelihood of the demonstrations, loss on response tokens only."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from p3o.functional.logprobs import token_logprobs
from p3o.models.tokens import pad_right
from p3o.training.checkpoint import State
from p3o.training.checks import check_demonstrations
from p3o.training.optimisation import BatchOrder, Optimisation, OptimiserConfig

EncodedPair = tuple[list[int], list[int]]
"""Ids of a prompt and of a finished response."""


class SFTConfig(OptimiserConfig):
    """Settings of supervised fine-tuning."""

    learning_rate: float = Field(2e-5, gt=0, description="Peak learning rate of AdamW.")
    steps: int | None = Field(None, gt=0, description="Updates; null: as many as one pass over the data takes.")
    batch_size: int = Field(32, gt=0, description="Demonstrations per update.")
    micro_batch_size: int = Field(32, gt=0, description="Demonstrations per forward pass.")
    evaluate_every: int | None = Field(None, gt=0, description="Steps between held-out losses; null: at the end only.")


def completion_logprobs(
    model: nn.Module, rows: Sequence[EncodedPair], *, fill: int
) -> tuple[Float[Tensor, "row time"], Tensor]:
    """Log-prob of every completion token given what precedes it, and the mask that selects them."""
    device = next(model.parameters()).device
    tokens, mask = pad_right([prompt + completion for prompt, completion in rows], fill)
    starts = torch.tensor([len(prompt) for prompt, _ in rows]).unsqueeze(-1)
    is_completion = mask & (torch.arange(tokens.shape[1]) >= starts)
    tokens, mask, is_completion = tokens.to(device), mask.to(device), is_completion.to(device)
    logits = model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits[:, :-1].float()
    return token_logprobs(logits, tokens[:, 1:]), is_completion[:, 1:]


class SFTTrainer:
    """Supervised fine-tuning of ``model`` in place.

    Args:
        model: a causal language model, without dropout.
        rows: demonstrations as ids.
        config: settings.
        fill: the id of padding.
        seed: of the order of the rows.

    Raises:
        P3OError: if there are no rows, or one is longer than the model can read.
    """

    def __init__(
        self, model: nn.Module, rows: Sequence[EncodedPair], config: SFTConfig, *, fill: int, seed: int
    ) -> None:
        self.model, self.rows, self.config, self.fill = model, rows, config, fill
        check_demonstrations(model, rows)
        self.done = 0
        self.total = config.steps if config.steps is not None else max(1, len(rows) // config.batch_size)
        self.optimisation = Optimisation({"model": model}, config, self.total)
        self.order = BatchOrder(len(rows), config.batch_size, seed=seed)

    def step(self) -> dict[str, int | float]:
        """One update. Returns {"loss": nats per completion token}, or that it was skipped."""
        batch = [self.rows[i] for i in self.order.next().tolist()]
        completion_tokens = sum(len(completion) for _, completion in batch)
        size, total = self.config.micro_batch_size, 0.0
        for start in range(0, len(batch), size):
            logprobs, mask = completion_logprobs(self.model, batch[start : start + size], fill=self.fill)
            # Every completion token of the batch weighs the same, however the rows are split.
            loss = -logprobs[mask].sum() / completion_tokens
            loss.backward()
            total += loss.item()
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
def completion_loss(model: nn.Module, rows: Sequence[EncodedPair], *, fill: int, batch_size: int) -> float:
    """Mean negative log-likelihood of these completions, in nats per token."""
    total, tokens = 0.0, 0
    for start in range(0, len(rows), batch_size):
        logprobs, mask = completion_logprobs(model, rows[start : start + batch_size], fill=fill)
        total -= logprobs[mask].sum().item()
        tokens += int(mask.sum())
    return total / tokens
