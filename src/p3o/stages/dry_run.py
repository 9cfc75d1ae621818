"""`--dry-run`: everything that can be known about a run without doing it.

The configuration is resolved, the files are read and checked as a real run would, the tokenizer is loaded, and one row is
shown as the model will see it, prompt tokens apart from the response tokens that are trained on. No model is loaded and
nothing is written.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from p3o.algorithms import make_algorithm
from p3o.config_feedback import SamplingConfig
from p3o.inputs import starting_model
from p3o.models.language import load_model_config
from p3o.models.tokens import encode_prompts
from p3o.stages.context import PREFERENCES_FILE, RunContext
from p3o.stages.estimates import (
    ModelShape,
    OnlineWork,
    StepEstimate,
    model_shape,
    online_step,
    supervised_step,
)
from p3o.stages.memory import Memory
from p3o.stages.processes import ONE, Processes, processes_of
from p3o.training.passes import TOKENS
from p3o.training.sft import EncodedPair

DEMONSTRATIONS, CHOSEN, REJECTED = "demonstrations", "chosen responses", "rejected responses"
PROMPTS, HELDOUT_PROMPTS = "prompts", "held-out prompts"
_SHOWN_TOKENS = 120


@dataclass(frozen=True)
class Example:
    """One row as ids turned back into text, token by token. ``response`` is what is trained on; empty for a prompt alone."""

    what: str
    prompt: list[str]
    response: list[str]
    prompt_tokens: int
    response_tokens: int


@dataclass(frozen=True)
class TokenCounts:
    """How many rows there are of one kind, and their lengths in tokens."""

    what: str
    rows: int
    mean: float
    longest: int


@dataclass(frozen=True)
class StageOutlook:
    """What a stage would do, and on how many processes. ``estimate`` is None where nothing is trained."""

    stage: str
    does: str
    estimate: StepEstimate | None = None
    processes: Processes = ONE


@dataclass(frozen=True)
class DryRun:
    """What `--dry-run` tells. ``offloads``: whether shards, gradients and moments rest in the CPU's memory."""

    folder: Path
    device: str
    offloads: bool
    model: ModelShape | None
    counts: list[TokenCounts]
    outlooks: list[StageOutlook]
    example: Example | None

    def figures(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"folder": str(self.folder), "status": "dry run"}


def dry_run(run: RunContext) -> DryRun:
    """Look ahead. The context's folder need not be there.

    Raises:
        P3OError: for what a run would refuse at its start, but for reward models, which are not loaded.
    """
    run.check(load_models=False)
    if set(run.stages) <= {"report"}:
        return DryRun(run.folder.path, str(run.device), False, None, [], [StageOutlook("report", "report.html")], None)
    base, rows = _base(run), {what: encoded for what, encoded in _encoded(run) if encoded}
    return DryRun(
        folder=run.folder.path,
        device=str(run.device),
        offloads=run.config.parallel.cpu_offload and run.device.type != "cpu",
        model=model_shape(base, trust_remote_code=run.config.trust_remote_code),
        counts=[_counts(what, encoded) for what, encoded in rows.items()],
        outlooks=[_Outlook(run, base, rows).of(stage) for stage in run.stages],
        example=_example(run, rows),
    )


