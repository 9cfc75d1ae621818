"""The configuration of a run: one YAML file, one section per stage, unknown keys refused.

Each stage's settings stand beside the stage; this module puts them together.
"""

import re
from collections.abc import Collection, Sequence
from math import ceil, comb
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from p3o.algorithms import ALGORITHMS
from p3o.config_feedback import LabellerConfig, RewardConfig, SamplingConfig, Section
from p3o.data.rows import Policy
from p3o.data.sources import SourceConfig
from p3o.distributed.settings import ParallelConfig
from p3o.errors import P3OError, did_you_mean, shorten
from p3o.evaluation.policy import EvaluationConfig
from p3o.models.adapters import LoraSettings
from p3o.models.precision import DtypeName
from p3o.rollouts.config import RolloutConfig
from p3o.scale.ray_config import EngineConfig
from p3o.training.loop import CheckpointConfig
from p3o.training.online import OnlineConfig
from p3o.training.sft import SFTConfig
from p3o.training.tracking import NAME

DATA_READ_BY: dict[str, frozenset[str]] = {
    "prompts": frozenset({"sample", "rl", "evaluate"}),
    "heldout_prompts": frozenset({"sample", "rl", "evaluate"}),
    "demonstrations": frozenset({"sft"}),
    "preferences": frozenset({"reward"}),
}
"""Which stages read which of the user's files: a stage asks for its own and does not open the others."""


class DataConfig(Section):
    """The user's own data: files, folders and hub data sets (docs/data.md), and what is done about rows that cannot be used."""

    prompts: SourceConfig | None = Field(None, description='Training prompts of RL: rows of {"prompt"}.')
    heldout_prompts: SourceConfig | None = Field(
        None, description="Prompts for evaluation; null: some of prompts are held out."
    )
    demonstrations: SourceConfig | None = Field(None, description='Rows of {"prompt", "completion"}, for SFT.')
    preferences: SourceConfig | None = Field(
        None, description='Rows of {"prompt", "chosen", "rejected"}, for the reward model.'
    )
    bad_rows: Policy = Field(
        "stop", description="What to do with a row that cannot be used: stop the run, or skip the row and count it."
    )
    max_prompt_tokens: int | None = Field(
        None, gt=0, description="Rows with a longer prompt are treated as bad rows; null: the model's limit."
    )
    max_completion_tokens: int | None = Field(
        None,
        gt=0,
        description="Rows with a longer answer (end of sequence included) are treated as bad rows; "
        "null: the model's limit.",
    )

    def sources(self) -> dict[str, SourceConfig]:
        """The sources that are given, by key."""
        given = {"prompts": self.prompts, "heldout_prompts": self.heldout_prompts}
        given |= {"demonstrations": self.demonstrations, "preferences": self.preferences}
        return {name: source for name, source in given.items() if source is not None}


class EmbeddedTaskConfig(Section):
    """Sizes of the embedded task: a grammar of our own with an exact gold reward."""

    demonstrations: int = Field(9600, gt=0, description="Demonstrations for SFT.")
    pairs: int = Field(12000, gt=0, description="Labelled pairs for the reward model.")
    sampled_share: float = Field(0.25, ge=0, le=1, description="Share of pairs sampled from the SFT policy.")
    label_scale: float = Field(
        1.5, gt=0, description="Factor from gold reward to the log-odds of the simulated labeller."
    )
    prompts: int = Field(4000, gt=0, description="Training prompts of RL.")


class RefitConfig(Section):
    """Refitting the reward model on fresh samples in the course of RL, in the runs that say so."""

    every: int = Field(10, gt=0, description="RL steps between refits.")
    pairs: int = Field(1000, gt=0, description="Pairs sampled from the policy for each refit, at most.")
    responses_per_prompt: int = Field(
        2, ge=2, description="K; all K(K-1)/2 pairs of different texts count, so that few prompts give many pairs."
    )
    labeller: LabellerConfig = Field(default_factory=lambda: LabellerConfig())

    @property
    def prompts(self) -> int:
        """How many give so many pairs."""
        return ceil(self.pairs / comb(self.responses_per_prompt, 2))


OF_ALL_RUNS = {"max_new_tokens", "temperature", "stop", "missing_eos_penalty"}
"""Training settings that evaluation and refits follow as well."""


