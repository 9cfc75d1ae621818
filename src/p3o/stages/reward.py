"""The stage that trains the reward model on labelled pairs."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import torch

from p3o.data.embedded import task
from p3o.data.holding_out import held_out_prompts, lot_of
from p3o.distributed import world
from p3o.errors import P3OError
from p3o.evaluation.winrate import head_to_head_by_prompt
from p3o.feedback.reward_model import RewardModel
from p3o.inputs import Pair
from p3o.stages.context import PREFERENCES_FILE, RunContext
from p3o.stages.conversational import read_preference_rows
from p3o.stages.preferences import sample_pairs
from p3o.training.optimisation import unseen
from p3o.training.reward_model import RewardTrainer, ranking_accuracy, ranking_outcomes


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
        if left := unseen(len(rows), config.batch_size, config.steps):
            run.progress.print(f"reward: {left}")
        with run.progress.stage("reward", total=trainer.total) as advance:

            def tell(step: int, metrics: Mapping[str, int | float]) -> None:
                run.folder.metrics({"stage": "reward", "step": step, **metrics})
                advance(1, **metrics)
                if held and (step == trainer.total or (config.evaluate_every and step % config.evaluate_every == 0)):
                    accuracy = ranking_accuracy(reward_model, held)
                    run.folder.metrics({"stage": "reward", "step": step, "heldout_accuracy": accuracy})
                    run.keep_best("reward_model", step, {"accuracy": accuracy}, lambda seen: seen["accuracy"], model)

            run.fit(
                "reward", trainer, tell, advance=advance, rolls_back=config.on_fault == "rollback", owns=is_reward_row
            )
        test: dict[str, Any] = {"pairs": len(held), "prompts": count_prompts(held)}
        if held:
            outcomes = ranking_outcomes(reward_model, held)
            test["accuracy_labels"] = sum(outcomes) / len(outcomes)
            doubt = doubt_about(outcomes, [prompt for prompt, _, _ in held])
            if doubt is not None:
                run.warn(f"reward: {doubt}")
        run.folder.metrics({"stage": "reward_test", **test, **gold_accuracies(run, reward_model)})
        with run.folder.directory("reward_model") as target:
            run.models.save(model, run.tokenizer, target)
        run.forget("reward")


def doubt_about(outcomes: Sequence[float], prompts: Sequence[str]) -> str | None:
    """In words, that the accuracy on held-out pairs cannot be told from guessing; None if it can.

    The test: the 95 % interval over prompts of the share that was ranked as labelled begins above one half.

    Args:
        outcomes: as of ``ranking_outcomes``. Ties are taken for a loss and a win in turn, which rounds their halves down.
        prompts: of the pairs; pairs of one prompt say less than as many of several.
    """
    turns = cycle((-1.0, 1.0))
    signs = [next(turns) if outcome == 0.5 else 2 * outcome - 1 for outcome in outcomes]
    found = head_to_head_by_prompt(signs, prompts)
    if found.low > 0.5:
        return None
    accuracy, asked = sum(outcomes) / len(outcomes), len(set(prompts))
    over = "" if asked == len(outcomes) else f" over {asked} prompts"
    return (
        f"the reward model ranks {accuracy:.0%} of {len(outcomes)} held-out pairs as labelled (95 % interval{over} "
        f"{found.low:.0%} to {found.high:.0%}), which may be chance: RL would then optimise noise; give more "
        f"pairs, train longer, or check the labels"
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
        pairs += read_preference_rows(path, run.tokenizer)
    elif run.config.embedded is not None or run.config.data.preferences is None:
        raise P3OError(f"{path}: does not exist yet; run `p3o sample` on this run first")
    return pairs


def hold_out(run: RunContext, pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """The pairs for the test and those to train on; how many there are is told."""
    held, training = split_by_prompt(pairs, seed=run.seed("held-out pairs"))
    run.progress.print(
        f"reward: training on {len(training)} pairs of {count_prompts(training)} prompts, {len(held)} pairs of "
        f"{count_prompts(held)} prompts held out"
    )
    if not held and len(pairs) >= 10:
        run.warn(
            f"reward: no pairs are held out, because each prompt has too many of the {len(pairs)} pairs, so the "
            f"reward model is not tested; give pairs of more prompts"
        )
    return held, training


def split_by_prompt(pairs: Sequence[Pair], *, seed: int) -> tuple[list[Pair], list[Pair]]:
    """About a tenth of the pairs, and about 500 at most: all pairs of some prompts; and the others. Both in their order.

    A hash of its text and the seed gives each prompt its place in a queue, whatever other prompts there are.
    """
    rows = [prompt for prompt, _, _ in pairs]
    queue = sorted(set(rows), key=lambda prompt: (lot_of(prompt, seed=seed), prompt))
    held = held_out_prompts(rows, min(500, len(pairs) // 10), order=queue)
    return [pair for pair in pairs if pair[0] in held], [pair for pair in pairs if pair[0] not in held]


def count_prompts(pairs: Sequence[Pair]) -> int:
    """How many different prompts there are."""
    return len({prompt for prompt, _, _ in pairs})


def gold_accuracies(run: RunContext, reward_model: RewardModel) -> dict[str, int | float]:
    """How well the model knows the gold reward: on those pairs of SFT samples that differ in it, and across prompts."""
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
    found: dict[str, int | float] = {"gold_pairs": len(ordered)}
    if ordered:
        found["accuracy_gold"] = ranking_accuracy(reward_model, ordered)
    found["cross_prompt_pairs"] = len(across)
    found["accuracy_cross_prompt"] = ranking_accuracy(reward_model, across)
    return found
