"""The stage that optimises the policy, once for each run of the configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from p3o.algorithms import Algorithm, make_algorithm
from p3o.distributed import world
from p3o.evaluation.policy import Evaluator
from p3o.feedback.reward_model import RewardModel
from p3o.feedback.simulated import prompt_offsets
from p3o.files import remove
from p3o.inputs import Scorer
from p3o.models.ends import describe_ends, find_ends, generation_of
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy
from p3o.models.sharing import share_frozen_weights
from p3o.stages.context import SAMPLES_FILE, SFT_POLICY, RunContext
from p3o.stages.evaluate import evaluator, warn_of_unscored
from p3o.stages.refit import REFITS, Refits
from p3o.stages.rollout import sampler_of, writer_of
from p3o.training.asynchrony import RolloutsAhead
from p3o.training.online import OnlineConfig, OnlineTrainer
from p3o.training.samplers import Sampler
from p3o.training.scoring import ComparisonFeedback


def rl(run: RunContext) -> None:
    """Every RL run of the configuration, from the same SFT model on the same prompts in the same order."""

    def owns(row: Mapping[str, Any]) -> bool:
        return row["stage"] in ("rl", "critic_warmup", "refit") or (
            row["stage"] == "evaluate" and row["policy"] != SFT_POLICY
        )

    with run.folder.stage("rl", owns=owns, resume=run.resume):
        if not run.resume and world().first:
            for file in (SAMPLES_FILE, REFITS, *(f"rl/{name}" for name in run.config.rl.runs)):
                remove(run.folder.path / file)
        for name in run.config.rl.runs:
            if world().from_first((run.folder.path / "rl" / name).is_dir()):
                run.progress.print(f"rl {name}: already done")
                run.forget(f"rl/{name}")  # it may have been killed between the two
            else:
                with sampler_of(run, name) as sampler:
                    rl_run(run, name, sampler)


def rl_run(run: RunContext, name: str, sampler: Sampler | None = None) -> None:
    """One RL run: train, evaluate at intervals, save. Without a sampler the learner writes the responses itself."""
    entry, training = run.config.rl.runs[name], run.config.rl.training_of(name)
    algorithm = make_algorithm(entry.algorithm, **entry.settings)
    policy, reference, critic = learners(run, algorithm)
    first_feedback = feedback_of(run, entry.reward_shift, training)
    trainer = OnlineTrainer(
        policy,
        reference,
        run.tokenizer,
        algorithm,
        first_feedback,
        run.inputs.prompts,
        training,
        # All runs share this seed: they see the same prompts in the same order.
        seed=run.seed("rl"),
        critic=critic,
        sampler=sampler,
    )
    trainer.rollouts.notice = lambda text: run.warn(f"rl {name}, {text}")
    run.progress.print(f"rl {name}: {trainer.layouts}; {run.processes}")
    if ends := describe_ends(find_ends(run.tokenizer, generation_of(policy)), run.tokenizer):
        run.progress.print(f"rl {name}: {ends}")
    warn_of_idle_clip(run, name, algorithm, training)
    judge = evaluator(run, reference, writer_of(trainer))
    identity = {"algorithm": entry.algorithm, "beta": algorithm.config.beta}
    if entry.reward_shift:
        identity["reward_shift"] = entry.reward_shift
    refits = Refits(run, name, run.config.rl.refit, last=training.steps) if entry.refit else None

    def use(refitted: Scorer | None) -> None:
        # A rollback may lead to before the first refit.
        trainer.learn_from(first_feedback if refitted is None else shifted(run, entry.reward_shift, refitted))

    def go_on(step: int) -> None:
        if refits is not None:
            owed = bool(world().from_first(refits.owed(step)))
            use(refit(refits, step, policy) if owed else refits.at(step))

    with run.progress.stage(f"rl {name}", total=trainer.total) as advance:

        def evaluated(step: int) -> None:
            summary = evaluate_step(run, name, identity, step, judge, policy)
            measured, beta = {key: summary[key] for key in ("reward", "kl")}, trainer.algorithm.config.beta
            # What the training maximises, measured on held-out prompts. Where a KL target moves β, values of different β are
            # not to be compared: what was kept is judged by the β of now as well.
            run.keep_best(f"rl/{name}", step, measured, lambda seen: seen["reward"] - beta * seen["kl"], policy)

        def tell(done: int, metrics: Mapping[str, int | float]) -> None:
            step = done - trainer.warmup_steps
            stage, number = ("rl", step) if step > 0 else ("critic_warmup", done)
            run.folder.metrics(
                {"stage": stage, "run": name, **identity, "step": number, **metrics, **run.reward_means()}
            )
            shown = {"reward": "reward", "kl_k1": "kl", "length": "length"}
            advance(1, **{short: metrics[key] for key, short in shown.items() if key in metrics})
            if step == 0 or (step > 0 and step % run.config.evaluation.every == 0) or done == trainer.total:
                evaluated(step)
            if refits is not None and refits.due(step):
                use(refit(refits, step, policy))

        run.fit(
            f"rl/{name}",
            trainer,
            tell,
            advance=advance,
            rolls_back=training.on_fault == "rollback",
            owns=lambda row: name in (row.get("run"), row.get("policy")),
            start=lambda: None if trainer.warmup_steps else evaluated(0),
            resumed=lambda done: go_on(done - trainer.warmup_steps),
        )
    tell_overlap(run, name, trainer)
    with run.folder.directory(f"rl/{name}") as target:
        run.models.save(policy, run.tokenizer, target)
    run.forget(f"rl/{name}")


def learners(run: RunContext, algorithm: Algorithm) -> tuple[nn.Module, nn.Module, Critic | None]:
    """The policy, the reference as it was handed over, and a critic if the algorithm needs one; sharded if they shall be."""
    trained = run.config.reward.is_trained
    valued = run.required("reward_model", "p3o reward") if trained and algorithm.needs_critic else run.sft_folder
    if run.models.is_sharding:
        policy, reference = run.models.sharded(run.sft_folder)
        return policy, reference, run.models.sharded_critic(valued) if algorithm.needs_critic else None
    policy = run.models.policy(run.sft_folder)
    reference = frozen_copy(policy)
    critic = run.models.critic(valued) if algorithm.needs_critic else None
    if run.config.lora is not None:
        share_frozen_weights_with(policy, critic, run.scorer)
    return policy, reference, critic


def refit(refits: Refits, step: int, policy: nn.Module) -> RewardModel | None:
    """A refit of the reward model: what is sharded for training is read again, whole, to score with."""
    fresh = refits.refit(step, policy)
    if not refits.run.models.is_sharding:
        return fresh
    world().barrier()
    return refits.at(step)


def tell_overlap(run: RunContext, name: str, trainer: OnlineTrainer) -> None:
    """Where rollouts are sampled ahead: how much of that the training did not wait for."""
    if isinstance(trainer.source, RolloutsAhead):
        run.progress.print(
            f"rl {name}: {trainer.source.overlap.share:.0%} of the sampling time overlapped with training"
        )


def warn_of_idle_clip(run: RunContext, name: str, algorithm: Algorithm, training: OnlineConfig) -> None:
    """Say so if the clip range of this run will never act."""
    if never_clips(algorithm, training):
        run.warn(
            f"rl {name}: one update per batch, so the importance ratio is always 1 and the clip range epsilon has "
            f"no effect; raise epochs, minibatches, replay_batches or max_staleness if clipping should matter"
        )


def never_clips(algorithm: Algorithm, training: OnlineConfig) -> bool:
    """Whether the algorithm has a clip range that no update of this training can reach."""
    once = training.epochs == training.minibatches == 1 and training.replay_batches == training.max_staleness == 0
    return once and getattr(algorithm.config, "epsilon", None) is not None


def evaluate_step(
    run: RunContext, name: str, identity: Mapping[str, Any], step: int, judge: Evaluator, policy: nn.Module
) -> dict[str, int | float]:
    """A row of the frontier, and the texts of the prompts that are followed. Returns the means of the evaluation."""
    evaluation = judge.sampled(policy)
    warn_of_unscored(run, f"rl {name}, evaluation at step {step}", evaluation)
    run.reward_means()  # those of the evaluation are not the next step's
    summary = evaluation.summary()
    row = {"stage": "evaluate", "policy": name, **identity, "step": step, "decoding": "sample"}
    run.folder.metrics(row | summary)
    for index, record in enumerate(evaluation.rows()[: run.config.evaluation.followed_prompts]):
        prompt = run.inputs.heldout_prompts[index]
        identity = {"policy": name, "step": step, "prompt_index": index, "prompt": prompt}
        run.folder.append(SAMPLES_FILE, identity | record)
    return summary


def feedback_of(run: RunContext, shift: float, training: OnlineConfig) -> Scorer | ComparisonFeedback:
    """What a run learns from: the reward, with its offsets, or comparisons alone."""
    comparator = run.feedback.comparator()
    if comparator is None:
        return shifted(run, shift, run.scorer)
    return ComparisonFeedback(
        comparator,
        missing_eos_penalty=training.missing_eos_penalty,
        drop_bad_groups=training.on_fault == "skip",
    )


def share_frozen_weights_with(policy: nn.Module, critic: Critic | None, scorer: Scorer) -> None:
    """Let the critic and the reward model use the policy's frozen weights where they are the same."""
    if critic is not None:
        share_frozen_weights(critic, policy)
    if isinstance(scorer, RewardModel):
        share_frozen_weights(scorer.model, policy)


def shifted(run: RunContext, standard_deviation: float, scorer: Scorer) -> Scorer:
    """The reward with an offset on every prompt, drawn once per prompt: what comparisons cannot see."""
    if standard_deviation == 0.0:
        return scorer
    seed = run.seed("offsets")

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        offsets = prompt_offsets(prompts, standard_deviation=standard_deviation, seed=seed)
        return [reward + offset for reward, offset in zip(scorer(prompts, responses), offsets, strict=True)]

    return score
