"""The configuration of a run: one YAML file, one section per stage, unknown keys refused.

Each stage's settings stand beside the stage; this module puts them together.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from p3o.algorithms import ALGORITHMS
from p3o.evaluation.policy import EvaluationConfig
from p3o.training.loop import CheckpointConfig
from p3o.training.online import OnlineConfig
from p3o.training.reward_model import RewardTrainingConfig
from p3o.training.sft import SFTConfig


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Section):
    """The user's own files. JSONL, one object a line."""

    prompts: str | None = Field(None, description='Training prompts of RL: {"prompt"} a line.')
    heldout_prompts: str | None = Field(None, description="Prompts of the evaluation; null: split off from prompts.")
    demonstrations: str | None = Field(None, description='{"prompt", "completion"} a line, for SFT.')
    preferences: str | None = Field(None, description='{"prompt", "chosen", "rejected"} a line, for the reward model.')


class EmbeddedTaskConfig(Section):
    """Sizes of the embedded task: a grammar of our own with an exact gold reward."""

    demonstrations: int = Field(9600, gt=0, description="Demonstrations for SFT.")
    pairs: int = Field(12000, gt=0, description="Labelled pairs for the reward model.")
    sampled_share: float = Field(0.25, ge=0, le=1, description="Share of pairs sampled from the SFT policy.")
    label_scale: float = Field(1.5, gt=0, description="Gold reward to log-odds of the simulated labeller.")
    prompts: int = Field(4000, gt=0, description="Training prompts of RL.")


class RewardConfig(Section):
    """Where the reward comes from: a model, a Python function, or a model trained on the preferences."""

    model: str | None = Field(None, description="Folder or hub name of a sequence classifier with one label.")
    function: str | None = Field(None, description="module:function of (prompts, responses) -> list of scores.")
    train: RewardTrainingConfig = Field(default_factory=lambda: RewardTrainingConfig())

    @model_validator(mode="after")
    def one_source(self) -> "RewardConfig":
        """A model and a function exclude each other."""
        if self.model is not None and self.function is not None:
            raise ValueError("give either model or function, not both")
        return self


class RunOverrides(Section):
    """One RL run: an algorithm with its own settings and, where they differ, its own training settings."""

    algorithm: str = Field(description="Name of the algorithm.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Settings of the algorithm (beta, epsilon, …).")
    reward_shift: float = Field(
        0.0, ge=0, description="Standard deviation of an offset added in training to all rewards of a prompt."
    )
    training: dict[str, Any] = Field(
        default_factory=dict, description="Training settings that differ from rl.training."
    )

    @model_validator(mode="after")
    def known(self) -> "RunOverrides":
        """The algorithm exists and takes these settings."""
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"unknown algorithm {self.algorithm!r}; known: {', '.join(ALGORITHMS)}")
        ALGORITHMS[self.algorithm].config(**self.settings)
        unknown = set(self.training) - set(OnlineConfig.model_fields)
        if unknown:
            raise ValueError(
                f"unknown training setting {sorted(unknown)[0]!r}; known: {', '.join(OnlineConfig.model_fields)}"
            )
        return self


class RLConfig(Section):
    """The RL stage: settings shared by all runs, and the runs."""

    training: OnlineConfig = Field(default_factory=lambda: OnlineConfig())
    runs: dict[str, RunOverrides] = Field(
        default_factory=lambda: {"p3o_v2": RunOverrides(algorithm="p3o_v2")}, description="Runs by name."
    )

    @model_validator(mode="after")
    def resolvable(self) -> "RLConfig":
        """Every run's training settings are valid together with the shared ones."""
        for name in self.runs:
            self.training_of(name)
        return self

    def training_of(self, name: str) -> OnlineConfig:
        """The training settings of a run."""
        return OnlineConfig(**(self.training.model_dump() | self.runs[name].training))


class RunConfig(Section):
    """A whole run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Folder under runs/.")
    seed: int = Field(0, ge=0, description="Of everything random.")
    threads: int | None = Field(None, gt=0, description="CPU threads of torch; null: torch's own choice.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    model: str | None = Field(
        None, description="Folder or hub name of the language model to start from; null: embedded."
    )
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    embedded: EmbeddedTaskConfig | None = Field(None, description="Use the embedded task in the place of data files.")
    sft: SFTConfig | None = Field(None, description="Null: start RL from the model as it is.")
    reward: RewardConfig = Field(default_factory=lambda: RewardConfig())
    rl: RLConfig = Field(default_factory=lambda: RLConfig())
    evaluation: EvaluationConfig = Field(default_factory=lambda: EvaluationConfig())
    checkpoints: CheckpointConfig = Field(default_factory=lambda: CheckpointConfig())

    @model_validator(mode="after")
    def has_inputs(self) -> "RunConfig":
        """What the stages need is there."""
        if self.embedded is not None:
            given = [name for name, value in self.data if value is not None]
            if given or self.model is not None:
                raise ValueError(
                    f"the embedded task brings its own model and data; remove {'model' if self.model else 'data.' + given[0]}"
                )
            if self.sft is None:
                raise ValueError("sft: the embedded task starts from an untrained model; add a section 'sft: {}'")
            return self
        if self.model is None:
            raise ValueError("model: name a folder or hub model, or add a section 'embedded: {}' for the embedded task")
        if self.data.prompts is None:
            raise ValueError("data.prompts: name a JSONL file of prompts")
        if self.sft is not None and self.data.demonstrations is None:
            raise ValueError("data.demonstrations: sft needs a JSONL file of demonstrations")
        if self.reward.model is None and self.reward.function is None and self.data.preferences is None:
            raise ValueError("reward: give model or function, or data.preferences to train a reward model on")
        return self

    def with_shifted_runs(self, shift: float) -> "RunConfig":
        """The same with a twin of every RL run, NAME_shifted, whose rewards get offsets of this standard deviation."""
        twins = {
            f"{name}_shifted": run.model_copy(update={"reward_shift": shift}) for name, run in self.rl.runs.items()
        }
        return self.model_copy(update={"rl": self.rl.model_copy(update={"runs": self.rl.runs | twins})})
