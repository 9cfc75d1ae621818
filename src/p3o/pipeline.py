"""The whole method over a run folder: sft → sample → reward → rl → evaluate → report.

Each stage reads what the earlier ones left in the folder, so a run can be done in one go or stage by stage.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from p3o.algorithms import make_algorithm
from p3o.config import RunConfig
from p3o.data.embedded import task
from p3o.errors import P3OError
from p3o.evaluation.policy import Evaluator, PolicyEvaluation
from p3o.evaluation.winrate import head_to_head
from p3o.feedback.functions import call_reward_function, load_reward_function
from p3o.feedback.reward_model import RewardModel, load_reward_model
from p3o.feedback.simulated import SimulatedLabeller, prompt_offsets
from p3o.files import append_jsonl, read_jsonl, write_json, write_jsonl
from p3o.inputs import Inputs, Pair, Scorer, read_inputs, starting_model
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy, load_language_model, load_tokenizer, save_model
from p3o.models.sampling import sample_responses
from p3o.models.tokens import decode_responses, encode_prompts, encode_responses, end_id, pad_id, pad_left
from p3o.report import build_report
from p3o.training.online import OnlineTrainer
from p3o.training.progress import Progress
from p3o.training.reward_model import ranking_accuracy, train_reward_model
from p3o.training.sft import EncodedPair, completion_loss, train_sft
from p3o.training.tracking import RunFolder

STAGES = ("sft", "sample", "reward", "rl", "evaluate", "report")
SFT_POLICY = "sft"
PREFERENCES_FILE, RESPONSES_FILE, SAMPLES_FILE = "preferences.jsonl", "responses.jsonl", "samples.jsonl"


def run(config: RunConfig, *, folder: RunFolder, stages: Sequence[str] | None, progress: Progress) -> None:
    """Run these stages (all by default) in the folder.

    Raises:
        P3OError: for bad input, always before the stage that it concerns begins to train.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    pipeline = Pipeline(config, folder, progress)
    pipeline.check()
    for stage in stages or STAGES:
        getattr(pipeline, stage)()


