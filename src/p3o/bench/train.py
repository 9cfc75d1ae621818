"""The benchmark's training loop: the loop of ``p3o run`` on exact problems, for many independent policies at once.

    for every batch:  sample groups -> score -> prepare -> epochs × minibatches with the KL stop -> exact evaluation

The losses are the package's own Algorithm objects, mapped over the policy axis with ``torch.func.vmap``; nothing is
implemented twice. Replay adds the last batches to each batch, every group with the log-probs of the policy that sampled it.
With a lag the policy that samples is that of some steps ago, as it is where generation overlaps training.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from p3o.algorithms import Algorithm
from p3o.bench.problems import Point, Problem
from p3o.functional.advantages import reward_gaps
from p3o.functional.masked import masked_sum
from p3o.training.replay import stratified_minibatches
from p3o.types import Experience


@dataclass(frozen=True)
class Schedule:
    """How samples are spent. Every run has the same ``samples``; algorithms differ in how they use them.

    Attributes:
        samples: responses sampled in the whole run, those of the critic's warm-up included.
        batch: responses sampled in one step.
        responses: K, responses per prompt.
        epochs: passes over the step's groups, replayed ones included.
        minibatches: updates per epoch.
        replay: earlier batches beside the fresh one.
        recentre: give replayed groups the current policy's log-probs as π_old at the start of each step, so that a
            clip is centred where the step begins (as GePPO does) at the price of ignoring that they are stale.
        warm_up: batches on which only the critic learns.
        evaluations: batches after which policies are evaluated, dense early on; the last batch always is.
    """

    samples: int = 6400
    batch: int = 64
    responses: int = 2
    epochs: int = 2
    minibatches: int = 2
    replay: int = 0
    recentre: bool = False
    warm_up: int = 0
    evaluations: int = 24

    @property
    def batches(self) -> int:
        """Number of steps."""
        return self.samples // self.batch

    def evaluated_steps(self) -> list[int]:
        """Steps after which to evaluate, spaced geometrically from 1 to the last."""
        spaced = torch.logspace(0, torch.log10(torch.tensor(float(self.batches))).item(), self.evaluations)
        return sorted({round(step) for step in spaced.tolist()} | {self.batches})


@dataclass(frozen=True)
class Arm:
    """One algorithm with one setting of what may differ between policies of one program.

    Attributes:
        algorithm: an algorithm of the package.
        learning_rate: Adam's, of the policy.
        critic_learning_rate: Adam's, of the critic.
        kl_stop: limit of the mean ½·(log-ratio)² on the youngest groups.
        lag: a step's groups are sampled by the policy of so many steps before (by the first one while there are fewer).
        corrected: whether late groups bring the log-probs of the policy that sampled them; if not, they get those of the
            policy at their arrival, as if that had sampled them.
    """

    algorithm: Algorithm
    learning_rate: float
    critic_learning_rate: float = 1e-2
    kl_stop: float = 0.05
    lag: int = 0
    corrected: bool = True


class Curves(NamedTuple):
    """Exact evaluations along the run; ``responses_learned`` counts responses that went through a gradient."""

    steps: Int[Tensor, " evaluation"]
    reward: Float[Tensor, "arm seed evaluation"]
    kl: Float[Tensor, "arm seed evaluation"]
    updates: Float[Tensor, "arm seed"]
    responses_learned: Float[Tensor, "arm seed"]


class _Batch(NamedTuple):
    """Groups with what the networks read of them; the experience's fields by name, each with the policy axis first."""

    inputs: Tensor
    tokens: Int[Tensor, "policy group response time"]
    experience: dict[str, Tensor]

    def select(self, groups: Int[Tensor, " chosen"]) -> "_Batch":
        fields = {name: tensor[:, groups] for name, tensor in self.experience.items()}
        return _Batch(self.inputs[:, groups], self.tokens[:, groups], fields)


def train(
    build: Callable[[Sequence[int]], Problem], arms: Sequence[Arm], seeds: Sequence[int], schedule: Schedule
) -> Curves:
    """Train every arm from every seed and return their exact curves. Arms share the schedule and the noise of their seed."""
    problem = build([seed for _ in arms for seed in seeds])
    run = _Run(problem, arms, len(seeds), schedule)
    history: deque[_Batch] = deque(maxlen=schedule.replay + 1)
    evaluated = [0, *schedule.evaluated_steps()]
    points = [run.evaluate()]
    for step in range(1, schedule.batches + 1):
        history.append(run.sample())
        run.learn(_together(history), warming_up=step <= schedule.warm_up)
        if step in evaluated:
            points.append(run.evaluate())

    shape = (len(arms), len(seeds), -1)
    return Curves(
        torch.tensor(evaluated),
        torch.stack([point.reward for point in points], -1).reshape(shape),
        torch.stack([point.kl for point in points], -1).reshape(shape),
        run.updates.reshape(shape[:2]),
        run.responses_learned.reshape(shape[:2]),
    )


