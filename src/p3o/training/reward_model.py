"""Stage 2: the reward model, trained on labelled pairs by the Bradley–Terry loss.

Several processes draw the same batches; each makes the passes over its share of a batch, whole pairs balanced by tokens, and
gradients and metrics are summed.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from p3o.distributed.sharding import is_sharded
from p3o.distributed.shares import passes
from p3o.distributed.world import world
from p3o.feedback.reward_model import RewardModel
from p3o.functional.devices import numbers
from p3o.functional.preference import bradley_terry_loss
from p3o.models.probe import LayoutChoice
from p3o.training.checkpoint import State
from p3o.training.optimisation import BatchOrder, Optimisation, OptimiserConfig

EncodedPair = list[list[int]]
"""The rows of the chosen and of the rejected response, prompt included."""


class RewardTrainingConfig(OptimiserConfig):
    """Settings of reward-model training."""

    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate of AdamW.")
    steps: int | None = Field(
        None, gt=0, description="Number of updates; null: one pass over the pairs, in whole batches."
    )
    batch_size: int = Field(32, gt=0, description="Pairs per update, over all processes.")
    micro_batch_size: int = Field(32, gt=0, description="Pairs per forward pass.")
    evaluate_every: int | None = Field(
        None, gt=0, description="Steps between evaluations of the accuracy on held-out pairs; null: only at the end."
    )
    layout: LayoutChoice = Field(
        "auto",
        description="How the rows of one prompt are laid out, also when scoring: shared, split or padded; auto: "
        "the first that gives correct results.",
    )
    shuffle: bool = Field(True, description="Train on the pairs in random order; false: in the order of their file.")


class RewardTrainer:
    """Trains a reward model in place on labelled pairs.

    Args:
        reward_model: without dropout.
        pairs: (prompt, chosen, rejected) texts.
        config: settings.
        seed: of the order of the pairs.

    Raises:
        P3OError: if there are no pairs, or the model cannot read a row.
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
        self.encoded = reward_model.encode_pairs(pairs)
        self.done = 0
        self.total = config.steps if config.steps is not None else max(1, len(pairs) // config.batch_size)
        self.optimisation = Optimisation({"model": reward_model.model}, config, self.total)
        self.order = BatchOrder(len(pairs), config.batch_size, seed=seed, shuffle=config.shuffle)

    def step(self) -> dict[str, int | float]:
        """One update. Returns the Bradley–Terry loss and the share of pairs that were ranked as labelled before it."""
        batch = [self.encoded[i] for i in self.order.next().tolist()]
        seen: list[Tensor] = []
        shares: list[float] = []
        for chosen, counts in own_passes(self.reward_model, batch, self.config.micro_batch_size):
            pairs = [batch[number] for number in chosen]
            # Chosen and rejected in one pass: whatever rounding does to a score, it does to both.
            scores = self.reward_model.forward_groups(pairs).view(-1, 2)
            output = bradley_terry_loss(scores[:, 0], scores[:, 1])
            share = counts * len(pairs) / len(batch)
            (output.loss * share).backward()
            seen += [output.loss, output.metrics["accuracy"]]
            shares += [share, share]
        read = [number * share for number, share in zip(numbers(seen), shares, strict=True)]
        loss, accuracy = world().totals(sum(read[::2]), sum(read[1::2]))
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
        P3OError: if the model cannot read a row.
        ValueError: without pairs.
    """
    if not pairs:
        raise ValueError("the accuracy of no pairs")
    outcomes = ranking_outcomes(reward_model, pairs)
    return sum(outcomes) / len(outcomes)


@torch.no_grad()
def ranking_outcomes(reward_model: RewardModel, pairs: Sequence[tuple[str, str, str]]) -> list[float]:
    """1 for each (prompt, better, worse) that is ranked as told, 0 for the others, ½ for a tie. Each process scores its share.

    Raises:
        P3OError: if the model cannot read a row.
    """
    encoded = reward_model.encode_pairs(pairs)
    order = sorted(range(len(pairs)), key=lambda number: tokens(encoded[number]))  # less padding
    outcomes = torch.zeros(len(pairs), dtype=torch.float64)
    for places, counts in own_passes(
        reward_model, [encoded[number] for number in order], max(1, reward_model.batch_size // 2)
    ):
        chosen = [order[place] for place in places]
        scores = reward_model.forward_groups([encoded[number] for number in chosen])
        better, worse = scores.view(-1, 2).unbind(-1)
        if counts:
            outcomes[chosen] = ((better > worse).double() + 0.5 * (better == worse).double()).cpu()
    return [float(outcome) for outcome in world().sum_(outcomes)]


def own_passes(reward_model: RewardModel, pairs: Sequence[EncodedPair], most: int) -> list[tuple[list[int], bool]]:
    """The numbers of the pairs of each of this process's passes, ``most`` at a time, and whether the pass counts
    (``shares.passes``).

    Through sharded weights, pairs that are read together and pairs that are not go in passes of their own, so that each pass
    is one forward pass on all processes.
    """
    together, in_step = world(), is_sharded(reward_model.model)
    return passes(
        [tokens(pair) for pair in pairs],
        rank=together.rank,
        parts=together.size,
        most=most,
        in_step=in_step,
        kinds=[reward_model.reads_together(pair) for pair in pairs] if in_step else None,
    )


def tokens(pair: EncodedPair) -> int:
    """Of both rows, what they share counted twice."""
    return sum(map(len, pair))
