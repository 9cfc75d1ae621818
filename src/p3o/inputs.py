"""What a run learns from, whether it comes from the user's data or from the embedded task."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from random import Random

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from p3o.config import RunConfig
from p3o.data.chat import adopt_turn_end, is_conversation
from p3o.data.embedded import task
from p3o.data.embedded.gold import gold_reward
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.data.formats import Kind, Message
from p3o.data.holding_out import held_out_prompts, lot_of
from p3o.data.reading import Lengths, Limits, PlacedExample, TextRow, drop_too_long, read_examples, render_rows
from p3o.data.rows import RowReport
from p3o.errors import P3OError
from p3o.models.language import load_model_config
from p3o.models.tokens import encode_prompts, encode_responses
from p3o.training.progress import Progress

Pair = tuple[str, str, str]
"""Prompt, preferred response, other response."""

Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]

HELDOUT_SHARE = 0.2
"""At most this share of the user's prompts is held out when no source of held-out prompts is given."""

_CHUNK = 1000
"""Rows tokenised at a time."""

KINDS: dict[str, Kind] = {
    "demonstrations": "demonstrations",
    "preferences": "preferences",
    "prompts": "prompts",
    "heldout_prompts": "prompts",
}
"""What the rows of each source of the data section are."""


@dataclass(frozen=True)
class Inputs:
    """Texts are rendered: chat prompts have gone through the tokenizer's template.

    Attributes:
        demonstrations: prompts and completions for SFT; empty if there is none.
        heldout_demonstrations: for the loss, of prompts that SFT did not train on.
        preferences: labelled pairs that exist already; the embedded task has none until they are sampled and labelled.
        prompts: training prompts of RL.
        heldout_prompts: of the evaluation.
        gold: the exact reward, where there is one.
        conversations: the messages behind each prompt that was rendered from some; for reward models with a template of their
            own. Where two render to one text, the policy cannot tell them apart either; the first is kept.
        reports: what became of the rows of each source; empty for the embedded task.
    """

    demonstrations: list[tuple[str, str]]
    heldout_demonstrations: list[tuple[str, str]]
    preferences: list[Pair]
    prompts: list[str]
    heldout_prompts: list[str]
    gold: Scorer | None
    conversations: Mapping[str, tuple[Message, ...]] = field(default_factory=dict)
    reports: tuple[RowReport, ...] = ()


def read_inputs(config: RunConfig, tokenizer: PreTrainedTokenizerBase, *, progress: Progress | None = None) -> Inputs:
    """Everything that the stages need, read and checked before the first of them starts.

    For conversations the token that ends a turn in the chat template becomes the tokenizer's end of sequence.

    Args:
        progress: is told of dropped rows, an adopted end of sequence and prompts that are not held out, a line each.

    Raises:
        P3OError: if a source cannot be read, holds too little, or has a bad row while bad rows stop the run; with the row.
    """
    if config.embedded is not None:
        return _embedded_inputs(config)
    progress = progress or Progress()
    found = {
        name: read_examples(source, KINDS[name], config.data.bad_rows) for name, source in config.data.sources().items()
    }
    if any(is_conversation(placed.example.prompt) for examples, _ in found.values() for placed in examples):
        adopted = adopt_turn_end(tokenizer)
        if adopted is not None:
            progress.print(adopted)
    rows: dict[str, list[TextRow]] = {}
    for name, (examples, report) in found.items():
        rows[name] = fitting_rows(examples, tokenizer, limits_of(config, tokenizer), report, progress)
        if report.dropped:
            progress.print(report.summary())
    inputs = _assemble(config, rows, tuple(report for _, report in found.values()), progress)
    _check_sizes(config, inputs)
    return inputs


