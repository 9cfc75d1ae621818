"""Stage 2: the reward model, trained on labelled pairs by the Bradley–Terry loss."""

from collections.abc import Sequence

from pydantic import Field

from p3o.feedback.reward_model import RewardModel
from p3o.functional.preference import bradley_terry_loss
from p3o.models.probe import LayoutChoice
from p3o.training.checkpoint import State
from p3o.training.optimisation import BatchOrder, Optimisation, OptimiserConfig


class RewardTrainingConfig(OptimiserConfig):
    """Settings of reward-model training."""

    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate of AdamW.")
    steps: int | None = Field(None, gt=0, description="Updates; null: as many as one pass over the pairs takes.")
    batch_size: int = Field(32, gt=0, description="Pairs per update.")
    micro_batch_size: int = Field(32, gt=0, description="Pairs per forward pass.")
    evaluate_every: int | None = Field(
        None, gt=0, description="Steps between accuracies on held-out pairs; null: at the end only."
    )
    layout: LayoutChoice = Field(
        "auto",
        description="Rows of one prompt, when scoring too: shared, split or padded; auto: the first that is right.",
    )
    shuffle: bool = Field(
        True, description="Whether to train in random order; false: as the pairs stand in their file."
    )


class RewardTrainer:
    """Trains a reward model in place on labelled pairs.

    Args:
        reward_model: without dropout.
        pairs: (prompt, chosen, rejected) texts.
        config: settings.
        seed: of the order of the pairs.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        pairs: Sequence[tuple[str, str, str]],
        config: RewardTrainingConfig,
        *,
        seed: int,
    ) -> None:
        self.reward_model, self.config = reward_model, config
        self.done = 0
        self.total = config.steps if config.steps is not None else max(1, len(pairs) // config.batch_size)
        self.optimisation = Optimisation({"model": reward_model.model}, config, self.total)
        self.order = BatchOrder(len(pairs), config.batch_size, seed=seed, shuffle=config.shuffle)
        prompts = [prompt for prompt, _, _ in pairs]
        chosen = reward_model.encode(prompts, [text for _, text, _ in pairs])
        self.encoded = list(zip(chosen, reward_model.encode(prompts, [text for _, _, text in pairs]), strict=True))

    def step(self) -> dict[str, int | float]:
        """One update. Returns the Bradley–Terry loss and the share of pairs that were ranked as labelled before it."""
        batch = [self.encoded[i] for i in self.order.next().tolist()]
        size, loss, accuracy = self.config.micro_batch_size, 0.0, 0.0
        for start in range(0, len(batch), size):
            rows = batch[start : start + size]
            # Chosen and rejected in one pass: whatever rounding does to a score, it does to both.
            scores = self.reward_model.forward_groups(rows).view(-1, 2)
            output = bradley_terry_loss(scores[:, 0], scores[:, 1])
            share = len(rows) / len(batch)
            (output.loss * share).backward()
            loss += output.loss.item() * share
            accuracy += output.metrics["accuracy"].item() * share
        learned = self.optimisation.update(lambda: f" in step {self.done + 1} (loss {loss})")
        self.optimisation.advance_schedule()
        self.done += 1
        return {"loss": loss, "accuracy": accuracy} if learned else {"skipped_updates": 1}

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


def ranking_accuracy(reward_model: RewardModel, pairs: Sequence[tuple[str, str, str]]) -> float:
    """Share of (prompt, better, worse) ranked as told; a tie counts one half.

    Raises:
        ValueError: without pairs.
    """
    if not pairs:
        raise ValueError("the accuracy of no pairs")
    outcomes = ranking_outcomes(reward_model, pairs)
    return sum(outcomes) / len(outcomes)


def ranking_outcomes(reward_model: RewardModel, pairs: Sequence[tuple[str, str, str]]) -> list[float]:
    """1 for each (prompt, better, worse) that is ranked as told, 0 for the others, ½ for a tie."""
    prompts = [prompt for prompt, _, _ in pairs]
    scores = reward_model([*prompts, *prompts], [text for _, text, _ in pairs] + [text for _, _, text in pairs])
    better, worse = scores[: len(pairs)], scores[len(pairs) :]
    return [(b > w) + 0.5 * (b == w) for b, w in zip(better, worse, strict=True)]
