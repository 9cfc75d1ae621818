"""Settings of the RL stage that every algorithm shares."""

from typing import Literal

from pydantic import Field

from p3o.models.probe import LayoutChoice
from p3o.training.optimisation import OptimiserConfig


class OnlineConfig(OptimiserConfig):
    """Settings of the RL stage that every algorithm shares."""

    learning_rate: float = Field(1e-6, gt=0, description="Peak learning rate of the policy.")
    critic_learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate of the critic; null: the policy's."
    )
    critic_warmup_steps: int = Field(
        0, ge=0, description="Extra steps at the start, with their own samples, in which only the critic learns."
    )
    steps: int = Field(100, gt=0, description="Number of RL steps; each samples a batch of prompts and learns from it.")
    prompts_per_step: int = Field(16, gt=0, description="Prompts (groups) sampled per step.")
    responses_per_prompt: int = Field(2, ge=2, description="K, responses sampled per prompt.")
    epochs: int = Field(2, gt=0, description="Passes over a step's samples (and replayed batches) per step.")
    minibatches: int = Field(2, gt=0, description="Updates per pass.")
    micro_batch_prompts: int | None = Field(
        None, gt=0, description="Maximum number of prompts per forward pass; null: no limit."
    )
    micro_batch_tokens: int | None = Field(
        None,
        gt=0,
        description="Tokens per forward pass (a group is never split); null: 2048 on a CPU, 16384 elsewhere.",
    )
    sampling_prompts: int | None = Field(
        None,
        gt=0,
        description="Maximum number of prompts, each with K responses, that the learner samples at the same time "
        "(their keys and values are all in memory); null: all of a step.",
    )
    layout: LayoutChoice = Field(
        "auto",
        description="How a group's rows are laid out in a forward pass: shared, split or padded; auto: "
        "the first that gives correct results for the model.",
    )
    replay_batches: int = Field(0, ge=0, description="Earlier batches that are replayed with the fresh one.")
    max_staleness: int = Field(
        0,
        ge=0,
        description="How many steps ahead to sample, with the current policy, while training goes on; 0: sample "
        "and train in turns.",
    )
    stale_ratio: Literal["sampler", "arrival"] = Field(
        "sampler",
        description="Importance ratio of groups sampled ahead: relative to the policy that sampled them, or to "
        "the policy at the start of their step.",
    )
    kl_stop: float | None = Field(
        0.05,
        gt=0,
        description="End a step's updates early when the mean of ½·(log-ratio)² per response exceeds "
        "this; null: never.",
    )
    temperature: float = Field(1.0, gt=0, description="Sampling temperature; applies to all log-probs too.")
    max_new_tokens: int = Field(
        64, gt=0, description="Maximum length of a response in tokens, end of sequence included."
    )
    stop: tuple[str, ...] = Field((), description="Texts that also end a response; they are removed from it.")
    missing_eos_penalty: float = Field(
        0.0, ge=0, description="Penalty subtracted from the reward of a response that was cut off."
    )
    kl_target: float | None = Field(
        None,
        gt=0,
        description="Adapt β to keep KL(policy ‖ reference) at this value, in nats per response; null: β is fixed.",
    )
    kl_gain: float = Field(
        0.1, gt=0, description="How fast β adapts to kl_target: it changes by at most 0.2·kl_gain per step."
    )
