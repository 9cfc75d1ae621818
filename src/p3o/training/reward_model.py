"""Stage 2: the reward model, trained on labelled pairs by the Bradley–Terry loss."""

from collections.abc import Callable, Sequence

import torch
from pydantic import Field

from p3o.feedback.reward_model import RewardModel
from p3o.functional.preference import bradley_terry_loss
from p3o.training.optimisation import OptimiserConfig, batches_of, make_optimiser


class RewardTrainingConfig(OptimiserConfig):
    """Settings of reward-model training."""

    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate of AdamW.")
    steps: int | None = Field(None, gt=0, description="Updates; null: as many as one pass over the pairs takes.")
    batch_size: int = Field(32, gt=0, description="Pairs per update.")
    micro_batch_size: int = Field(32, gt=0, description="Pairs per forward pass.")
    shuffle: bool = Field(
        True, description="Whether to train in random order; false: as the pairs stand in their file."
    )


def train_reward_model(
    reward_model: RewardModel,
    pairs: Sequence[tuple[str, str, str]],
    config: RewardTrainingConfig,
    *,
    seed: int,
    log: Callable[[int, dict[str, float]], None],
) -> None:
    """Train in place on (prompt, chosen, rejected) texts. ``log`` receives the step (from 1), loss and accuracy."""
    generator = torch.Generator().manual_seed(seed)
    steps = config.steps if config.steps is not None else max(1, len(pairs) // config.batch_size)
    model = reward_model.model
    optimiser, schedule = make_optimiser(model.parameters(), config, steps)
    batches = batches_of(len(pairs), config.batch_size, generator=generator, shuffle=config.shuffle)
    prompts = [prompt for prompt, _, _ in pairs]
    chosen_ids = reward_model.encode(prompts, [text for _, text, _ in pairs])
    encoded = list(zip(chosen_ids, reward_model.encode(prompts, [text for _, _, text in pairs]), strict=True))
    for step in range(1, steps + 1):
        batch = [encoded[i] for i in next(batches).tolist()]
        loss, accuracy = 0.0, 0.0
        for start in range(0, len(batch), config.micro_batch_size):
            rows = batch[start : start + config.micro_batch_size]
            # Chosen and rejected in one pass: whatever padding does to a score, it does to both.
            scores = reward_model.forward([chosen for chosen, _ in rows] + [rejected for _, rejected in rows])
            output = bradley_terry_loss(scores[: len(rows)], scores[len(rows) :])
            share = len(rows) / len(batch)
            (output.loss * share).backward()
            loss += output.loss.item() * share
            accuracy += output.metrics["accuracy"].item() * share
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        log(step, {"loss": loss, "accuracy": accuracy})


def ranking_accuracy(reward_model: RewardModel, pairs: Sequence[tuple[str, str, str]]) -> float:
    """Share of (prompt, better, worse) ranked as told; a tie counts one half."""
    prompts = [prompt for prompt, _, _ in pairs]
    better = reward_model(prompts, [text for _, text, _ in pairs])
    worse = reward_model(prompts, [text for _, _, text in pairs])
    return sum((b > w) + 0.5 * (b == w) for b, w in zip(better, worse, strict=True)) / len(pairs)
