"""Stage 3: reinforcement learning from sampled groups, the same loop for every algorithm.

A step reads as the paper's algorithm box: sample K responses for each prompt, score them, take several epochs of minibatch
updates on the groups in the replay buffer, and stop early when the policy has moved far enough. The loop does not know
which algorithm it runs.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from p3o.algorithms import Algorithm
from p3o.algorithms.base import half_squared_log_ratio, with_beta
from p3o.distributed.sharding import is_sharded
from p3o.distributed.world import world
from p3o.errors import P3OError
from p3o.functional.devices import numbers, onto
from p3o.functional.logprobs import sequence_logprobs
from p3o.functional.mismatch import weighed
from p3o.models.heads import Critic
from p3o.models.layouts import device_of
from p3o.models.probe import LayoutNeeds, choose_layout
from p3o.models.tokens import GroupTokens, encode_prompts, pad_id
from p3o.training.asynchrony import RolloutsAhead, with_start
from p3o.training.averages import MetricsAverage
from p3o.training.checkpoint import State
from p3o.training.checks import check_mode, check_prompts
from p3o.training.kl_control import KLController
from p3o.training.online_config import OnlineConfig
from p3o.training.optimisation import Optimisation
from p3o.training.passes import TOKENS, Passes
from p3o.training.replay import ReplayBuffer, fresh_groups, stratified_minibatches
from p3o.training.rollouts import Rollout, Rollouts, finite
from p3o.training.samplers import LocalSampler, Sampler
from p3o.training.scoring import ComparisonFeedback, Scorer, rated_by
from p3o.types import Experience

__all__ = ["OnlineConfig", "OnlineTrainer"]


class OnlineTrainer:
    """Runs the RL stage. ``policy`` is trained in place; ``reference`` never changes.

    Args:
        policy: a causal language model in evaluation mode (no dropout).
        reference: the frozen policy as it was handed over.
        critic: for algorithms that need one.
        tokenizer: of the policy.
        algorithm: what turns groups into a loss.
        feedback: the reward, a function of (prompts, responses); or comparisons, for algorithms that can learn from these.
        prompts: training prompts, rendered.
        config: settings.
        seed: of prompt order, sampling and minibatches, each with a generator of its own.
        sampler: who writes the responses; None: this process.

    Raises:
        P3OError: if there are fewer prompts than a step needs, a prompt leaves no room for a response, the policy is in
            training mode, or the algorithm's critic is missing.
    """

    def __init__(
        self,
        policy: nn.Module,
        reference: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        algorithm: Algorithm,
        feedback: Scorer | ComparisonFeedback,
        prompts: Sequence[str],
        config: OnlineConfig,
        *,
        seed: int,
        critic: Critic | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        if len(prompts) < config.prompts_per_step:
            raise P3OError(
                f"rl.training.prompts_per_step: {config.prompts_per_step} prompts per step, but there are only "
                f"{len(prompts)} training prompts; give more prompts or lower it"
            )
        if config.minibatches > config.prompts_per_step:
            raise P3OError(
                f"rl.training.minibatches: a step of {config.prompts_per_step} prompts cannot be divided into "
                f"{config.minibatches} minibatches; lower it or raise prompts_per_step"
            )
        if algorithm.needs_critic and critic is None:
            raise P3OError("this algorithm needs a critic")
        self.policy, self.critic = policy, critic
        self.tokenizer, self.algorithm, self.config = tokenizer, algorithm, config
        rated = rated_by(feedback, config)
        if rated.relative and not algorithm.accepts_comparisons:
            raise P3OError(
                f"{type(algorithm).__name__} needs a reward for every response and cannot learn from comparisons alone; use "
                "one of the P3O family, online DPO or REBEL, or give a reward"
            )
        self.device = device_of(policy)
        check_mode(policy)
        encoded = encode_prompts(tokenizer, prompts)
        check_prompts(policy, prompts, encoded, config.max_new_tokens)
        rows: LayoutNeeds = {
            "choice": config.layout,
            "responses": config.responses_per_prompt,
            "context": max(map(len, encoded)) + config.max_new_tokens,
        }
        self.verdict = choose_layout(policy, **rows)
        if is_sharded(policy) and self.verdict.layout.name == "split":
            # One forward or two, as the responses are: ranks could fall out of step.
            self.verdict = choose_layout(policy, choice="padded", responses=config.responses_per_prompt)
        # A sharded critic is read through its own forward, where FSDP's hooks are.
        self.critic_verdict = None if critic is None or is_sharded(critic) else critic.choose_layout(**rows)
        self.passes = Passes(
            self.verdict.layout,
            temperature=config.temperature,
            fill=pad_id(tokenizer),
            tokens=config.micro_batch_tokens or TOKENS.get(self.device.type, 16384),
            groups=config.micro_batch_prompts,
            critic_layout=None if self.critic_verdict is None else self.critic_verdict.layout,
        )
        seeds = torch.Generator().manual_seed(seed)
        orders, sampling, minibatches = (int(torch.randint(2**62, (1,), generator=seeds)) for _ in range(3))
        self.rollouts = Rollouts(
            policy,
            reference,
            tokenizer,
            sampler or LocalSampler(tokenizer, config, seed=sampling),
            rated,
            prompts,
            config,
            self.passes,
            seed=orders,
        )
        self.source: Rollouts | RolloutsAhead = self.rollouts
        if config.max_staleness:
            self.source = RolloutsAhead(
                self.rollouts, limit=config.max_staleness, total=self.total, still=self.warmup_steps
            )
        self.minibatch_generator = torch.Generator().manual_seed(minibatches)
        modules: dict[str, nn.Module] = {"policy": policy}
        rates: dict[str, float] = {}
        if critic is not None:
            modules["critic"] = critic
            rates["critic"] = config.critic_learning_rate or config.learning_rate
        # The schedule counts steps, not updates: how many updates a step takes is for kl_stop to decide.
        self.optimisation = Optimisation(modules, config, config.steps, learning_rates=rates)
        self.buffer: ReplayBuffer[GroupTokens] = ReplayBuffer(config.replay_batches)
        self.kl_controller = None
        if config.kl_target is not None:
            if algorithm.config.beta == 0:
                raise P3OError(
                    "rl.training.kl_target: β is 0 and would stay 0; give the algorithm a positive beta to start from"
                )
            self.kl_controller = KLController(algorithm.config.beta, config.kl_target, config.kl_gain)
        self.done = 0

    @property
    def layouts(self) -> str:
        """How rows are laid out for the policy, its reference and the critic, and why, in words."""
        return str(self.verdict) if self.critic_verdict is None else f"{self.verdict}; critic: {self.critic_verdict}"

    def learn_from(self, feedback: Scorer | ComparisonFeedback) -> None:
        """Rate responses by this from the next step on: a reward model that was fitted anew, say."""
        self.rollouts.feedback = rated_by(feedback, self.config)

    @property
    def total(self) -> int:
        """Steps in all, those of the critic's warm-up included."""
        return self.warmup_steps + self.config.steps

    @property
    def warmup_steps(self) -> int:
        """Steps at the start in which only the critic learns; none without a critic."""
        return 0 if self.critic is None else self.config.critic_warmup_steps

    def step(self) -> dict[str, int | float]:
        """The next step: of the critic's warm-up first, then of the policy. Returns its metrics."""
        metrics = self.warm_up_critic() if self.done < self.warmup_steps else self.improve_policy()
        self.done += 1
        return metrics

    def warm_up_critic(self) -> dict[str, int | float]:
        """One step of sampling and scoring in which only the critic learns."""
        rollout = self.sample()
        experience = self.prepared(rollout.experience, rollout.groups)
        metrics, updates, skipped = MetricsAverage(), 0, 0
        for _ in range(self.config.epochs):
            for chosen in self.minibatches(experience):
                seen = MetricsAverage()
                self.accumulate(experience, rollout.groups, chosen, seen, first=False, critic_only=True)
                # The schedule is the policy's, whose steps are still to come.
                if self.optimisation.update(lambda: f" in step {self.done + 1} of the critic's warm-up", at_peak=True):
                    metrics.take(seen)
                    updates += 1
                else:
                    skipped += 1
        return dict(metrics.result()) | {"updates": updates} | ({"skipped_updates": skipped} if skipped else {})

    def improve_policy(self) -> dict[str, int | float]:
        """Sample, score, update."""
        rollout = self.sample()
        self.buffer.add(rollout.experience, rollout.groups)
        groups = self.buffer.rows()
        experience = self.prepared(self.buffer.experience(), groups)
        lateness: dict[str, float] = {}
        if self.config.kl_stop is not None and self.config.stale_ratio == "sampler":
            experience, lateness = with_start(experience, self.policy, groups, self.passes)
        metrics = MetricsAverage()
        updates, skipped, stopped = 0, 0, False
        for _ in range(self.config.epochs):
            for chosen in self.minibatches(experience):
                seen = MetricsAverage()
                moved = self.accumulate(experience, groups, chosen, seen, first=updates == 0)
                if self.config.kl_stop is not None and moved > self.config.kl_stop:
                    self.optimisation.optimiser.zero_grad()
                    metrics.take(seen)
                    stopped = True
                    break
                if self.optimisation.update(lambda: f" in step {self.done + 1}"):
                    metrics.take(seen)
                    updates += 1
                else:  # its numbers are not finite, and would make those of the step so
                    skipped += 1
            if stopped:
                break
        self.optimisation.advance_schedule()
        self.source.publish()
        if self.one_pass:
            texts = [self.tokenizer.decode(group.prompt) for group in groups]
            finite("behaviour", experience.behaviour_logprobs, texts, self.done + 1)
            rollout.experience.behaviour_logprobs.copy_(experience.behaviour_logprobs)
        described = rollout.describe() | lateness
        if self.kl_controller is not None:
            described["beta"] = self.kl_controller.beta
            self.algorithm = with_beta(self.algorithm, self.kl_controller.update(described["kl_k1"]))
        if skipped:
            described["skipped_updates"] = skipped
        return described | metrics.result() | {"updates": updates, "stopped_early": int(stopped)}

    def sample(self) -> Rollout:
        """The rollout of the next step; without log π_old where the pass of the update gives it."""
        supplied = self.one_pass and self.done >= self.warmup_steps
        return self.source.next(self.done + 1, behaviour=not supplied)

    def prepared(self, experience: Experience, groups: Sequence[GroupTokens]) -> Experience:
        """The experience with fresh critic values, where there is a critic, and the algorithm's targets."""
        if self.critic is not None:
            values = self.passes.values(self.critic, groups, experience.response_mask.shape[-1])
            experience = experience.replace(values=values)
        return self.algorithm.prepare(experience)

    def minibatches(self, experience: Experience) -> list[Int[Tensor, " chosen"]]:
        """One pass over the groups, in random parts; fewer of them where groups were dropped."""
        parts = min(self.config.minibatches, experience.groups)
        return stratified_minibatches(experience.age, parts, self.minibatch_generator)

    def accumulate(
        self,
        experience: Experience,
        groups: Sequence[GroupTokens],
        chosen: Tensor,
        metrics: MetricsAverage,
        *,
        first: bool,
        critic_only: bool = False,
    ) -> float:
        """Gradients of one minibatch, in micro-batches weighted by their share of what the loss averages over; each process
        takes its part of the groups.

        Returns the mean of ½·(log-ratio)² on the youngest groups: how far the policy has moved since the step began.
        """
        # Read here and not pass by pass: there the processor runs ahead of a GPU.
        places, ages = chosen.tolist(), experience.age.tolist()
        members, time = [groups[i] for i in places], experience.response_mask.shape[-1]
        whole, youngest, seen = self.weight(members), min(ages), list[tuple[Tensor, int]]()
        share = self.passes.share(members, self.policy, self.critic)
        for batch, counts in share.passes(members):
            part, these = chosen[onto(torch.tensor(batch), self.device)], [members[i] for i in batch]
            if not counts:
                self.keep_in_step(these, time, critic_only=critic_only)
                continue
            minibatch = experience.select(part)
            policy_logprobs = minibatch.behaviour_logprobs if critic_only else self.passes.one(self.policy, these, time)
            new = fresh_groups(minibatch)
            if first:
                # Before the first update π_θ is π_old: the training pass itself gives log π_old, so the ratio is exactly 1.
                behaviour = torch.where(new[:, None, None], policy_logprobs.detach(), minibatch.behaviour_logprobs)
                minibatch = minibatch.replace(behaviour_logprobs=behaviour)
                if self.one_pass:
                    experience.behaviour_logprobs[part] = behaviour
            values = None if self.critic is None else self.passes.one_of_values(self.critic, these, time)
            if minibatch.weights is not None:
                policy_logprobs = weighed(policy_logprobs, minibatch.weights)
                values = None if values is None else weighed(values, minibatch.weights)
            output = self.algorithm.loss(policy_logprobs, minibatch, values)
            weight = self.weight(these) / whole
            (output.loss * weight).backward()
            metrics.add({**output.metrics, "loss": output.loss.detach()}, weight, groups=len(batch) / len(members))
            young_places = [n for n, i in enumerate(batch) if ages[places[i]] == youngest]
            if young_places:
                young = onto(torch.tensor(young_places), self.device)
                mask = minibatch.response_mask[young]
                start = minibatch.behaviour_logprobs if minibatch.start_logprobs is None else minibatch.start_logprobs
                distance = half_squared_log_ratio(
                    sequence_logprobs(policy_logprobs[young], mask), sequence_logprobs(start[young], mask)
                )
                seen.append((distance, len(young_places)))
        if first and self.one_pass and world().size > 1:
            own = [experience.behaviour_logprobs[chosen[batch]] for batch in share.batches]
            experience.behaviour_logprobs[chosen] = share.gathered(own)
        young_groups = [count for _, count in seen]
        read = numbers([distance for distance, _ in seen])
        moved = sum(distance * count for distance, count in zip(read, young_groups, strict=True))
        distance_moved, groups_moved = world().totals(moved, sum(young_groups))
        return distance_moved / max(groups_moved, 1)

    def keep_in_step(self, groups: Sequence[GroupTokens], time: int, *, critic_only: bool) -> None:
        """The passes of a micro-batch, forward and backward, that add nothing: another process has one more than this one."""
        results = [] if critic_only else [self.passes.one(self.policy, groups, time)]
        if self.critic is not None:
            results.append(self.passes.one_of_values(self.critic, groups, time))
        (torch.stack([result.sum().double() for result in results]).sum() * 0.0).backward()

    def weight(self, groups: Sequence[GroupTokens]) -> float:
        """How much of a minibatch these groups are, in the unit that the algorithm's loss averages over."""
        if self.algorithm.averages_over == "tokens":
            return float(sum(len(response) for group in groups for response in group.responses))
        return float(len(groups))

    @property
    def one_pass(self) -> bool:
        """Whether a batch is used for one update only, by the policy that sampled it and an algorithm that needs log π_old no
        sooner: the pass of that update gives them, exactly."""
        config = self.config
        once = config.epochs == config.minibatches == 1 and config.replay_batches == config.max_staleness == 0
        return once and not self.algorithm.prepares_from_logprobs

    def divert(self, attempt: int) -> None:
        """Sample other prompts and other responses from here on."""
        self.source.divert(attempt)

    def state_dict(self) -> State:
        """Everything that the next step depends on, but for the configuration, the prompts and the frozen reference."""
        return {
            "done": self.done,
            "optimisation": self.optimisation.state_dict(),
            "rollouts": self.source.state_dict(),
            "minibatches": self.minibatch_generator.get_state(),
            "beta": self.algorithm.config.beta,
            "buffer": [
                {"experience": vars(experience), "groups": [vars(group) for group in groups]}
                for experience, groups in self.buffer.batches()
            ],
        }

    def load_state_dict(self, state: State) -> None:
        """Go back to where ``state_dict`` was taken.

        Raises:
            P3OError: if the state belongs to another policy or critic.
        """
        self.optimisation.load_state_dict(state["optimisation"])
        self.source.load_state_dict(state["rollouts"])
        self.minibatch_generator.set_state(state["minibatches"])
        if self.kl_controller is not None:
            self.kl_controller.beta = state["beta"]
            self.algorithm = with_beta(self.algorithm, state["beta"])
        self.buffer = ReplayBuffer(self.config.replay_batches)
        for batch in state["buffer"]:
            experience = Experience(**batch["experience"]).map(lambda tensor: tensor.to(self.device))
            self.buffer.put_back(experience, [GroupTokens(**group) for group in batch["groups"]])
        self.done = state["done"]