class _Run:
    """The policies, their critics and optimisers, and the two halves of a step."""

    def __init__(self, problem: Problem, arms: Sequence[Arm], seeds: int, schedule: Schedule) -> None:
        def per_policy(values: list[float]) -> Float[Tensor, " policy"]:
            return torch.tensor(values).repeat_interleave(seeds)

        self._problem = problem
        self._schedule = schedule
        self._learner = _Learner(arms, seeds)
        self._reference = problem.initial_policy()
        self._kl_stop = per_policy([arm.kl_stop for arm in arms])
        self._shuffle = torch.Generator().manual_seed(0)
        self.policy = _Adam(problem.initial_policy(), per_policy([arm.learning_rate for arm in arms]))
        self.critic = _Adam(problem.initial_critic(), per_policy([arm.critic_learning_rate for arm in arms]))
        self._lag = torch.tensor([arm.lag for arm in arms]).repeat_interleave(seeds)
        self._corrected = torch.tensor([arm.corrected for arm in arms]).repeat_interleave(seeds).unsqueeze(1)
        self._versions: deque[Float[Tensor, "policy parameter"]] = deque(maxlen=int(self._lag.max()) + 1)
        self.updates = torch.zeros(len(arms) * seeds)
        self.responses_learned = torch.zeros(len(arms) * seeds)

    @torch.no_grad()
    def sample(self) -> _Batch:
        """Sample groups, each arm from its policy of ``lag`` steps ago, and score them."""
        problem, responses = self._problem, self._schedule.responses
        current = self.policy.parameters.detach()  # an update makes new parameters and leaves these alone
        self._versions.appendleft(current)
        lag = self._lag.clamp(max=len(self._versions) - 1)
        sampler = torch.stack(tuple(self._versions))[lag, torch.arange(len(lag))] if bool(lag.any()) else current
        prompts = problem.prompts(self._schedule.batch // responses)
        rollout = problem.sample(sampler, prompts, responses)
        rewards = problem.rewards(prompts, rollout)
        inputs = problem.encode(prompts, rollout.tokens)
        experience = {
            "response_mask": rollout.response_mask,
            "behaviour_logprobs": problem.logprobs(
                torch.where(self._corrected, sampler, current), inputs, rollout.tokens
            ),
            "reference_logprobs": problem.logprobs(self._reference, inputs, rollout.tokens),
            "reward_gaps": reward_gaps(rewards.flatten(0, 1)).unflatten(0, rewards.shape[:2]),
            "rewards": rewards,
            "age": lag.unsqueeze(1).expand(rewards.shape[:2]).contiguous(),
        }
        return _Batch(inputs, rollout.tokens, experience)

    @torch.no_grad()
    def evaluate(self) -> Point:
        """Where the policies are, exactly."""
        return self._problem.evaluate(self.policy.parameters)

    def learn(self, batch: _Batch, *, warming_up: bool) -> None:
        """Prepare, then epochs × minibatches until every policy has passed its KL stop."""
        prepared = batch._replace(experience=self._learner.prepare(self._refreshed(batch)))
        age = batch.experience["age"]
        youngest = age.min(1, keepdim=True).values
        active = torch.full_like(self._kl_stop, not warming_up, dtype=torch.bool)
        for _ in range(self._schedule.epochs):
            for groups in stratified_minibatches(age.min(0).values, self._schedule.minibatches, self._shuffle):
                active = self._update(prepared.select(groups), active, youngest, warming_up=warming_up)
                if not (active.any() or warming_up):
                    return

    @torch.no_grad()
    def _refreshed(self, batch: _Batch) -> dict[str, Tensor]:
        """What changes with the policy and the critic on groups that are replayed or late."""
        fresh = dict(batch.experience)
        if bool(self._lag.any()):
            fresh["start_logprobs"] = self._problem.logprobs(self.policy.parameters, batch.inputs, batch.tokens)
        if self._schedule.recentre:
            fresh["behaviour_logprobs"] = self._problem.logprobs(self.policy.parameters, batch.inputs, batch.tokens)
        if self._learner.needs_critic:
            values = self._problem.values(self.critic.parameters, batch.inputs, batch.tokens)
            fresh["values"] = values.contiguous()
        return fresh

    def _update(
        self, part: _Batch, active: Bool[Tensor, " policy"], youngest: Int[Tensor, "policy 1"], *, warming_up: bool
    ) -> Bool[Tensor, " policy"]:
        """One update of the policies that are active and have not passed their KL stop; returns which those are."""
        theta, phi = self.policy.parameters.requires_grad_(), self.critic.parameters.requires_grad_()
        logprobs = self._problem.logprobs(theta, part.inputs, part.tokens)
        active = active & (_distance_on_youngest(logprobs, part.experience, youngest) <= self._kl_stop)
        if not (active.any() or warming_up):
            return active
        if self._learner.needs_critic:
            values = self._problem.values(phi, part.inputs, part.tokens)
            loss = self._learner.loss(logprobs, part.experience, values).sum()
            policy_gradient, critic_gradient = torch.autograd.grad(loss, [theta, phi])
            self.critic.step(critic_gradient, torch.ones_like(active) if warming_up else active)
        else:
            loss = self._learner.loss(logprobs, part.experience, None).sum()
            (policy_gradient,) = torch.autograd.grad(loss, [theta])
        self.policy.step(policy_gradient, active)
        self.updates += active
        self.responses_learned += active * (part.tokens.shape[1] * part.tokens.shape[2])
        return active


def _together(history: deque[_Batch]) -> _Batch:
    """The batches held, newest first, as one; since a batch came it has aged by one with each that came after it."""
    held = list(reversed(history))
    fields = {name: torch.cat([batch.experience[name] for batch in held], 1) for name in held[0].experience}
    ages = [batch.experience["age"] + later for later, batch in enumerate(held)]
    inputs, tokens = torch.cat([batch.inputs for batch in held], 1), torch.cat([batch.tokens for batch in held], 1)
    return _Batch(inputs, tokens, fields | {"age": torch.cat(ages, 1)})


class _Adam:
    """Adam on a ``[policy, parameter]`` matrix with a learning rate per policy; policies that are stopped stand still."""

    def __init__(self, parameters: Float[Tensor, "policy parameter"], rates: Float[Tensor, " policy"]) -> None:
        self.parameters = parameters
        self._rates = rates.unsqueeze(1)
        self._mean = torch.zeros_like(parameters)
        self._square = torch.zeros_like(parameters)
        self._steps = torch.zeros(parameters.shape[0], 1)

    @torch.no_grad()
    def step(self, gradient: Float[Tensor, "policy parameter"], active: Bool[Tensor, " policy"]) -> None:
        """One update of the active policies."""
        moves = active.unsqueeze(1)
        self._steps += moves
        self._mean = torch.where(moves, torch.lerp(self._mean, gradient, 0.1), self._mean)
        self._square = torch.where(moves, torch.lerp(self._square, gradient**2, 0.01), self._square)
        steps = self._steps.clamp(min=1)
        mean, square = self._mean / (1 - 0.9**steps), self._square / (1 - 0.99**steps)
        change = self._rates * mean / (square.sqrt() + 1e-8)
        self.parameters = self.parameters.detach() - torch.where(moves, change, 0.0)


class _Learner:
    """The arms' algorithms on the policy axis: consecutive arms that share an algorithm object share one vmap."""

    def __init__(self, arms: Sequence[Arm], seeds: int) -> None:
        self.needs_critic = any(arm.algorithm.needs_critic for arm in arms)
        self._parts: list[tuple[Algorithm, slice]] = []
        for i, arm in enumerate(arms):
            if self._parts and self._parts[-1][0] is arm.algorithm:
                self._parts[-1] = (arm.algorithm, slice(self._parts[-1][1].start, (i + 1) * seeds))
            else:
                self._parts.append((arm.algorithm, slice(i * seeds, (i + 1) * seeds)))

    def prepare(self, experience: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every algorithm's ``prepare`` on its policies."""
        prepared = []
        for algorithm, rows in self._parts:
            prepare = _on_fields(algorithm.prepare)
            prepared.append(torch.func.vmap(prepare)({name: tensor[rows] for name, tensor in experience.items()}))
        return {name: torch.cat([part[name] for part in prepared]) for name in prepared[0]}

    def loss(
        self,
        logprobs: Float[Tensor, "policy group response time"],
        experience: dict[str, Tensor],
        values: Float[Tensor, "policy group response time"] | None,
    ) -> Float[Tensor, " policy"]:
        """Every policy's own loss."""
        losses = []
        for algorithm, rows in self._parts:

            def one(
                logprobs: Tensor, fields: dict[str, Tensor], values: Tensor | None, algorithm: Algorithm = algorithm
            ) -> Tensor:
                return algorithm.loss(logprobs, _experience(fields), values).loss

            fields = {name: tensor[rows] for name, tensor in experience.items()}
            dims = (0, 0, None if values is None else 0)
            losses.append(
                torch.func.vmap(one, in_dims=dims)(logprobs[rows], fields, None if values is None else values[rows])
            )
        return torch.cat(losses)


def _experience(fields: dict[str, Tensor]) -> Experience:
    return Experience(**fields)


def _on_fields(prepare: Callable[[Experience], Experience]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def on_fields(fields: dict[str, Tensor]) -> dict[str, Tensor]:
        prepared: dict[str, Any] = vars(prepare(_experience(fields)))
        return {name: tensor for name, tensor in prepared.items() if tensor is not None}

    return on_fields


@torch.no_grad()
def _distance_on_youngest(
    logprobs: Float[Tensor, "policy group response time"],
    experience: dict[str, Tensor],
    youngest: Int[Tensor, "policy 1"],
) -> Float[Tensor, " policy"]:
    """Mean of ½·(log π_θ/π_start)² over the youngest responses of a minibatch: what ``kl_stop`` limits. Without a lag they
    were sampled by π_start, the policy with which the step began."""
    start = experience.get("start_logprobs", experience["behaviour_logprobs"])
    log_ratio = masked_sum(logprobs - start, experience["response_mask"])
    counted = (experience["age"] == youngest).unsqueeze(-1)
    responses = counted.sum((1, 2)) * log_ratio.shape[-1]
    return 0.5 * (log_ratio**2 * counted).sum((1, 2)) / responses.clamp(min=1)
