"""The stage that optimises the policy, once for each run of the configuration."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from transformers import PreTrainedModel

from p3o.algorithms import make_algorithm
from p3o.evaluation.policy import Evaluator
from p3o.feedback.simulated import prompt_offsets
from p3o.files import append_jsonl
from p3o.inputs import Scorer
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy, load_language_model, save_model
from p3o.stages.context import SAMPLES_FILE, SFT_POLICY, RunContext
from p3o.stages.evaluate import evaluator
from p3o.training.online import OnlineTrainer


def rl(run: RunContext) -> None:
    """Every RL run of the configuration, from the same SFT model on the same prompts in the same order."""

    def owns(row: Mapping[str, Any]) -> bool:
        return row["stage"] in ("rl", "critic_warmup") or (row["stage"] == "evaluate" and row["policy"] != SFT_POLICY)

    with run.folder.stage("rl", owns=owns):
        with suppress(FileNotFoundError):
            (run.folder.path / SAMPLES_FILE).unlink()
        for name in run.config.rl.runs:
            rl_run(run, name)


def rl_run(run: RunContext, name: str) -> None:
    """One RL run: train, evaluate at intervals, save."""
    entry, training = run.config.rl.runs[name], run.config.rl.training_of(name)
    algorithm = make_algorithm(entry.algorithm, **entry.settings)
    policy = load_language_model(run.sft_folder, device=run.device)
    reference = frozen_copy(policy)
    critic = None
    if algorithm.needs_critic:
        trained_here = run.config.reward.model is None and run.reward_function is None
        body = run.required("reward_model", "p3o reward") if trained_here else run.sft_folder
        critic = Critic.from_pretrained(body, device=run.device)
    trainer = OnlineTrainer(
        policy,
        reference,
        run.tokenizer,
        algorithm,
        shifted(run, entry.reward_shift),
        run.inputs.prompts,
        training,
        # All runs share this seed: they see the same prompts in the same order.
        seed=run.seed("rl"),
        critic=critic,
    )
    judge = evaluator(run, reference)
    identity = {"algorithm": entry.algorithm, "beta": algorithm.config.beta}
    if entry.reward_shift:
        identity["reward_shift"] = entry.reward_shift
    with run.progress.stage(f"rl {name}", total=training.critic_warmup_steps + training.steps) as advance:
        for step in range(1, training.critic_warmup_steps + 1):
            metrics = trainer.warm_up_critic()
            run.folder.metrics({"stage": "critic_warmup", "run": name, **identity, "step": step, **metrics})
            advance(1)
        evaluate_step(run, name, identity, 0, judge, policy)
        for step in range(1, training.steps + 1):
            metrics = trainer.step()
            run.folder.metrics({"stage": "rl", "run": name, **identity, "step": step, **metrics})
            advance(1, reward=metrics["reward"], kl=metrics["kl_k1"])
            if step % run.config.evaluation.every == 0 or step == training.steps:
                evaluate_step(run, name, identity, step, judge, policy)
    with run.folder.directory(f"rl/{name}") as target:
        save_model(policy, run.tokenizer, target)


def evaluate_step(
    run: RunContext, name: str, identity: Mapping[str, Any], step: int, judge: Evaluator, policy: PreTrainedModel
) -> None:
    """A row of the frontier, and the texts of the prompts that are followed."""
    evaluation = judge.sampled(policy)
    row = {"stage": "evaluate", "policy": name, **identity, "step": step, "decoding": "sample"}
    run.folder.metrics(row | evaluation.summary())
    for index, record in enumerate(evaluation.rows()[: run.config.evaluation.followed_prompts]):
        prompt = run.inputs.heldout_prompts[index]
        identity = {"policy": name, "step": step, "prompt_index": index, "prompt": prompt}
        append_jsonl(run.folder.path / SAMPLES_FILE, identity | record)


def shifted(run: RunContext, standard_deviation: float) -> Scorer:
    """The reward with an offset on every prompt, drawn once per prompt: what comparisons cannot see."""
    scorer = run.scorer
    if standard_deviation == 0.0:
        return scorer
    seed = run.seed("offsets")

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        offsets = prompt_offsets(prompts, standard_deviation=standard_deviation, seed=seed)
        return [reward + offset for reward, offset in zip(scorer(prompts, responses), offsets, strict=True)]

    return score