def stage_seed(seed: int, purpose: str) -> int:
    """A seed for each purpose, so that changing one stage leaves the random numbers of the others alone."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:6])


class Pipeline:
    """The stages of one run; what they share is loaded once."""

    def __init__(self, config: RunConfig, folder: RunFolder, progress: Progress) -> None:
        self.config, self.folder, self.progress = config, folder, progress
        self.device = choose_device(config.device)

    # What the stages share

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the language model."""
        start = starting_model(self.config, self.config.seed)
        return start[1] if start is not None else load_tokenizer(str(self.config.model))

    @cached_property
    def inputs(self) -> Inputs:
        """The texts."""
        return read_inputs(self.config, self.tokenizer)

    @cached_property
    def reward_function(self) -> Scorer | None:
        """The user's Python function, checked at every call."""
        spec = self.config.reward.function
        if spec is None:
            return None
        function = load_reward_function(spec)
        return lambda prompts, responses: call_reward_function(function, prompts, responses, name=spec)

    @property
    def sft_folder(self) -> str:
        """Where the SFT model is: this run's own, or the given model if there is no SFT stage."""
        if self.config.sft is None:
            return str(self.config.model)
        return self._required("sft", "p3o sft")

    @cached_property
    def scorer(self) -> Scorer:
        """The reward of RL: the user's function, the user's model, or the model that this run trained."""
        if self.reward_function is not None:
            return self.reward_function
        path = self.config.reward.model or self._required("reward_model", "p3o reward")
        return RewardModel(load_reward_model(path, device=self.device), load_tokenizer(path))

    def _required(self, name: str, command: str) -> str:
        path = self.folder.path / name
        if not path.is_dir():
            raise P3OError(f"{path}: not there yet; run `{command}` in this run folder first")
        return str(path)

    def check(self) -> None:
        """Read everything that the user gave, so that a mistake shows now and not after hours of training."""
        if not self.inputs.prompts:
            raise P3OError(f"{self.config.data.prompts}: no prompts")
        if self.reward_function is not None:
            # One call on made-up responses: a function that cannot work is found before the first stage.
            sample = self.inputs.prompts[:2]
            self.reward_function(sample, ["A response.", "Another response."][: len(sample)])
        if self.config.reward.model is not None:
            self.scorer  # noqa: B018 - loading is the check
        self.check_lengths()

    def check_lengths(self) -> None:
        """Prompts must leave room for a response.

        Raises:
            P3OError: naming the first prompt that does not.
        """
        limit = self.tokenizer.model_max_length
        room = self.config.rl.training.max_new_tokens
        prompts = self.inputs.prompts + self.inputs.heldout_prompts
        for number, (prompt, ids) in enumerate(
            zip(prompts, encode_prompts(self.tokenizer, prompts), strict=True), start=1
        ):
            if (length := len(ids)) + room > limit:
                raise P3OError(
                    f"prompt {number}: its {length} tokens and rl.training.max_new_tokens {room} pass the model's limit of "
                    f"{limit}; shorten it or lower max_new_tokens ({prompt[:60]!r})"
                )

    # The stages

    def sft(self) -> None:
        """Supervised fine-tuning; skipped if the configuration has none."""
        config = self.config.sft
        if config is None:
            self.progress.print("sft: skipped, RL starts from the model as it is")
            return
        with self.folder.stage("sft"):
            start = starting_model(self.config, self.config.seed)
            model = (
                start[0].to(self.device).eval()
                if start is not None
                else load_language_model(str(self.config.model), device=self.device)
            )
            rows = self._encoded(self.inputs.demonstrations)
            steps = config.steps if config.steps is not None else max(1, len(rows) // config.batch_size)
            with self.progress.stage("sft", total=steps) as advance:

                def log(step: int, metrics: dict[str, float]) -> None:
                    self.folder.metrics({"stage": "sft", "step": step, **metrics})
                    advance(1, **metrics)

                fill = pad_id(self.tokenizer)
                train_sft(model, rows, config, fill=fill, seed=stage_seed(self.config.seed, "sft"), log=log)
            heldout = self._encoded(self.inputs.heldout_demonstrations)
            if heldout:
                loss = completion_loss(model, heldout, fill=fill, batch_size=config.micro_batch_size)
                self.folder.metrics({"stage": "sft", "step": steps, "heldout_loss": loss})
            with self.folder.directory("sft") as target:
                save_model(model, self.tokenizer, target)

    def sample(self) -> None:
        """Pairs of responses, labelled. Only the embedded task labels by itself; own data bring their preferences."""
        sizes = self.config.embedded
        if sizes is None:
            self.progress.print("sample: skipped, preferences come from data.preferences or are not needed")
            return
        with self.folder.stage("sample"):
            seed = stage_seed(self.config.seed, "pairs")
            sampled = round(sizes.pairs * sizes.sampled_share)
            prompts = [row.prompt for row in task.demonstrations(sampled, seed=seed, split="train")]
            pairs = self.sample_pairs(prompts, seed=seed)
            pairs += [
                (pair.prompt, pair.response_a, pair.response_b)
                for pair in task.comparison_candidates(sizes.pairs - sampled, seed=seed, split="train")
            ]
            # Two equal texts are no comparison.
            distinct = [pair for pair in pairs if pair[1] != pair[2]]
            assert self.inputs.gold is not None
            labeller = SimulatedLabeller(_as_lists(self.inputs.gold), scale=sizes.label_scale, seed=seed)
            first = labeller.label(*([pair[i] for pair in distinct] for i in range(3)))
            rows = [
                {"prompt": prompt, "chosen": a if prefer_a else b, "rejected": b if prefer_a else a}
                for (prompt, a, b), prefer_a in zip(distinct, first, strict=True)
            ]
            write_jsonl(self.folder.path / PREFERENCES_FILE, rows)
            self.folder.metrics(
                {"stage": "sample", "pairs": len(rows), "identical_dropped": len(pairs) - len(distinct)}
            )

    def sample_pairs(self, prompts: Sequence[str], *, seed: int) -> list[Pair]:
        """Two responses of the SFT policy to each prompt."""
        policy = load_language_model(self.sft_folder, device=self.device)
        generator = torch.Generator().manual_seed(seed)
        training = self.config.rl.training
        pairs: list[Pair] = []
        size = self.config.evaluation.batch_size
        with self.progress.stage("sample", total=len(prompts)) as advance:
            for start in range(0, len(prompts), size):
                batch = prompts[start : start + size]
                encoded = encode_prompts(self.tokenizer, batch)
                responses = sample_responses(
                    policy,
                    pad_left(encoded, pad_id(self.tokenizer)).to(self.device),
                    responses_per_prompt=2,
                    max_new_tokens=training.max_new_tokens,
                    eos_id=end_id(self.tokenizer),
                    pad_id=pad_id(self.tokenizer),
                    temperature=training.temperature,
                    generator=generator,
                )
                texts = decode_responses(self.tokenizer, responses)
                pairs += [(prompt, a, b) for prompt, (a, b) in zip(batch, texts, strict=True)]
                advance(len(batch))
        return pairs

    def reward(self) -> None:
        """Train the reward model on labelled pairs; skipped if the reward is given."""
        reward = self.config.reward
        if reward.model is not None or reward.function is not None:
            self.progress.print(f"reward: given ({reward.model or reward.function}), nothing to train")
            return
        pairs = self.labelled_pairs()
        with self.folder.stage("reward"):
            # The head is new and drawn at random: the seed makes it the same each time.
            torch.manual_seed(stage_seed(self.config.seed, "reward head"))
            model = load_reward_model(self.sft_folder, device=self.device)
            reward_model = RewardModel(model, self.tokenizer)
            config = reward.train
            count = min(500, len(pairs) // 10)
            held, rows = pairs[:count], pairs[count:]
            steps = config.steps if config.steps is not None else max(1, len(rows) // config.batch_size)
            with self.progress.stage("reward", total=steps) as advance:

                def log(step: int, metrics: dict[str, float]) -> None:
                    self.folder.metrics({"stage": "reward", "step": step, **metrics})
                    advance(1, **metrics)

                train_reward_model(reward_model, rows, config, seed=stage_seed(self.config.seed, "reward"), log=log)
            test: dict[str, Any] = {"pairs": len(held)}
            if held:
                test["accuracy_labels"] = ranking_accuracy(reward_model, held)
            self.folder.metrics({"stage": "reward_test", **test, **self.gold_accuracies(reward_model)})
            with self.folder.directory("reward_model") as target:
                save_model(model, self.tokenizer, target)

    def labelled_pairs(self) -> list[Pair]:
        """The pairs to train on: the user's, or those that the sample stage labelled. In random order."""
        pairs = self.inputs.preferences
        if self.config.embedded is not None:
            path = self.folder.path / PREFERENCES_FILE
            if not path.exists():
                raise P3OError(f"{path}: not there yet; run `p3o sample` in this run folder first")
            # Written by the sample stage; unlike a user's file it may hold an empty response, which a policy can well give.
            pairs = [(row["prompt"], row["chosen"], row["rejected"]) for row in read_jsonl(path)]
        order = torch.randperm(
            len(pairs), generator=torch.Generator().manual_seed(stage_seed(self.config.seed, "order"))
        )
        return [pairs[i] for i in order.tolist()]

    def gold_accuracies(self, reward_model: RewardModel) -> dict[str, int | float]:
        """How well the model knows the gold reward: on pairs of SFT samples, and across prompts."""
        if self.config.embedded is None or self.inputs.gold is None:
            return {}
        heldout = self.inputs.heldout_prompts
        sampled = self.sample_pairs(heldout, seed=stage_seed(self.config.seed, "reward test"))
        gold_a, gold_b = (self.inputs.gold([p[0] for p in sampled], [p[i] for p in sampled]) for i in (1, 2))
        ordered = [
            (x, a, b) if left > right else (x, b, a)
            for (x, a, b), left, right in zip(sampled, gold_a, gold_b, strict=True)
            if left != right
        ]
        across = [
            (pair.prompt, pair.response_a, pair.response_b)
            for pair in task.cross_prompt_pairs(
                len(heldout), seed=stage_seed(self.config.seed, "cross"), split="heldout"
            )
        ]
        return {
            "gold_pairs": len(ordered),
            "accuracy_gold": ranking_accuracy(reward_model, ordered),
            "cross_prompt_pairs": len(across),
            "accuracy_cross_prompt": ranking_accuracy(reward_model, across),
        }

    def rl(self) -> None:
        """Every RL run of the configuration, from the same SFT model on the same prompts in the same order."""

        def owns(row: Mapping[str, Any]) -> bool:
            return row["stage"] in ("rl", "critic_warmup") or (
                row["stage"] == "evaluate" and row["policy"] != SFT_POLICY
            )

        with self.folder.stage("rl", owns=owns):
            with suppress(FileNotFoundError):
                (self.folder.path / SAMPLES_FILE).unlink()
            for name in self.config.rl.runs:
                self.rl_run(name)

    def rl_run(self, name: str) -> None:
        """One RL run: train, evaluate at intervals, save."""
        entry, training = self.config.rl.runs[name], self.config.rl.training_of(name)
        algorithm = make_algorithm(entry.algorithm, **entry.settings)
        policy = load_language_model(self.sft_folder, device=self.device)
        reference = frozen_copy(policy)
        critic = None
        if algorithm.needs_critic:
            trained_here = self.config.reward.model is None and self.reward_function is None
            body = self._required("reward_model", "p3o reward") if trained_here else self.sft_folder
            critic = Critic.from_pretrained(body, device=self.device)
        trainer = OnlineTrainer(
            policy,
            reference,
            self.tokenizer,
            algorithm,
            self.shifted(entry.reward_shift),
            self.inputs.prompts,
            training,
            # All runs share this seed: they see the same prompts in the same order.
            seed=stage_seed(self.config.seed, "rl"),
            critic=critic,
        )
        evaluator = self.evaluator(reference)
        identity = {"algorithm": entry.algorithm, "beta": algorithm.config.beta}
        if entry.reward_shift:
            identity["reward_shift"] = entry.reward_shift
        with self.progress.stage(f"rl {name}", total=training.critic_warmup_steps + training.steps) as advance:
            for step in range(1, training.critic_warmup_steps + 1):
                metrics = trainer.warm_up_critic()
                self.folder.metrics({"stage": "critic_warmup", "run": name, **identity, "step": step, **metrics})
                advance(1)
            self.evaluate_step(name, identity, 0, evaluator, policy)
            for step in range(1, training.steps + 1):
                metrics = trainer.step()
                self.folder.metrics({"stage": "rl", "run": name, **identity, "step": step, **metrics})
                advance(1, reward=metrics["reward"], kl=metrics["kl_k1"])
                if step % self.config.evaluation.every == 0 or step == training.steps:
                    self.evaluate_step(name, identity, step, evaluator, policy)
        with self.folder.directory(f"rl/{name}") as target:
            save_model(policy, self.tokenizer, target)

    def evaluate_step(
        self, name: str, identity: Mapping[str, Any], step: int, evaluator: Evaluator, policy: PreTrainedModel
    ) -> None:
        """A row of the frontier, and the texts of the prompts that are followed."""
        evaluation = evaluator.sampled(policy)
        row = {"stage": "evaluate", "policy": name, **identity, "step": step, "decoding": "sample"}
        self.folder.metrics(row | evaluation.summary())
        for index, record in enumerate(evaluation.rows()[: self.config.evaluation.followed_prompts]):
            prompt = self.inputs.heldout_prompts[index]
            identity = {"policy": name, "step": step, "prompt_index": index, "prompt": prompt}
            append_jsonl(self.folder.path / SAMPLES_FILE, identity | record)

    def shifted(self, standard_deviation: float) -> Scorer:
        """The reward with an offset on every prompt, drawn once per prompt: what comparisons cannot see."""
        scorer = self.scorer
        if standard_deviation == 0.0:
            return scorer
        seed = stage_seed(self.config.seed, "offsets")

        def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
            offsets = prompt_offsets(prompts, standard_deviation=standard_deviation, seed=seed)
            return [reward + offset for reward, offset in zip(scorer(prompts, responses), offsets, strict=True)]

        return score

    def evaluator(self, reference: PreTrainedModel) -> Evaluator:
        """The same held-out prompts and random numbers for every policy."""
        training = self.config.rl.training
        return Evaluator(
            self.tokenizer,
            reference,
            self.inputs.heldout_prompts,
            self.scorer,
            gold=self.inputs.gold,
            max_new_tokens=training.max_new_tokens,
            temperature=training.temperature,
            missing_eos_penalty=training.missing_eos_penalty,
            batch_size=self.config.evaluation.batch_size,
            seed=stage_seed(self.config.seed, "evaluation"),
        )

    def evaluate(self) -> None:
        """The trained policies against the SFT model and its yardsticks, prompt by prompt."""
        sft = load_language_model(self.sft_folder, device=self.device)
        evaluator = self.evaluator(sft)
        final: dict[str, PolicyEvaluation] = {}
        records: list[dict[str, Any]] = []

        def keep(policy: str, decoding: str, evaluation: PolicyEvaluation) -> None:
            for index, record in enumerate(evaluation.rows()):
                prompt = self.inputs.heldout_prompts[index]
                identity = {"policy": policy, "decoding": decoding, "prompt_index": index, "prompt": prompt}
                records.append(identity | record)
            if policy == SFT_POLICY:
                row = {"stage": "evaluate", "policy": policy, "algorithm": None, "beta": None, "step": 0}
                self.folder.metrics(row | {"decoding": decoding} | evaluation.summary())
            if decoding == "sample":
                final[policy] = evaluation
            advance(1)

        def owns(row: Mapping[str, Any]) -> bool:
            return bool(row["stage"] == "evaluate" and row["policy"] == SFT_POLICY)

        runs = {name: self._required(f"rl/{name}", "p3o rl") for name in self.config.rl.runs}
        best_of = self.config.evaluation.best_of
        with (
            self.folder.stage("evaluate", owns=owns),
            self.progress.stage("evaluate", total=2 + len(best_of) + len(runs)) as advance,
        ):
            keep(SFT_POLICY, "sample", evaluator.sampled(sft))
            keep(SFT_POLICY, "greedy", evaluator.greedy(sft))
            for n in best_of:
                keep(SFT_POLICY, f"best_of_{n}", evaluator.best_of(sft, n))
            for name, path in runs.items():
                keep(name, "sample", evaluator.sampled(load_language_model(path, device=self.device)))
            write_jsonl(self.folder.path / RESPONSES_FILE, records)
            write_json(self.folder.path / "head_to_head.json", compare(final))

    def report(self) -> None:
        """Draw the report."""
        with self.folder.stage("report"):
            build_report(self.folder.path)

    def _encoded(self, rows: Sequence[tuple[str, str]]) -> list[EncodedPair]:
        prompts = encode_prompts(self.tokenizer, [prompt for prompt, _ in rows])
        return list(zip(prompts, encode_responses(self.tokenizer, [text for _, text in rows]), strict=True))


def compare(final: Mapping[str, PolicyEvaluation]) -> list[dict[str, Any]]:
    """Every policy against every other on the same prompts, by the reward and, where there is one, by the gold reward."""
    names = list(final)
    rows: list[dict[str, Any]] = []
    for by in ("reward", "gold"):
        for position, a in enumerate(names):
            for b in names[position + 1 :]:
                left, right = getattr(final[a], by), getattr(final[b], by)
                if left is not None and right is not None:
                    result = head_to_head(left, right)
                    rows.append({"a": a, "b": b, "by": by, **vars(result)})
    return rows


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto" prefers CUDA, then MPS, then the CPU.

    Raises:
        P3OError: if torch knows no such device or the machine has none.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise P3OError(f"device: {name!r} cannot be used here; use auto or cpu") from error
    return device


def _as_lists(scorer: Scorer) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    return lambda prompts, responses: list(scorer(prompts, responses))