class RunOverrides(Section):
    """One RL run: an algorithm with its own settings and, where they differ, its own training settings."""

    algorithm: str = Field(description="Name of the algorithm.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Settings of the algorithm (beta, epsilon, …).")
    reward_shift: float = Field(
        0.0, ge=0, description="Standard deviation of a random offset added to all rewards of a prompt in training."
    )
    refit: bool = Field(
        False, description="Refit the reward model on fresh samples during training; settings in rl.refit."
    )
    training: dict[str, Any] = Field(
        default_factory=dict, description="Training settings that differ from rl.training."
    )

    def _unknown_setting(self, name: str, known: Collection[str]) -> InitErrorDetails:
        """Pydantic's own word for it does not say which settings there are."""
        advice = did_you_mean(name, known) or f"known: {', '.join(known)}"
        told = PydanticCustomError(
            "unknown_setting",
            "{algorithm} has no such setting; {advice}",
            {"algorithm": self.algorithm, "advice": advice},
        )
        return InitErrorDetails(type=told, loc=("settings", name), input=self.settings[name])

    @model_validator(mode="after")
    def known(self) -> "RunOverrides":
        """The algorithm exists and takes these settings."""
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"unknown algorithm {self.algorithm!r}; known: {', '.join(ALGORITHMS)}")
        config = ALGORITHMS[self.algorithm].config
        if strange := [name for name in self.settings if name not in config.model_fields]:
            raise ValidationError.from_exception_data(
                self.algorithm, [self._unknown_setting(name, config.model_fields) for name in strange]
            )
        config(**self.settings)
        unknown = set(self.training) - set(OnlineConfig.model_fields)
        if unknown:
            raise ValueError(
                f"unknown training setting {sorted(unknown)[0]!r}; known: {', '.join(OnlineConfig.model_fields)}"
            )
        if common := sorted(OF_ALL_RUNS & set(self.training)):
            raise ValueError(
                f"training: {common[0]} defines what a response is, so it must be the same for all policies that "
                f"are compared; set it in rl.training"
            )
        return self


class RLConfig(Section):
    """The RL stage: settings shared by all runs, and the runs."""

    training: OnlineConfig = Field(default_factory=lambda: OnlineConfig())
    rollout: RolloutConfig = Field(default_factory=lambda: RolloutConfig())
    refit: RefitConfig = Field(default_factory=lambda: RefitConfig())
    runs: dict[str, RunOverrides] = Field(
        default_factory=lambda: {"p3o_v2": RunOverrides(algorithm="p3o_v2")}, description="RL runs by name."
    )

    @model_validator(mode="after")
    def resolvable(self) -> "RLConfig":
        """Every run has a name that a folder can have, and its training settings are valid together with the shared ones."""
        for name in self.runs:
            if re.fullmatch(NAME, name) is None:
                raise ValueError(f"the run's name {shorten(name)} may contain only letters, digits, '.', '-' and '_'")
            self.training_of(name)
        return self

    def training_of(self, name: str) -> OnlineConfig:
        """The training settings of a run."""
        return OnlineConfig(**(self.training.model_dump() | self.runs[name].training))


