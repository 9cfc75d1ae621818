"""How a cluster is divided between learner and servers, and what a step then takes.

Three ways to take turns:

    together      the same GPUs sample, then learn; weights and moments stay where they are, so both must fit side by side
    apart         servers and learner have GPUs of their own and wait for each other
    asynchronous  they have GPUs of their own and work at the same time, on batches one version apart; only the push is a pause
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from p3o.bench.plan_cost import (
    Assumptions,
    LearnerCost,
    Memory,
    Method,
    RolloutCost,
    broadcast_seconds,
    learner_cost,
    learner_memory,
    push_bytes,
    push_seconds,
    rollout_cost,
    server_gpus,
)
from p3o.bench.plan_shapes import BF16, Shape, Work

Turns = Literal["together", "apart", "asynchronous"]
TURNS: tuple[Turns, ...] = get_args(Turns)


@dataclass(frozen=True)
class Plan:
    """One step on one division of a cluster.

    Attributes:
        learners, rollouts: GPUs of each; the same ones where they take turns together.
        seconds: of a step.
        tokens_per_second: response tokens sampled and learned from.
        utilisation: useful operations of the learner over the peak of all GPUs and the step's seconds.
        push: seconds of a push to all servers.
        broadcast: of these on the network between learner and servers.
    """

    gpus: int
    turns: Turns
    learners: int
    rollouts: int
    seconds: int | float
    tokens_per_second: int | float
    utilisation: int | float
    push: int | float
    broadcast: int | float
    push_bytes: int | float
    learner: LearnerCost
    rollout: RolloutCost
    memory: Memory

    @property
    def ratio(self) -> int | float:
        """GPUs that sample for each that learns."""
        return self.rollouts / self.learners


def best_plan(shape: Shape, work: Work, method: Method, gpus: int, turns: Turns, assumed: Assumptions) -> Plan | None:
    """The fastest division that fits; None if none does."""
    plans = list(plans_of(shape, work, method, gpus, turns, assumed))
    return min(plans, key=lambda plan: plan.seconds, default=None)


def plans_of(shape: Shape, work: Work, method: Method, gpus: int, turns: Turns, assumed: Assumptions) -> Iterator[Plan]:
    """Every division that fits, in sixteenths of the cluster, or in servers where these are larger."""
    if turns == "together":
        divisions = [(gpus, gpus)]
    else:
        step = max(server_gpus(shape, assumed), gpus // 16)
        divisions = [(gpus - rollouts, rollouts) for rollouts in range(step, gpus, step)]
    for learners, rollouts in divisions:
        plan = _plan(shape, work, method, gpus, turns, learners, rollouts, assumed)
        if plan is not None:
            yield plan


def _plan(
    shape: Shape,
    work: Work,
    method: Method,
    gpus: int,
    turns: Turns,
    learners: int,
    rollouts: int,
    assumed: Assumptions,
) -> Plan | None:
    # Together, the server's weights stay while the learner works, and the learner's shards stay while the server samples.
    beside = shape.parameters * BF16 / server_gpus(shape, assumed) if turns == "together" else 0.0
    fitting = fitting_passes(shape, work, method, learners, assumed, beside=beside)
    if fitting is None:
        return None
    memory = learner_memory(shape, work, method, learners, fitting)
    try:
        rollout = rollout_cost(shape, work, rollouts, assumed, taken=memory.lasting if turns == "together" else 0.0)
    except ValueError:
        return None
    learner = learner_cost(shape, work, method, learners, fitting)
    push = push_seconds(shape, learners, rollouts, assumed)
    # Asynchronous servers go on with the next prompts while the last responses end, so nobody waits for stragglers.
    overlapped, in_turns = max(rollout.busy, learner.seconds), rollout.seconds + learner.seconds
    seconds = push + (overlapped if turns == "asynchronous" else in_turns)
    return Plan(
        gpus=gpus,
        turns=turns,
        learners=learners,
        rollouts=rollouts,
        seconds=seconds,
        tokens_per_second=work.sampled_tokens / seconds,
        utilisation=learner.operations / (seconds * gpus * assumed.peak),
        push=push,
        broadcast=broadcast_seconds(shape, learners, rollouts, assumed),
        push_bytes=push_bytes(shape, rollouts, assumed),
        learner=learner,
        rollout=rollout,
        memory=memory,
    )


def fitting_passes(
    shape: Shape, work: Work, method: Method, ranks: int, assumed: Assumptions, *, beside: int | float = 0.0
) -> Assumptions | None:
    """The same with the largest micro-batch that fits, halved as often as needed; None if not even the smallest does.

    Args:
        beside: bytes of each GPU that something else holds.
    """
    while True:
        memory = learner_memory(shape, work, method, ranks, assumed)
        if memory.total + beside <= assumed.usable * assumed.memory:
            return assumed
        if assumed.micro_batch_tokens <= 1:
            return None
        assumed = replace(assumed, micro_batch_tokens=assumed.micro_batch_tokens // 2)