class _Outlook:
    """Tells of each stage what it would do: the same questions that the stage itself asks."""

    def __init__(self, run: RunContext, base: PretrainedConfig, rows: Mapping[str, Sequence[EncodedPair]]) -> None:
        self.run, self.base, self.rows = run, base, rows
        self.shape = model_shape(base, trust_remote_code=run.config.trust_remote_code)

    def of(self, stage: str) -> StageOutlook:
        if self.run.folder.done(stage):
            return StageOutlook(stage, "already done; --overwrite repeats it")
        tell: Callable[[], StageOutlook] = getattr(self, f"_{stage}")
        return tell()

    def _memory(self) -> Memory:
        return Memory(self.run.config, self.run.device, self.base, processes_of(self.run.config))

    def _sft(self) -> StageOutlook:
        config, rows = self.run.config.sft, self.rows.get(DEMONSTRATIONS, [])
        if config is None:
            return StageOutlook("sft", "skipped: without an sft section, RL starts from the model as it is")
        steps = config.steps if config.steps is not None else max(1, len(rows) // config.batch_size)
        memory = self._memory()
        held = memory.supervised("language", config.optimiser)
        estimate = supervised_step(
            self.shape,
            held.rest,
            memory.arithmetic,
            rows=config.batch_size,
            rows_per_pass=config.micro_batch_size,
            row_tokens=_longest(rows),
            predicted_tokens=max((len(completion) for _, completion in rows), default=0),
            gathered=held.gathered,
            processes=memory.processes.count,
        )
        return StageOutlook("sft", f"{steps} updates on {len(rows)} demonstrations", estimate, memory.processes)

    def _sample(self) -> StageOutlook:
        config = self.run.config
        if config.embedded is not None:
            if not config.reward.is_trained:
                return StageOutlook("sample", f"skipped: no reward model is trained ({config.reward.source})")
            does = f"{config.embedded.pairs} labelled pairs"
        elif config.sampling is not None:
            labeller = config.sampling.labeller
            does = f"at most {self._sampled_pairs(config.sampling)} pairs, " + (
                "to be labelled with p3o label" if labeller is None else f"labelled ({labeller.kind})"
            )
        else:
            return StageOutlook("sample", "skipped: preferences come from data.preferences or are not needed")
        needs = self._needs("sft", "p3o sft") if config.sft is not None else ""
        return StageOutlook("sample", f"{does}{self._alone()}{needs}")

    def _sampled_pairs(self, sampling: SamplingConfig) -> int:
        """Of own prompts, at most: responses may be equal or tied, and prompts that have not been read may be fewer."""
        prompts = min(sampling.prompts, len(self.run.inputs.prompts) or sampling.prompts)
        return prompts * comb(sampling.responses_per_prompt, 2)

    def _reward(self) -> StageOutlook:
        reward = self.run.config.reward
        if not reward.is_trained:
            return StageOutlook("reward", f"skipped: given ({reward.source})")
        config, embedded, sampling = reward.train, self.run.config.embedded, self.run.config.sampling
        samples = sampling is not None and sampling.labeller is not None
        count = embedded.pairs if embedded is not None else len(self.rows.get(CHOSEN, []))
        shared = config.layout != "padded"
        rows = [row for kind in (CHOSEN, REJECTED) for row in self.rows.get(kind, [])]
        # Pairs that are to be sampled are not there yet: of the embedded task they are as long as its demonstrations, of own
        # prompts at most as long as responses may be.
        if embedded is not None:
            rows = self.run.encode(self.run.inputs.demonstrations)
        elif sampling is not None and samples:
            count += self._sampled_pairs(sampling)
            response = [0] * self.run.config.rl.training.max_new_tokens
            rows += [(prompt, response) for prompt, _ in self.rows.get(PROMPTS, [([], [])])]
        steps = config.steps if config.steps is not None else max(1, count // config.batch_size)
        longest = max((len(prompt) * (1 if shared else 2) + 2 * len(response) for prompt, response in rows), default=0)
        memory = self._memory()
        held = memory.supervised("classifier", config.optimiser)
        estimate = supervised_step(
            self.shape,
            held.rest,
            memory.arithmetic,
            rows=config.batch_size,
            rows_per_pass=config.micro_batch_size,
            row_tokens=longest,
            predicted_tokens=0,
            gathered=held.gathered,
            processes=memory.processes.count,
        )
        needs = self._needs("sft", "p3o sft") if self.run.config.sft is not None else ""
        if embedded is not None or (samples and self.run.config.data.preferences is None):
            needs += self._needs(PREFERENCES_FILE, "p3o sample")
        most = " at most" if embedded is None and samples else ""
        return StageOutlook("reward", f"{steps} updates on {count} pairs{most}{needs}", estimate, memory.processes)

    def _rl(self) -> StageOutlook:
        config, memory = self.run.config, self._memory()
        estimates = [self._rl_step(name, memory) for name in config.rl.runs]
        needs = self._needs("sft", "p3o sft") if config.sft is not None else ""
        if config.reward.is_trained:
            needs += self._needs("reward_model", "p3o reward")
        steps = ", ".join(f"{name} {config.rl.training_of(name).steps}" for name in config.rl.runs)
        prompts = len(self.run.inputs.prompts)
        most = max(estimates, key=lambda estimate: estimate.total_bytes)
        return StageOutlook("rl", f"steps: {steps}; on {prompts} prompts{needs}", most, memory.processes)

    def _rl_step(self, name: str, memory: Memory) -> StepEstimate:
        entry, training = self.run.config.rl.runs[name], self.run.config.rl.training_of(name)
        has_critic = make_algorithm(entry.algorithm, **entry.settings).needs_critic
        processes, served = memory.processes, self.run.config.rl.rollout.engine != "local"
        heldout = self.rows.get(HELDOUT_PROMPTS, [])
        at_once, longest = self.run.config.evaluation.batch_size, _longest(self.rows[PROMPTS])
        refit = self.run.config.rl.refit
        candidates = min(at_once, refit.prompts) * refit.responses_per_prompt if entry.refit else 0
        work = OnlineWork(
            prompts=training.prompts_per_step,
            responses=training.responses_per_prompt,
            minibatch=-(-training.prompts_per_step * (1 + training.replay_batches) // training.minibatches),
            epochs=training.epochs,
            prompt_tokens=longest,
            response_tokens=training.max_new_tokens,
            pass_tokens=training.micro_batch_tokens or TOKENS.get(self.run.device.type, 16384),
            pass_prompts=training.micro_batch_prompts,
            # Without the model there is nothing to probe: auto is taken to find one of the others, as it mostly does.
            padded=training.layout == "padded",
            ahead=training.max_staleness > 0,
            served=served,
            sampling_prompts=training.sampling_prompts,
            evaluated=min(at_once, -(-len(heldout) // processes.count)),
            evaluated_prompt_tokens=_longest(heldout),
            refit_tokens=candidates * (longest + training.max_new_tokens),
            processes=processes.count,
        )
        # Shards of the past are kept for its log-probs alone.
        past = 0 if processes.sharded and training.stale_ratio != "sampler" else training.max_staleness
        sent = 1 + training.max_staleness if served and self.run.config.rl.rollout.weights in ("gloo", "nccl") else 1
        held = memory.online(training.optimiser, has_critic=has_critic, copies=past, sent=sent)
        return online_step(
            self.shape, held.rest, memory.arithmetic, work, has_critic=has_critic, gathered=held.gathered
        )

    def _evaluate(self) -> StageOutlook:
        needs = "".join(self._needs(f"rl/{name}", "p3o rl") for name in self.run.config.rl.runs)
        prompts = len(self.run.inputs.heldout_prompts)
        policies = len(self.run.config.rl.runs)
        return StageOutlook("evaluate", f"{policies} policies on {prompts} held-out prompts{self._alone()}{needs}")

    def _report(self) -> StageOutlook:
        return StageOutlook("report", "report.html")

    def _alone(self) -> str:
        """Of what one process does where several train: the first, while the others wait, or the one that called Ray."""
        return "; in one process, with complete models" if processes_of(self.run.config).count > 1 else ""

    def _needs(self, name: str, command: str) -> str:
        """What a stage by itself would find missing."""
        stage = command.removeprefix("p3o ")
        if stage in self.run.stages or (self.run.folder.path / name).exists():
            return ""
        return f"; {name} does not exist yet, run `{command}` first"


def _base(run: RunContext) -> PretrainedConfig:
    start = starting_model(run.config, seed=0)
    if start is not None:
        return start[0].config
    return load_model_config(str(run.config.model), trust_remote_code=run.config.trust_remote_code)


def _encoded(run: RunContext) -> Iterator[tuple[str, list[EncodedPair]]]:
    """Every kind of row that the stages read, encoded; the second half of a prompt alone is empty."""
    inputs = run.inputs
    if "sft" in run.stages:
        yield DEMONSTRATIONS, run.encode(inputs.demonstrations)
        yield "held-out demonstrations", run.encode(inputs.heldout_demonstrations)
    if "reward" in run.stages:
        yield CHOSEN, run.encode([(prompt, chosen) for prompt, chosen, _ in inputs.preferences])
        yield REJECTED, run.encode([(prompt, rejected) for prompt, _, rejected in inputs.preferences])
    if not {"sample", "rl", "evaluate"}.isdisjoint(run.stages):
        yield PROMPTS, [(ids, []) for ids in encode_prompts(run.tokenizer, inputs.prompts)]
        yield HELDOUT_PROMPTS, [(ids, []) for ids in encode_prompts(run.tokenizer, inputs.heldout_prompts)]


def _counts(what: str, rows: Sequence[EncodedPair]) -> TokenCounts:
    lengths = [len(prompt) + len(response) for prompt, response in rows]
    return TokenCounts(what, len(rows), sum(lengths) / len(lengths), max(lengths))


def _longest(rows: Sequence[EncodedPair]) -> int:
    return max((len(prompt) + len(response) for prompt, response in rows), default=0)


def _example(run: RunContext, rows: Mapping[str, Sequence[EncodedPair]]) -> Example | None:
    """The first row of the first kind, as the tokens that the model reads."""
    for what, encoded in rows.items():
        prompt, response = encoded[0]
        return Example(what, _pieces(run, prompt), _pieces(run, response), len(prompt), len(response))
    return None


def _pieces(run: RunContext, ids: Sequence[int]) -> list[str]:
    pieces = [str(run.tokenizer.decode([token])) for token in ids]
    half = _SHOWN_TOKENS // 2
    return pieces if len(pieces) <= _SHOWN_TOKENS else [*pieces[:half], "…", *pieces[-half:]]