def _assemble(
    config: RunConfig, rows: dict[str, list[TextRow]], reports: tuple[RowReport, ...], progress: Progress
) -> Inputs:
    prompts = [row.prompt for row in rows.get("prompts", [])]
    if "heldout_prompts" in rows:
        heldout = list(dict.fromkeys(row.prompt for row in rows["heldout_prompts"]))
        if len(heldout) > config.evaluation.prompts:
            # At random: a data set of several parts holds them one after another.
            heldout = Random(f"held-out prompts {config.seed}").sample(heldout, config.evaluation.prompts)
    else:
        if repeated := len(prompts) - len(set(prompts)):
            progress.print(
                f"data.prompts: {repeated} rows repeat the prompt of another row; each prompt is used once, "
                f"because some are held out"
            )
        prompts, heldout = _split(prompts, config) if prompts else ([], [])
    demonstrations = [(row.prompt, row.answers[0]) for row in rows.get("demonstrations", [])]
    preferences = [(row.prompt, *row.answers) for row in rows.get("preferences", [])]
    trained = {"prompts": prompts} | {
        name: [row.prompt for row in rows.get(name, [])] for name in ("demonstrations", "preferences")
    }
    for name, texts in trained.items():
        if seen := len(set(heldout).intersection(texts)):
            progress.print(
                f"held-out prompts: {seen} of {len(heldout)} are also in data.{name}; a model trained on those has seen them"
            )
    wanted = min(256, len(demonstrations) // 20)
    # By a hash, as pairs are: the first ones of a data set of several parts would all be of one part.
    queue = sorted(
        {prompt for prompt, _ in demonstrations}, key=lambda prompt: (lot_of(prompt, seed=config.seed), prompt)
    )
    held = held_out_prompts([prompt for prompt, _ in demonstrations], wanted, order=queue)
    if wanted and not held:
        progress.print(
            f"data.demonstrations: none is held out, so there is no held-out loss; at most {wanted} of the "
            f"{len(demonstrations)} may be held out, and every prompt has more"
        )
    conversations: dict[str, tuple[Message, ...]] = {}
    for row in chain.from_iterable(rows.values()):
        if row.messages is not None:
            conversations.setdefault(row.prompt, row.messages)
    return Inputs(
        [row for row in demonstrations if row[0] not in held],
        [row for row in demonstrations if row[0] in held],
        [(prompt, chosen, rejected) for prompt, chosen, rejected in preferences],
        prompts,
        heldout,
        gold=None,
        conversations=conversations,
        reports=reports,
    )


def fitting_rows(
    examples: Sequence[PlacedExample],
    tokenizer: PreTrainedTokenizerBase,
    limits: Limits,
    report: RowReport,
    progress: Progress,
) -> list[TextRow]:
    """The examples as text, without those that are too long.

    Raises:
        P3OError: at the first bad row, if bad rows stop the run; if none is left.
    """
    rows = render_rows(examples, tokenizer, report)
    kept = drop_too_long(rows, token_lengths(rows, tokenizer, progress, report.source), limits, report)
    report.refuse_if_empty()
    return kept


def token_lengths(
    rows: Sequence[TextRow], tokenizer: PreTrainedTokenizerBase, progress: Progress, source: str
) -> list[Lengths]:
    """The token counts of every row, as the stages will encode it; ``source`` is what the progress calls them."""
    lengths: list[Lengths] = []
    worth_showing = len(rows) > 10 * _CHUNK
    with progress.stage(f"counting tokens of {source}", len(rows)) if worth_showing else nullcontext() as advance:
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            prompts = encode_prompts(tokenizer, [row.prompt for row in chunk])
            answers = iter(encode_responses(tokenizer, [answer for row in chunk for answer in row.answers]))
            lengths += [
                Lengths(len(prompt), tuple(len(next(answers)) for _ in row.answers))
                for row, prompt in zip(chunk, prompts, strict=True)
            ]
            if advance is not None:
                advance(len(chunk))
    return lengths


def limits_of(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Limits:
    """How long rows may be: by the data section, and by what the model can read. RL needs room for a response."""
    return Limits(
        config.data.max_prompt_tokens,
        config.data.max_completion_tokens,
        context_length(config.model, tokenizer, trust_remote_code=config.trust_remote_code),
        config.rl.training.max_new_tokens if config.rl.runs else 0,
    )


def context_length(model: str | None, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool = False) -> int:
    """How many tokens the model can read: the smaller of what its tokenizer and its configuration say."""
    limit = int(tokenizer.model_max_length)
    if model is not None:
        positions = getattr(
            load_model_config(model, trust_remote_code=trust_remote_code), "max_position_embeddings", None
        )
        limit = min(limit, positions or limit)
    return limit


def _check_sizes(config: RunConfig, inputs: Inputs) -> None:
    """A source smaller than one batch is told now, not found as no steps at all after hours of other stages."""
    needed = max((config.rl.training_of(name).prompts_per_step for name in config.rl.runs), default=1)
    wanted = [("prompts", len(inputs.prompts), needed, "rl.training.prompts_per_step", "training prompts")]
    if config.sft is not None:
        size = config.sft.batch_size
        wanted.append(("demonstrations", len(inputs.demonstrations), size, "sft.batch_size", "training demonstrations"))
    if config.reward.is_trained:
        size = config.reward.train.batch_size
        wanted.append(("preferences", len(inputs.preferences), size, "reward.train.batch_size", "pairs"))
    sources = config.data.sources()
    if "heldout_prompts" in sources and len(inputs.heldout_prompts) < 2:
        raise P3OError(
            f"data.heldout_prompts ({sources['heldout_prompts']}): only one distinct prompt, but the standard "
            f"error needs two; add prompts"
        )
    for name, found, size, key, what in wanted:
        if name in sources and found < size:
            raise P3OError(
                f"data.{name} ({sources[name]}): {found} {what} are fewer than {key} = {size}; give more rows or lower it"
            )


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
            f"{config.data.prompts}: {len(distinct)} distinct prompts are too few to hold some out for "
            f"evaluation; give at least 10, or separate prompts as data.heldout_prompts"
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
