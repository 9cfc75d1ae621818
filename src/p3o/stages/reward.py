"""The stage that trains the reward model on labelled pairs."""

from collections.abc import Mapping
from typing import Any

import torch

from p3o.data.embedded import task
from p3o.distributed import world
from p3o.errors import P3OError
from p3o.evaluation.winrate import wilson_interval
from p3o.feedback.reward_model import RewardModel
from p3o.files import read_jsonl
from p3o.inputs import Pair
from p3o.stages.context import PREFERENCES_FILE, RunContext
from p3o.stages.preferences import sample_pairs
from p3o.training.reward_model import RewardTrainer, ranking_accuracy


def reward(run: RunContext) -> None:
    """Train the reward model on labelled pairs; skipped if the reward is given."""
    reward = run.config.reward
    if not reward.is_trained:
        run.progress.print(f"reward: given ({reward.source}), nothing to train")
        return
    pairs = labelled_pairs(run)
    with run.folder.stage("reward", resume=run.resume):
        # The head is new and drawn at random: the seed makes it the same each time.
        torch.manual_seed(run.seed("reward head"))
        model = run.models.reward(run.sft_folder, trained=True)
        config = reward.train
        reward_model = RewardModel(model, run.tokenizer, layout=config.layout)
        run.progress.print(f"{reward_model}; {run.processes}")
        held, rows = hold_out(run, pairs)
        trainer = RewardTrainer(reward_model, rows, config, seed=run.seed("reward"))
        with run.progress.stage("reward", total=trainer.total) as advance:

            def tell(step: int, metrics: Mapping[str, int | float]) -> None:
                run.folder.metrics({"stage": "reward", "step": step, **metrics})
                advance(1, **metrics)
                if held and (step == trainer.total or (config.evaluate_every and step % config.evaluate_every == 0)):
                    accuracy = ranking_accuracy(reward_model, held)
                    run.folder.metrics({"stage": "reward", "step": step, "heldout_accuracy": accuracy})
                    run.keep_best("reward_model", step, accuracy, model)

            run.fit(
                "reward", trainer, tell, advance=advance, rolls_back=config.on_fault == "rollback", owns=is_reward_row
            )
        test: dict[str, Any] = {"pairs": len(held)}
        if held:
            test["accuracy_labels"] = ranking_accuracy(reward_model, held)
            doubt = doubt_about(test["accuracy_labels"], len(held))
            if doubt is not None:
                run.warn(f"reward: {doubt}")
        run.folder.metrics({"stage": "reward_test", **test, **gold_accuracies(run, reward_model)})
        with run.folder.directory("reward_model") as target:
            run.models.save(model, run.tokenizer, target)
        run.forget("reward")


def doubt_about(accuracy: float, pairs: int) -> str | None:
    """In words, that this accuracy on held-out pairs cannot be told from guessing; None if it can.

    The test: the 95 % Wilson interval of the pairs that were ranked as labelled (ties count one half, rounded down) begins
    above one half.
    """
    low, high = wilson_interval(round(2 * accuracy * pairs) // 2, pairs)
    if low > 0.5:
        return None
    return (
        f"the reward model ranks {accuracy:.0%} of {pairs} held-out pairs as labelled (95 % interval {low:.0%} to {high:.0%}), "
        "which may be chance: RL would optimise noise; give more pairs, train longer, or look at the labels"
    )


def is_reward_row(row: Mapping[str, Any]) -> bool:
    """Whether this stage writes the row of metrics.jsonl."""
    return row.get("stage") in ("reward", "reward_test")


def labelled_pairs(run: RunContext) -> list[Pair]:
    """The pairs to train on: the user's and those that the sample stage had labelled, in the order of their files."""
    pairs = list(run.inputs.preferences)
    path = run.folder.path / PREFERENCES_FILE
    if path.exists():
        # Written by the sample stage; unlike a user's file it may hold an empty response, which a policy can well give.
        pairs += [(row["prompt"], row["chosen"], row["rejected"]) for row in read_jsonl(path)]
    elif run.config.embedded is not None or run.config.data.preferences is None:
        raise P3OError(f"{path}: not there yet; run `p3o sample` in this run folder first")
    return pairs


def hold_out(run: RunContext, pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """A tenth of the pairs, at most 500, drawn at random for the test; and the others in their order."""
    generator = torch.Generator().manual_seed(run.seed("held-out pairs"))
    held = set(torch.randperm(len(pairs), generator=generator)[: min(500, len(pairs) // 10)].tolist())
    return [pairs[i] for i in sorted(held)], [pair for i, pair in enumerate(pairs) if i not in held]


def gold_accuracies(run: RunContext, reward_model: RewardModel) -> dict[str, int | float]:
    """How well the model knows the gold reward: on pairs of SFT samples, and across prompts."""
    if run.config.embedded is None or run.inputs.gold is None:
        return {}
    heldout = run.inputs.heldout_prompts
    sampled = world().done_by_first(lambda: sample_pairs(run, heldout, seed=run.seed("reward test")))
    gold_a, gold_b = (run.inputs.gold([p[0] for p in sampled], [p[i] for p in sampled]) for i in (1, 2))
    ordered = [
        (x, a, b) if left > right else (x, b, a)
        for (x, a, b), left, right in zip(sampled, gold_a, gold_b, strict=True)
        if left != right
    ]
    across = [
        (pair.prompt, pair.response_a, pair.response_b)
        for pair in task.cross_prompt_pairs(len(heldout), seed=run.seed("cross"), split="heldout")
    ]
    return {
        "gold_pairs": len(ordered),
        "accuracy_gold": ranking_accuracy(reward_model, ordered),
        "cross_prompt_pairs": len(across),
        "accuracy_cross_prompt": ranking_accuracy(reward_model, across),
    }
