"""The sections of a configuration that say where feedback comes from: rewards that score responses, and labellers that
compare them.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from p3o.feedback.judge import JudgeConfig
from p3o.feedback.remote import RewardServiceConfig
from p3o.feedback.reward_model import Form
from p3o.training.reward_model import RewardTrainingConfig

GIVEN_REWARDS = ("model", "function", "service")
"""Rewards that a run does not train."""


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _check_form(form: Form, model: str | None) -> None:
    if form != "text" and model is None:
        raise ValueError(f"form: {form} is only for a given reward model; name the model as model, or remove form")


class RewardPart(Section):
    """One reward of a weighted sum; without a model, a function and a service it is the one that this run trains."""

    model: str | None = Field(None, description="Folder or hub name of a sequence classifier with one label.")
    form: Form = Field(
        "text",
        description="Input form of a given model for plain prompts: text, or pair (encoders: two segments with separators).",
    )
    function: str | None = Field(
        None, description="Python function module:function of (prompts, responses) that returns a list of scores."
    )
    service: RewardServiceConfig | None = Field(None, description="A reward service (p3o serve-reward or vLLM).")
    weight: int | float = Field(1.0, description="Weight in the sum; negative for a cost.")

    @model_validator(mode="after")
    def one_source(self) -> "RewardPart":
        """The sources exclude each other."""
        given = [name for name in GIVEN_REWARDS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give either {given[0]} or {given[1]}, not both")
        _check_form(self.form, self.model)
        return self

    @property
    def is_trained(self) -> bool:
        """Whether it is the one that this run trains."""
        return all(getattr(self, name) is None for name in GIVEN_REWARDS)


class RewardConfig(Section):
    """Where the feedback comes from: a given reward, a sum of several, comparisons alone, or a reward model trained here."""

    model: str | None = Field(None, description="Folder or hub name of a sequence classifier with one label.")
    form: Form = Field(
        "text",
        description="Input form of a given model for plain prompts: text, or pair (encoders: two segments with separators).",
    )
    function: str | None = Field(
        None, description="Python function module:function of (prompts, responses) that returns a list of scores."
    )
    service: RewardServiceConfig | None = Field(None, description="A reward service (p3o serve-reward or vLLM).")
    parts: dict[str, RewardPart] = Field(
        default_factory=dict, description="Several rewards by name, summed with their weights."
    )
    comparison: str | None = Field(
        None,
        description="Python function module:function of (prompts, responses_a, responses_b); only relative "
        "algorithms can learn from it.",
    )
    judge: JudgeConfig | None = Field(
        None, description="A judge that compares two responses; only relative algorithms can learn from it."
    )
    comparison_scale: Literal["preference", "log_odds"] = Field(
        "preference", description="What the comparison returns: a preference in [-1, 1] or log-odds."
    )
    train: RewardTrainingConfig = Field(default_factory=lambda: RewardTrainingConfig())

    @model_validator(mode="after")
    def one_source(self) -> "RewardConfig":
        """The sources exclude each other."""
        given = [name for name in (*GIVEN_REWARDS, "parts", "comparison", "judge") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give either {given[0]} or {given[1]}, not both")
        _check_form(self.form, self.model)
        return self

    @property
    def is_trained(self) -> bool:
        """Whether the run trains a reward model of its own."""
        if self.parts:
            return any(part.is_trained for part in self.parts.values())
        return not self.is_relative and all(getattr(self, name) is None for name in GIVEN_REWARDS)

    @property
    def source(self) -> str:
        """What it is, in words for a log."""
        served = None if self.service is None else self.service.url
        judge = None if self.judge is None else f"judge {self.judge.model or self.judge.function}"
        given = self.model or self.function or served or self.comparison or judge or " + ".join(self.parts)
        return given or "trained on the preferences"

    @property
    def is_relative(self) -> bool:
        """Whether there are only comparisons."""
        return self.comparison is not None or self.judge is not None


class LabellerConfig(Section):
    """Who compares sampled responses."""

    kind: Literal["simulated", "function", "judge", "people"] = Field(
        "simulated", description="simulated (embedded task), function, judge, or people (on the labelling page)."
    )
    function: str | None = Field(
        None,
        description="Python function module:function of (prompts, responses_a, responses_b), returns values in [-1, 1].",
    )
    judge: JudgeConfig | None = Field(None, description="Settings of the judge.")
    store: str | None = Field(None, description="Store of people's labels: a file, or a PostgreSQL URL.")
    tie_margin: float = Field(0.0, ge=0, le=1, description="Preferences up to this size count as ties.")

    @model_validator(mode="after")
    def complete(self) -> "LabellerConfig":
        """What the kind needs is there."""
        needed = {"function": "function", "judge": "judge", "people": "store"}.get(self.kind)
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"labeller {self.kind} needs {needed}")
        return self


class SamplingConfig(Section):
    """Pairs of responses of the SFT model to the user's own prompts, to be labelled."""

    prompts: int = Field(1000, gt=0, description="Number of training prompts to sample for.")
    responses_per_prompt: int = Field(
        2, ge=2, description="K, responses per prompt; all K(K-1)/2 pairs of different texts are kept."
    )
    labeller: LabellerConfig | None = Field(
        None, description="Who labels the pairs; null: pairs.jsonl is written for p3o label."
    )
