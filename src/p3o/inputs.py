"""What a run learns from, whether it comes from the user's files or from the embedded task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from p3o.config import RunConfig
from p3o.data.embedded import task
from p3o.data.embedded.gold import gold_reward
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.data.formats import read_demonstrations, read_preferences, read_prompts, render_prompt
from p3o.errors import P3OError

Pair = tuple[str, str, str]
"""Prompt, preferred response, other response."""

Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]

HELDOUT_SHARE = 0.2
"""At most this share of the user's prompts is held out when no file of held-out prompts is given."""


@dataclass(frozen=True)
class Inputs:
    """Texts are rendered: chat prompts have gone through the tokenizer's template.

    Attributes:
        demonstrations: prompts and completions for SFT; empty if there is none.
        heldout_demonstrations: for the loss that SFT did not train on.
        preferences: labelled pairs that exist already; the embedded task has none until they are sampled and labelled.
        prompts: training prompts of RL.
        heldout_prompts: of the evaluation.
        gold: the exact reward, where there is one.
    """

    demonstrations: list[tuple[str, str]]
    heldout_demonstrations: list[tuple[str, str]]
    preferences: list[Pair]
    prompts: list[str]
    heldout_prompts: list[str]
    gold: Scorer | None


def read_inputs(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Inputs:
    """Everything that the stages need, read and checked before the first of them starts.

    Raises:
        P3OError: if a file is missing or a row is bad, naming file and line.
    """
    if config.embedded is not None:
        return _embedded_inputs(config)
    data = config.data
    prompts = [
        render_prompt(prompt, tokenizer) for prompt in (read_prompts(Path(data.prompts)) if data.prompts else [])
    ]
    if data.heldout_prompts is not None:
        heldout = [render_prompt(prompt, tokenizer) for prompt in read_prompts(Path(data.heldout_prompts))]
        heldout = heldout[: config.evaluation.prompts]
    else:
        prompts, heldout = _split(prompts, config) if prompts else ([], [])
    demonstrations = [
        (render_prompt(row.prompt, tokenizer), row.completion)
        for row in (read_demonstrations(data.demonstrations) if data.demonstrations else [])
    ]
    preferences = [
        (render_prompt(row.prompt, tokenizer), row.chosen, row.rejected)
        for row in (read_preferences(data.preferences) if data.preferences else [])
    ]
    held = min(256, len(demonstrations) // 20)
    return Inputs(demonstrations[held:], demonstrations[:held], preferences, prompts, heldout, gold=None)


def starting_model(config: RunConfig, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase] | None:
    """The embedded task's own model and tokenizer, or None if the run starts from a given model."""
    if config.embedded is None:
        return None
    tokenizer = build_tokenizer()
    return build_model(tokenizer, seed=seed), tokenizer


def _split(prompts: list[str], config: RunConfig) -> tuple[list[str], list[str]]:
    """Training and held-out prompts: distinct texts, split at random by the run's seed."""
    distinct = list(dict.fromkeys(prompts))
    held = min(config.evaluation.prompts, int(HELDOUT_SHARE * len(distinct)))
    if held < 2:
        raise P3OError(
            f"{config.data.prompts}: {len(distinct)} distinct prompts are too few to hold some out for the evaluation; "
            "give at least 10, or a file of their own as data.heldout_prompts"
        )
    Random(f"held-out prompts {config.seed}").shuffle(distinct)
    return distinct[held:], distinct[:held]


def _embedded_inputs(config: RunConfig) -> Inputs:
    sizes = config.embedded
    assert sizes is not None

    def demonstrations(count: int, split: task.Split) -> list[tuple[str, str]]:
        return [(row.prompt, row.completion) for row in task.demonstrations(count, seed=config.seed, split=split)]

    return Inputs(
        demonstrations=demonstrations(sizes.demonstrations, "train"),
        heldout_demonstrations=demonstrations(256, "heldout"),
        preferences=[],
        prompts=task.prompts(sizes.prompts, seed=config.seed, split="train"),
        heldout_prompts=task.prompts(config.evaluation.prompts, seed=config.seed, split="heldout"),
        gold=gold_reward,
    )
