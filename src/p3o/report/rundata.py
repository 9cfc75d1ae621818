"""What a run folder holds, as typed rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Row(BaseModel):
    """Fields that are not named here are allowed: runs of later versions may record more."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, protected_namespaces=())


class Evaluation(_Row):
    """One policy at one step on the held-out prompts: means, standard errors, KL in nats per response."""

    policy: str
    algorithm: str | None = None
    beta: float | None = None
    step: int = 0
    decoding: str = "sample"
    prompts: int
    reward: float
    reward_se: float = 0.0
    gold: float | None = None
    gold_se: float | None = None
    kl: float | None = None
    kl_se: float | None = None
    kl_k1: float | None = None
    kl_k1_se: float | None = None
    length: float | None = None
    ended: float | None = None
    reward_shift: float = 0.0

    @model_validator(mode="after")
    def _samples_have_a_kl(self) -> "Evaluation":
        if self.decoding == "sample" and self.kl is None:
            raise ValueError("a row with decoding 'sample' needs 'kl'")
        return self


class Response(_Row):
    """One response to one held-out prompt, by a policy at its last step. Its reward is None where it was not finite."""

    policy: str
    prompt_index: int
    prompt: str
    response: str
    reward: float | None = None
    gold: float | None = None
    kl: float | None = None
    length: int | None = None
    ended: bool | None = None
    decoding: str = "sample"


class Sample(_Row):
    """One response to a prompt that is followed through training."""

    policy: str
    step: int
    prompt_index: int
    prompt: str
    response: str
    reward: float | None = None
    gold: float | None = None


class Rate(_Row):
    """A win rate with its interval."""

    win_rate: float
    low: float
    high: float

    def mirrored(self) -> "Rate":
        """Seen from the other side."""
        return Rate(win_rate=1 - self.win_rate, low=1 - self.high, high=1 - self.low)


class LengthBin(_Row):
    """The pairs whose difference of lengths, A minus B, lies within these limits."""

    low: float
    high: float
    win_rate: Rate


class Judgement(_Row):
    """A judge's verdict on one pair: preference above 0 for ``a``, below 0 for ``b``, None where there is none."""

    a: str
    b: str
    prompt_index: int
    judge: str
    preference: float | None
    reasons: list[str] = Field(default_factory=list)


class Comparison(_Row):
    """Policy ``a`` against policy ``b`` on the same prompts, by a reward or by a judge (then with its own rates)."""

    a: str
    b: str
    wins: int
    ties: int
    losses: int
    win_rate: float
    low: float
    high: float
    by: str = "reward"
    judge: str | None = None
    served_by: list[str] = Field(default_factory=list)
    date: str | None = None
    flip_rate: float | None = None
    first_position_rate: float | None = None
    invalid: int = 0
    failed: int = 0
    length_controlled: Rate | None = None
    by_length: list[LengthBin] = Field(default_factory=list)
    length_unit: str | None = None

    def mirrored(self) -> "Comparison":
        """The same comparison seen from ``b``."""
        change = {"a": self.b, "b": self.a, "wins": self.losses, "losses": self.wins, "win_rate": 1 - self.win_rate}
        controlled = self.length_controlled.mirrored() if self.length_controlled else None
        bins = [LengthBin(low=-b.high, high=-b.low, win_rate=b.win_rate.mirrored()) for b in reversed(self.by_length)]
        change |= {"length_controlled": controlled, "by_length": bins}
        return self.model_copy(update=change | {"low": 1 - self.high, "high": 1 - self.low})


class RunInfo(_Row):
    """run.json: how the run went and on what."""

    name: str
    status: str
    seed: int
    threads: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the results are all there. The report is drawn by the last stage of a run that is still "running"."""
        return self.status == "complete" or (self.status == "running" and "evaluate" in self.seconds)


@dataclass(frozen=True)
class TrainingStep:
    """One row of a training stage. ``values`` holds the numbers of the row; NaN and null are left out."""

    run: str
    algorithm: str | None
    reward_shift: float
    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class RunData:
    """A run folder, read.

    Attributes:
        evaluations: rows of stage "evaluate" of the SFT model and of policies that were trained without reward offsets.
        shifted: rows of stage "evaluate" of policies trained with them, from metrics.jsonl and shift/metrics.jsonl.
            Where all policies were, there is nothing to set apart: ``evaluations`` holds them and this is empty.
        training: rows of stage "rl" of the policies in ``evaluations``, one list per run, in order of appearance.
        comparisons: between policies in ``evaluations``, SFT always the second.
        judgements: of judges, pair by pair, on the same policies.
        reward_test: the last row of stage "reward_test".
    """

    folder: Path
    info: RunInfo
    config: str
    evaluations: list[Evaluation] = field(default_factory=list)
    shifted: list[Evaluation] = field(default_factory=list)
    sft: list[TrainingStep] = field(default_factory=list)
    reward_training: list[TrainingStep] = field(default_factory=list)
    reward_test: Mapping[str, Any] | None = None
    training: Mapping[str, list[TrainingStep]] = field(default_factory=dict)
    responses: list[Response] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)

    @property
    def has_gold(self) -> bool:
        """Whether policies were judged by a gold reward that training never saw."""
        return any(row.gold is not None for row in self.evaluations)

    @property
    def algorithms(self) -> list[str]:
        """Algorithms in the order in which they were trained."""
        trained = [steps[0].algorithm for steps in self.training.values()]
        evaluated = [row.algorithm for row in self.evaluations]
        return list(dict.fromkeys(name for name in [*trained, *evaluated] if name is not None))

    @property
    def sft_sample(self) -> Evaluation | None:
        """The SFT model, sampled: where every frontier starts."""
        return next((row for row in self.evaluations if row.policy == "sft" and row.decoding == "sample"), None)

    def last(self, policy: str, decoding: str = "sample") -> Evaluation | None:
        """The evaluation of this policy at its last step."""
        rows = [row for row in self.evaluations if row.policy == policy and row.decoding == decoding]
        return max(rows, key=lambda row: row.step, default=None)

    @property
    def trained_policies(self) -> list[str]:
        """Names of the policies that came out of reinforcement learning, in order."""
        return list(dict.fromkeys(row.policy for row in self.evaluations if row.algorithm is not None))