class RunConfig(Section):
    """A whole run."""

    name: str = Field("run", pattern=f"^{NAME}$", description="Folder under runs/.")
    seed: int = Field(0, ge=0, description="Random seed.")
    threads: int | None = Field(None, gt=0, description="CPU threads of torch; null: torch decides.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:1; auto: cuda if there is one.")
    model: str | None = Field(
        None, description="Folder or hub name of the language model to start from; null: embedded."
    )
    dtype: DtypeName = Field(
        "auto", description="auto: bfloat16 on a GPU that supports it, else float32; float64 is for checks."
    )
    lora: LoraSettings | None = Field(None, description="Train low-rank adapters; null: all weights.")
    gradient_checkpointing: bool = Field(
        False,
        description="Gradient checkpointing: recompute activations in the backward pass; less memory, a third more time.",
    )
    trust_remote_code: bool = Field(False, description="Allow Python code in a model's repository to run.")
    parallel: ParallelConfig = Field(default_factory=lambda: ParallelConfig())
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    embedded: EmbeddedTaskConfig | None = Field(None, description="Use the embedded task instead of data files.")
    sft: SFTConfig | None = Field(None, description="Supervised fine-tuning; null: start RL from the model as it is.")
    sampling: SamplingConfig | None = Field(
        None, description="Sample pairs from the SFT model for labelling; null: preferences are given or not needed."
    )
    reward: RewardConfig = Field(default_factory=lambda: RewardConfig())
    rl: RLConfig = Field(default_factory=lambda: RLConfig())
    evaluation: EvaluationConfig = Field(default_factory=lambda: EvaluationConfig())
    tracking: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        (),
        description="Trackers that also receive the metrics: tensorboard, wandb, trackio; each is an optional package.",
    )
    tracking_online: bool = Field(
        False, description="Let wandb and trackio send metrics to their servers; otherwise they stay on this machine."
    )
    checkpoints: CheckpointConfig = Field(default_factory=lambda: CheckpointConfig())
    engine: EngineConfig = Field(default_factory=lambda: EngineConfig())

    @model_validator(mode="after")
    def embedded_stands_alone(self) -> "RunConfig":
        """The embedded task excludes a model and data of the user's own."""
        if self.embedded is not None:
            given = list(self.data.sources())
            if given or self.model is not None:
                raise ValueError(
                    f"the embedded task brings its own model and data; remove {'model' if self.model else 'data.' + given[0]}"
                )
            if self.sft is None:
                raise ValueError("sft: the embedded task starts from an untrained model; add a section 'sft: {}'")
            if self.lora is not None and self.lora.save == "adapter":
                raise ValueError(
                    "lora: the base model of the embedded task is not saved in any folder; use 'save: merged'"
                )
        return self

    def require_inputs(self, stages: Sequence[str]) -> None:
        """Check that what these stages start from is named.

        Raises:
            P3OError: for the first setting that is missing.
        """
        data, reward = self.data, self.reward
        if self.embedded is not None or set(stages) <= {"report"}:
            return
        if self.model is None:
            raise P3OError(
                "model: name a folder or hub model (--model), or add a section 'embedded: {}' for the embedded task"
            )
        if "rl" in stages and data.prompts is None:
            raise P3OError("data.prompts: name a file or data set of prompts (--prompts)")
        if "evaluate" in stages and data.prompts is None and data.heldout_prompts is None:
            raise P3OError(
                "data.heldout_prompts: name a file or data set of prompts (--heldout-prompts), or data.prompts "
                "(--prompts) to hold some out from"
            )
        if "sft" in stages and self.sft is not None and data.demonstrations is None:
            raise P3OError("data.demonstrations: name a file or data set of demonstrations (--demonstrations)")
        labels = data.preferences is not None or (self.sampling is not None and self.sampling.labeller is not None)
        if reward.is_trained and not labels and not {"reward", "rl", "evaluate"}.isdisjoint(stages):
            if set(stages) == {"reward"}:
                raise P3OError("data.preferences: name a file or data set of preferences (--preferences)")
            raise P3OError(
                "reward: name a model (--reward-model), a function (--reward-function), a service (--reward-url), a judge or a "
                "comparison; or data.preferences or a sampling.labeller to train a reward model on"
            )

    @model_validator(mode="after")
    def refits_have_a_reward_model(self) -> "RunConfig":
        """Only a reward model that the run trains can be refitted."""
        for name, run in self.rl.runs.items():
            if run.refit and (not self.reward.is_trained or self.reward.parts):
                raise ValueError(
                    f"rl.runs.{name}.refit: the reward is given ({self.reward.source}), so there is no reward "
                    f"model to refit; remove refit"
                )
        return self

    @model_validator(mode="after")
    def an_adapter_is_there_to_be_sent(self) -> "RunConfig":
        """Only a policy with an adapter can be given to servers as one."""
        if self.rl.rollout.engine == "vllm" and self.rl.rollout.weights == "lora" and self.lora is None:
            raise ValueError(
                "rl.rollout.weights: lora sends only the adapter; add a section 'lora: {}', or use gloo, nccl or disk"
            )
        return self

    def for_stages(self, stages: Sequence[str]) -> "RunConfig":
        """The same without the data files that none of these stages reads."""
        unread = {name: None for name, readers in DATA_READ_BY.items() if readers.isdisjoint(stages)}
        return self.model_copy(update={"data": self.data.model_copy(update=unread)})

    def with_shifted_runs(self, shift: float) -> "RunConfig":
        """The same with a twin of every RL run, NAME_shifted, whose rewards get offsets of this standard deviation."""
        twins = {
            f"{name}_shifted": run.model_copy(update={"reward_shift": shift}) for name, run in self.rl.runs.items()
        }
        return self.model_copy(update={"rl": self.rl.model_copy(update={"runs": self.rl.runs | twins})})
