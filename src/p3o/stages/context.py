"""What the stages of a run share: its configuration, folder, texts, models and reward."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from p3o.algorithms import make_algorithm
from p3o.config import RunConfig
from p3o.distributed import world
from p3o.errors import P3OError
from p3o.feedback.combined import CombinedReward
from p3o.feedback.judge import ANSWERS_FILE
from p3o.files import remove, write_json
from p3o.inputs import Inputs, Scorer, read_inputs, starting_model
from p3o.models.ends import end_ids
from p3o.models.language import load_tokenizer
from p3o.models.sampling import sample_responses
from p3o.models.tokens import decode_responses, encode_prompts, encode_responses, pad_id, pad_left
from p3o.stages.feedback import Feedback
from p3o.stages.models import Models
from p3o.stages.shardable import refuse_unshardable
from p3o.training.checkpoint import Checkpoints, State
from p3o.training.faults import NumericalError, Watch
from p3o.training.growing import drop_rows, lengths_of, rewind
from p3o.training.loop import Callback, Trainer, fit, resume
from p3o.training.progress import Advance, Progress
from p3o.training.sft import EncodedPair
from p3o.training.tracking import METRICS_FILE, RunFolder

SFT_POLICY = "sft"
STAGE_ORDER = ("sft", "sample", "reward", "rl", "evaluate", "report")
PREFERENCES_FILE, RESPONSES_FILE, SAMPLES_FILE = "preferences.jsonl", "responses.jsonl", "samples.jsonl"
PAIRS_FILE, ROWS_FILE = "pairs.jsonl", "data.json"
GROWING_FILES = (METRICS_FILE, SAMPLES_FILE)
"""Files that a training appends to; a checkpoint knows how long they were."""

CHECKPOINTS = "checkpoints"
BEST, BEST_FILE = "best", "best.json"
_BEST_OF = {"reward": "reward_model"}
"""Under best/, of trainings that are called otherwise than what they make."""


class RunContext:
    """One run; what several stages need is loaded once."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        progress: Progress,
        stages: Sequence[str] = STAGE_ORDER,
        *,
        resume: bool = False,
    ) -> None:
        self.config, self.folder, self.progress = config, folder, progress
        self.stages, self.resume = tuple(stages), resume
        if world().size > 1 and config.device.startswith("cuda:"):
            raise P3OError(
                f"device: {config.device} names one GPU, but {world().size} processes each need their own; use cuda or auto"
            )
        self.device = choose_device(config.device)

    def seed(self, purpose: str) -> int:
        """A seed for each purpose, so that changing one stage leaves the random numbers of the others alone."""
        return int.from_bytes(hashlib.sha256(f"{self.config.seed} {purpose}".encode()).digest()[:6])

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the language model."""
        start = starting_model(self.config, self.config.seed)
        return (
            start[1]
            if start is not None
            else load_tokenizer(str(self.config.model), trust_remote_code=self.config.trust_remote_code)
        )

    @cached_property
    def inputs(self) -> Inputs:
        """The texts that the stages read."""
        return read_inputs(self.config.for_stages(self.stages), self.tokenizer, progress=self.progress)

    @property
    def sft_folder(self) -> str:
        """Where the SFT model is: this run's own, or the given model if there is no SFT stage."""
        if self.config.sft is None:
            return str(self.config.model)
        return self.required("sft", "p3o sft")

    @cached_property
    def models(self) -> Models:
        """Loads and saves models as the configuration wants them."""
        models = Models(self.config, self.device, adapter_seed=self.seed("adapter"), warn=self.warn)
        self.progress.print(f"models: {models.precision(trained=True)} on {self.device}")
        return models

    @property
    def processes(self) -> str:
        """How many processes train, and what they share, in words."""
        size = world().size
        if size == 1:
            return "one process" + (", nothing is sharded" if self.config.parallel.mode == "fsdp" else "")
        return f"{size} processes, {'sharded' if self.models.is_sharding else 'each with complete models'}"

    @property
    def feedback(self) -> Feedback:
        """Builds what scores or compares responses."""
        return Feedback(
            self.config.reward,
            self.models,
            trained=lambda: self.required("reward_model", "p3o reward"),
            conversations=self.inputs.conversations,
            references=lambda: self.reference_responses,
            warn=self.warn,
            answers=self.folder.path / ANSWERS_FILE if self.folder.is_ready else None,
            finite=not self.tolerates_faults,
        )

    @property
    def tolerates_faults(self) -> bool:
        """Whether any RL run does something else than stop at a reward that is not finite."""
        training = self.config.rl.training_of
        return any(training(name).on_fault != "stop" for name in self.config.rl.runs)

    @cached_property
    def scorer(self) -> Scorer:
        """The reward of RL and of the evaluation."""
        return self.feedback.scorer()

    @cached_property
    def reference_responses(self) -> dict[str, str]:
        """One sampled response of the SFT model to each held-out prompt."""
        prompts = list(dict.fromkeys(self.inputs.heldout_prompts))
        policy = self.models.fixed(self.sft_folder)
        groups = sample_texts(self, policy, prompts, responses=1, seed=self.seed("reference responses"))
        return {prompt: group[0] for prompt, group in zip(prompts, groups, strict=True)}

    def reward_means(self) -> dict[str, float]:
        """The mean of each part of a weighted reward since this was last asked; {} for other rewards."""
        return self.scorer.take_means() if isinstance(self.scorer, CombinedReward) else {}

    def fit(
        self,
        name: str,
        trainer: Trainer,
        callback: Callback,
        *,
        advance: Advance,
        rolls_back: bool,
        owns: Callable[[Mapping[str, Any]], bool],
        start: Callable[[], None] = lambda: None,
        resumed: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Train, from the last checkpoint of this name where the run is resumed.

        Args:
            name: of the training, under checkpoints/.
            trainer: before its first step.
            callback: told every step that is done.
            advance: of the progress; told how far an earlier attempt had come.
            rolls_back: whether to go back to the last checkpoint after a numerical fault.
            owns: rows of the run's JSONL files that this training writes.
            start: called before the first step, but not when an earlier attempt has come further.
            resumed: called with the steps that are done whenever training goes on from a checkpoint.
        """
        every, keep = self.config.checkpoints.every, self.config.checkpoints.keep
        checkpoints = Checkpoints(
            self.folder.path / CHECKPOINTS / name, keep=keep, warn=lambda text: self.progress.print(f"{name}: {text}")
        )
        found = resume(trainer, checkpoints) if self.resume else None
        if found is not None:
            rewind(self.folder.path, found["lengths"])
            self.progress.print(f"{name}: continuing after step {trainer.done}")
            advance(trainer.done)
            resumed(trainer.done)
        else:
            checkpoints.remove()
            if world().first:  # the best of an earlier training, perhaps on other data, is none of this one's
                remove(self.folder.path / BEST / _BEST_OF.get(name, name))
            for file in GROWING_FILES:
                drop_rows(self.folder.path / file, owns)
            start()

        def roll_back(fault: NumericalError, attempt: int) -> None:
            state = resume(trainer, checkpoints)
            if state is None:
                raise fault
            rewind(self.folder.path, state["lengths"])
            resumed(trainer.done)
            self.warn(f"{name}: {fault}; rolled back to step {trainer.done} (attempt {attempt})")

        watch = Watch()

        def watched(step: int, metrics: Mapping[str, int | float]) -> bool | None:
            for sign in watch.notice(metrics):
                self.warn(f"{name}, step {step}: {sign}")
            return callback(step, metrics)

        lengths: Callable[[], State] = lambda: {"lengths": lengths_of(self.folder.path, GROWING_FILES)}  # noqa: E731
        fit(
            trainer,
            watched,
            checkpoints=checkpoints,
            every=every,
            extra_state=lengths,
            roll_back=roll_back if rolls_back else None,
        )

    def warn(self, text: str) -> None:
        """Say it now and keep it in run.json."""
        self.progress.print(f"warning: {text}")
        self.folder.warn(text)

    def keep_best(
        self,
        name: str,
        step: int,
        measured: Mapping[str, int | float],
        worth: Callable[[Mapping[str, Any]], int | float],
        model: nn.Module,
    ) -> None:
        """Save the model as best/NAME if it is worth more than the one there; only if the configuration asks for it.

        Args:
            name: under best/.
            step: of the training.
            measured: what the worth is a function of, at this step; kept beside the model.
            worth: as things stand now. What was kept is valued anew by it.
            model: to be saved.
        """
        if not self.config.checkpoints.best:
            return
        record, value = self.folder.path / BEST / name / BEST_FILE, worth(measured)
        better = step == 0 or not record.exists() or worth(json.loads(record.read_bytes())) < value
        if not world().from_first(better):
            return
        with self.folder.directory(f"{BEST}/{name}") as target:
            self.models.save(model, self.tokenizer, target)
            if world().first:
                write_json(target / BEST_FILE, {"step": step, "value": value, **measured})

    def forget(self, name: str) -> None:
        """Remove the checkpoints of a training whose result is saved."""
        Checkpoints(self.folder.path / CHECKPOINTS / name).remove()

    def required(self, name: str, command: str) -> str:
        """The folder of an earlier stage's result.

        Raises:
            P3OError: if that stage has not been run.
        """
        path = self.folder.path / name
        if not path.is_dir():
            raise P3OError(f"{path}: does not exist yet; run `{command}` on this run first")
        return str(path)

    def check(self, *, load_models: bool = True) -> None:
        """Read everything that the user gave for these stages, so that a mistake shows now and not after hours of training.

        Args:
            load_models: whether a reward model of the user's is loaded as well.

        Raises:
            P3OError: for the first mistake.
        """
        self.config.require_inputs(self.stages)
        refuse_unshardable(self.config, self.stages)
        if set(self.stages) <= {"report"}:
            return
        if "rl" in self.stages and not self.inputs.prompts:
            raise P3OError(f"{self.config.data.prompts}: contains no prompts; add some")
        if not {"rl", "evaluate"}.isdisjoint(self.stages):
            sample = (self.inputs.prompts or self.inputs.heldout_prompts)[:2]
            made_up = ["A response.", "Another response."][: len(sample)]
            for function in self.feedback.functions():
                # One call on made-up responses: a function that cannot work is found before the first stage.
                function(sample, made_up)
            comparator = self.feedback.comparator()
            if comparator is not None:
                comparator(sample, made_up, made_up[::-1])
            for name, run in self.config.rl.runs.items() if "rl" in self.stages and comparator is not None else ():
                if not make_algorithm(run.algorithm, **run.settings).accepts_comparisons:
                    raise P3OError(
                        f"rl.runs.{name}: {run.algorithm} needs a reward for every response and cannot learn from comparisons "
                        "alone; use one of the P3O family, online_dpo or rebel, or give a reward"
                    )
            if comparator is None and not self.config.reward.is_trained and load_models:
                self.scorer  # noqa: B018 - loading is the check

    def encode(self, rows: Sequence[tuple[str, str]]) -> list[EncodedPair]:
        """Prompts and completions as ids."""
        prompts = encode_prompts(self.tokenizer, [prompt for prompt, _ in rows])
        return list(zip(prompts, encode_responses(self.tokenizer, [text for _, text in rows]), strict=True))


def sample_texts(
    run: RunContext, policy: nn.Module, prompts: Sequence[str], *, responses: int, seed: int
) -> list[list[str]]:
    """Sampled responses to each prompt, as texts."""
    generator = torch.Generator().manual_seed(seed)
    training, size = run.config.rl.training, run.config.evaluation.batch_size
    groups: list[list[str]] = []
    with run.progress.stage("sample", total=len(prompts)) as advance:
        for start in range(0, len(prompts), size):
            encoded = encode_prompts(run.tokenizer, prompts[start : start + size])
            sampled = sample_responses(
                policy,
                pad_left(encoded, pad_id(run.tokenizer)).to(run.device),
                responses_per_prompt=responses,
                max_new_tokens=training.max_new_tokens,
                eos_id=end_ids(policy, run.tokenizer),
                pad_id=pad_id(run.tokenizer),
                temperature=training.temperature,
                generator=generator,
                stop=training.stop,
                tokenizer=run.tokenizer,
            )
            groups += decode_responses(run.tokenizer, sampled, stop=training.stop)
            advance(len(encoded))
    return groups


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        P3OError: if torch knows no such device, the machine has none, or it lacks float64 (MPS), in which responses are sampled
            and rewards compared.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] == "mps":
        raise P3OError(f"device: {name!r} has no float64, in which p3o samples and compares rewards; use cpu or auto")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise P3OError(f"device: {name!r} cannot be used here; use auto or cpu") from error
    if device.type == "cuda" and device.index is not None:
        # Whatever asks no tensor for its device (8-bit optimisers, statistics of memory, events) means this one, too.
        torch.cuda.set_device(device)
    return device
