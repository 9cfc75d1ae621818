"""Stage 1: supervised fine-tuning. Maximum likelihood of the demonstrations, loss on response tokens only."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from p3o.functional.logprobs import token_logprobs
from p3o.models.tokens import pad_right
from p3o.training.optimisation import OptimiserConfig, batches_of, make_optimiser

EncodedPair = tuple[list[int], list[int]]
"""Ids of a prompt and of a finished response."""


class SFTConfig(OptimiserConfig):
    """Settings of supervised fine-tuning."""

    learning_rate: float = Field(2e-5, gt=0, description="Peak learning rate of AdamW.")
    steps: int | None = Field(None, gt=0, description="Updates; null: as many as one pass over the data takes.")
    batch_size: int = Field(32, gt=0, description="Demonstrations per update.")
    micro_batch_size: int = Field(32, gt=0, description="Demonstrations per forward pass.")


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


def train_sft(
    model: nn.Module,
    rows: Sequence[EncodedPair],
    config: SFTConfig,
    *,
    fill: int,
    seed: int,
    log: Callable[[int, dict[str, float]], None],
) -> None:
    """Train ``model`` in place. ``log`` receives the step (from 1) and {"loss": nats per completion token}."""
    generator = torch.Generator().manual_seed(seed)
    steps = config.steps if config.steps is not None else max(1, len(rows) // config.batch_size)
    optimiser, schedule = make_optimiser(model.parameters(), config, steps)
    batches = batches_of(len(rows), config.batch_size, generator=generator)
    for step in range(1, steps + 1):
        batch = [rows[i] for i in next(batches).tolist()]
        completion_tokens = sum(len(completion) for _, completion in batch)
        total = 0.0
        for start in range(0, len(batch), config.micro_batch_size):
            logprobs, mask = completion_logprobs(model, batch[start : start + config.micro_batch_size], fill=fill)
            # Every completion token of the batch weighs the same, however the rows are split.
            loss = -logprobs[mask].sum() / completion_tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        log(step, {"loss": total})


@torch.no_grad()
def completion_loss(model: nn.Module, rows: Sequence[EncodedPair], *, fill: int, batch_size: int) -> float:
    """Mean negative log-likelihood of these completions, in nats per token."""
    total, tokens = 0.0, 0
    for start in range(0, len(rows), batch_size):
        logprobs, mask = completion_logprobs(model, rows[start : start + batch_size], fill=fill)
        total -= logprobs[mask].sum().item()
        tokens += int(mask.sum())
    return total / tokens
