"""What is compared: the benchmark's problems, its methods, and what is tuned of each.

A method is an algorithm of the package with a way to spend samples (K, epochs, replay). Every method gets the same
samples. What matters to it is tuned on seeds of its own (``TUNING_SEEDS``), on every problem: the
learning rate of all, and of PPO also λ, the critic's rate and its warm-up: it is tuned with more care, not less.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from p3o.algorithms import ALGORITHMS
from p3o.bench.bandit import ShiftedBandit
from p3o.bench.factorised import Factorised
from p3o.bench.problems import Problem
from p3o.bench.sequence import EnumerableSequence
from p3o.bench.train import Schedule

SHIFTS = (0, 1, 10, 100)
LENGTHS = (20, 80, 160)
SAMPLES = 4800
TUNING_SEEDS = (901, 902)
EVALUATION_SEEDS = (1, 2, 3, 4, 5)
FULL_EVALUATION_SEEDS = tuple(range(1, 13))


@dataclass(frozen=True)
class Task:
    """A problem as it is benchmarked.

    Attributes:
        build: from seeds to the problem.
        betas: β of the runs whose points make one frontier.
        rates: learning rates to choose from.
        samples: responses sampled in a run.
    """

    build: Callable[[Sequence[int]], Problem]
    betas: tuple[float, ...]
    rates: tuple[float, ...]
    samples: int


TASKS: dict[str, Task] = {
    **{
        f"bandit_{shift}": Task(
            partial(ShiftedBandit, shift=float(shift)), (0.15, 0.4, 0.8, 1.6), (0.03, 0.07, 0.16), SAMPLES
        )
        for shift in SHIFTS
    },
    "sequence": Task(EnumerableSequence, (0.25, 0.5, 1.0, 2.0), (0.0008, 0.0018, 0.004), SAMPLES),
    **{
        f"factorised_{length}": Task(
            partial(Factorised, length=length), (0.15, 0.25, 0.5, 1.0), (0.005, 0.011, 0.025), SAMPLES
        )
        for length in LENGTHS
    },
}

PROBLEMS: dict[str, tuple[str, ...]] = {
    "bandit": ("bandit_0",),
    "sequence": ("sequence",),
    "factorised": tuple(f"factorised_{length}" for length in LENGTHS),
}
"""The three problems of the summary and the tasks that each is the mean of."""


@dataclass(frozen=True)
class Setting:
    """Everything that may be tuned of a method on a task; as JSON in the file of chosen settings.

    Attributes:
        learning_rate: Adam's, of the policy.
        critic_factor: the critic's learning rate as a multiple of the policy's.
        kl_stop: limit of the mean ½·(log-ratio)² on fresh groups.
        algorithm: settings of the algorithm other than β.
        schedule: fields of ``Schedule`` other than samples.
    """

    learning_rate: float
    critic_factor: float = 3.0
    kl_stop: float = 0.05
    algorithm: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        title: as people write it.
        algorithm: its name in ``ALGORITHMS``.
        schedule: how it spends samples.
        settings: settings of the algorithm, the same on every task.
        kl_stop: limit of the mean ½·(log-ratio)² on fresh groups.
        refinements: after the learning rate is chosen: changes to try one after another, each kept if it helps.
    """

    title: str
    algorithm: str
    schedule: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    kl_stop: float = 0.05
    refinements: tuple[Mapping[str, Any], ...] = ()

    @property
    def is_relative(self) -> bool:
        """Whether comparisons suffice as feedback."""
        return ALGORITHMS[self.algorithm].build(ALGORITHMS[self.algorithm].config()).accepts_comparisons


REPLAY = {"responses": 4, "replay": 15, "epochs": 1, "minibatches": 16}
WIDE_STOP = 0.2
_PPO = {"value_epsilon": None, "lam": 1.0}

METHODS: dict[str, Method] = {
    "reinforce": Method("REINFORCE, K=1", "reinforce", {"responses": 1}),
    "ppg": Method("PPG, K=2", "ppg", {"responses": 2}),
    "online_dpo": Method("Online DPO, K=2", "online_dpo", {"responses": 2}),
    "rebel": Method("REBEL, K=2", "rebel", {"responses": 2}),
    "p3o_v1": Method("P3O-V1, K=2", "p3o_v1", {"responses": 2}),
    "p3o_v2": Method("P3O-V2, K=2", "p3o_v2", {"responses": 2}),
    "grpo": Method("GRPO, K=8", "grpo", {"responses": 8}),
    "rloo": Method("RLOO, K=8", "rloo", {"responses": 8}),
    "p3o_v2_k8": Method("P3O-V2, K=8", "p3o_v2", {"responses": 8}),
    "ppo": Method(
        "PPO",
        "ppo",
        {"responses": 1},
        _PPO,
        refinements=(
            {"algorithm": {"lam": 0.95}},
            {"critic_factor": 1.0},
            {"schedule": {"warm_up": 5}},
            {"schedule": {"epochs": 4}, "kl_stop": WIDE_STOP},
            {"critic_factor": 0.3},
        ),
    ),
    "rloo_replay": Method("RLOO + replay", "rloo", REPLAY, kl_stop=WIDE_STOP),
    "ppo_replay": Method(
        "PPO + replay",
        "ppo",
        REPLAY | {"responses": 1},
        _PPO,
        WIDE_STOP,
        refinements=(
            {"algorithm": {"lam": 0.95}},
            {"schedule": {"recentre": True}},
            {"critic_factor": 1.0},
            {"kl_stop": 0.05},
            {"critic_factor": 0.3},
        ),
    ),
    "p3o_r": Method(
        "P3O-R",
        "p3o_r",
        REPLAY,
        {"epsilon": None, "clip_per": "response"},
        WIDE_STOP,
        refinements=({"algorithm": {"epsilon": 0.2}}, {"algorithm": {"epsilon": 0.07, "clip_per": "token"}}),
    ),
}


def tuned_on(method: str, task: str) -> str:
    """The task on which a method's settings for a task are chosen.

    Factorised problems are tuned at 80 tokens for all lengths. A critic has to follow the shifts of the bandit, so PPO is tuned
    anew at every shift, and with replay at 0 and 10 (for 1 and 100); the others, most of which see reward gaps only, keep
    their settings from the bandit without shifts.
    """
    if task.startswith("factorised"):
        return "factorised_80"
    if task.startswith("bandit") and method == "ppo_replay":
        return "bandit_0" if task in ("bandit_0", "bandit_1") else "bandit_10"
    if task.startswith("bandit") and METHODS[method].algorithm != "ppo":
        return "bandit_0"
    return task


def schedule_of(task: Task, setting: Setting, *, evaluations: int = 16) -> Schedule:
    """The schedule of a setting on a task."""
    return Schedule(**{"samples": task.samples, "evaluations": evaluations, **setting.schedule})
