"""Settings of the RL stage that every algorithm shares."""

from typing import Literal

from pydantic import Field

from p3o.models.probe import LayoutChoice
from p3o.training.optimisation import OptimiserConfig


class OnlineConfig(OptimiserConfig):
    """Settings of the RL stage that every algorithm shares."""

    learning_rate: float = Field(1e-6, gt=0, description="Peak learning rate of the policy.")
    critic_learning_rate: float | None = Field(None, gt=0, description="Of the critic; null: the policy's.")
    critic_warmup_steps: int = Field(
        0, ge=0, description="Steps, with samples of their own, in which only the critic learns."
    )
    steps: int = Field(100, gt=0, description="Number of RL steps; each samples a batch of prompts and learns from it.")
    prompts_per_step: int = Field(16, gt=0, description="Prompts (groups) sampled per step.")
    responses_per_prompt: int = Field(2, ge=2, description="K, responses sampled per prompt.")
    epochs: int = Field(2, gt=0, description="Passes over the buffer per step.")
    minibatches: int = Field(2, gt=0, description="Updates per pass.")
    micro_batch_prompts: int | None = Field(
        None, gt=0, description="Prompts per forward pass at most; null: any number."
    )
    micro_batch_tokens: int | None = Field(
        None, gt=0, description="Tokens per forward pass, groups being whole; null: 2048 on a CPU, 16384 elsewhere."
    )
    sampling_prompts: int | None = Field(
        None,
        gt=0,
        description="Prompts sampled together at most by the learner itself, each K times; null: all of a step. "
        "Their keys and "
        "values are in memory together.",
    )
    layout: LayoutChoice = Field(
        "auto", description="Rows of the passes: shared, split or padded; auto: the first that is right for the model."
    )
    replay_batches: int = Field(0, ge=0, description="Earlier batches kept beside the fresh one.")
    max_staleness: int = Field(
        0,
        ge=0,
        description="Sample so many steps ahead, while earlier ones train, by the policy as it is then; 0: "
        "sample, then train.",
    )
    stale_ratio: Literal["sampler", "arrival"] = Field(
        "sampler",
        description="Importance ratio of groups sampled ahead: to the policy that sampled, or to that of their step.",
    )
    kl_stop: float | None = Field(
        0.05, gt=0, description="End a step's updates when mean ½·(log-ratio)² per response passes this; null: never."
    )
    temperature: float = Field(1.0, gt=0, description="Sampling temperature, of all log-probs too.")
    max_new_tokens: int = Field(64, gt=0, description="Length limit of a response, end of sequence included.")
    stop: tuple[str, ...] = Field((), description="Texts that end a response too; they are left out of it.")
    missing_eos_penalty: float = Field(0.0, ge=0, description="Subtracted from the reward of a cut response.")
    kl_target: float | None = Field(
        None,
        gt=0,
        description="Steer β so that KL(policy ‖ reference) stays here, nats per response; null: β is fixed.",
    )
    kl_gain: float = Field(
        0.1, gt=0, description="How fast β follows kl_target: it changes by at most 0.2·kl_gain a step."
    )
