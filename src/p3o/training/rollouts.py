"""The first half of a step: K responses for each of the next prompts, scored, with log-probs of the learner's own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from p3o.errors import P3OError, shorten
from p3o.functional.kl import kl_policy_reference_k1
from p3o.functional.mismatch import mismatch
from p3o.models.layouts import device_of
from p3o.models.tokens import (
    GroupTokens,
    PromptBatch,
    ResponseBatch,
    decode_responses,
    encode_prompts,
    pad_id,
    pad_left,
    split_groups,
)
from p3o.training.checkpoint import State
from p3o.training.faults import NumericalError
from p3o.training.online_config import OnlineConfig
from p3o.training.optimisation import BatchOrder
from p3o.training.passes import Passes
from p3o.training.samplers import Sampler
from p3o.training.scoring import ComparisonFeedback, RewardFeedback, rate
from p3o.types import Experience


@dataclass(frozen=True)
class Rollout:
    """The groups of one step as sampled."""

    groups: list[GroupTokens]
    experience: Experience
    ended: float
    """Share of responses with their end of sequence."""
    distinct: float
    """Share of different texts among all responses."""
    repeated: float
    """Share of prompts whose K responses are one and the same text."""
    dropped: int
    """Groups left out because their feedback was not finite."""
    sampler: Mapping[str, int | float] = field(default_factory=dict)
    """What the sampler tells of itself, and how far its log-probs are from the learner's."""
    refused: int = 0
    """Groups thrown away before these because they were older than the limit of staleness."""

    def describe(self) -> dict[str, int | float]:
        """What was sampled, in numbers."""
        experience = self.experience
        kl = kl_policy_reference_k1(
            experience.behaviour_logprobs, experience.reference_logprobs, experience.response_mask
        )
        described: dict[str, int | float] = {}
        if experience.rewards is not None:
            described["reward"] = experience.rewards.mean().item()
        if experience.groups > 1:
            # Responses to one prompt are not independent of each other: the error is that of the prompts' means.
            described["kl_k1_se"] = kl.mean(-1).std().item() / experience.groups**0.5
        if self.dropped:
            described["dropped_groups"] = self.dropped
        if self.refused:
            described["refused_groups"] = self.refused
        if bool(experience.age.any()):
            described["staleness"] = int(experience.age.max())
        return (
            described
            | dict(self.sampler)
            | {
                "reward_gap": experience.reward_gaps.abs().mean().item(),
                "tie_fraction": tie_fraction(experience.reward_gaps),
                "kl_k1": kl.mean().item(),
                "length": experience.response_mask.sum(-1).float().mean().item(),
                "ended": self.ended,
                "distinct": self.distinct,
                "repeated_groups": self.repeated,
            }
        )


@dataclass(frozen=True)
class Draw:
    """What was sampled for the next prompts, before anybody has rated it."""

    chosen: list[int]
    """Which of the training prompts."""
    prompts: PromptBatch
    responses: ResponseBatch
    logprobs: Float[Tensor, "group response time"] | None = None
    """Of the policy that sampled, where it is no longer the policy when the groups are learned from."""
    version: int = 0
    """Of that policy: how many steps had been taken."""


def tie_fraction(gaps: Float[Tensor, "group response response"]) -> float:
    """The share of pairs of one group with equal feedback, from which a relative algorithm learns nothing."""
    groups, responses, _ = gaps.shape
    ties = int((gaps == 0).sum()) - groups * responses  # a response always ties with itself
    return ties / (groups * responses * (responses - 1))


class Rollouts:
    """Makes the rollout of every step.

    Args:
        policy: what samples, and gives log π_old.
        reference: the frozen policy as it was handed over.
        sampler: who writes the responses.
        feedback: what they are worth.
        prompts: training prompts, rendered.
        config: settings.
        passes: how groups go through a model.
        seed: of the order of the prompts.
    """

    def __init__(
        self,
        policy: nn.Module,
        reference: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        sampler: Sampler,
        feedback: RewardFeedback | ComparisonFeedback,
        prompts: Sequence[str],
        config: OnlineConfig,
        passes: Passes,
        *,
        seed: int,
    ) -> None:
        self.policy, self.reference, self.tokenizer = policy, reference, tokenizer
        self.sampler, self.feedback, self.config, self.passes = sampler, feedback, config, passes
        self.prompts, self.encoded = list(prompts), encode_prompts(tokenizer, prompts)
        self.order = BatchOrder(len(prompts), config.prompts_per_step, seed=seed)
        self.device = device_of(policy)
        self.notice: Callable[[str], object] = lambda _: None
        """Told, in words, of the groups that are left out."""

    def next(self, step: int, *, behaviour: bool) -> Rollout:
        """K responses for each of the next prompts, scored, with the learner's own log-probs.

        Args:
            step: its number, for errors.
            behaviour: whether to compute log π_old; otherwise it holds zeros until the update writes it.

        Raises:
            NumericalError: if the feedback on every prompt, or any log-prob, is not finite.
            P3OError: as the feedback does, with the step.
        """
        return self.rated(self.draw(self.policy), step, behaviour=behaviour)

    def draw(self, policy: nn.Module) -> Draw:
        """K responses of this policy for each of the next prompts."""
        chosen, prompts = self.choose()
        return Draw(chosen, prompts, self.sampler.sample(policy, prompts))

    def choose(self) -> tuple[list[int], PromptBatch]:
        """The next prompts, and which of the training prompts they are."""
        chosen = self.order.next().tolist()
        return chosen, self.encoded_batch(chosen)

    def encoded_batch(self, chosen: Sequence[int]) -> PromptBatch:
        """These prompts, on the policy's device."""
        return pad_left([self.encoded[i] for i in chosen], pad_id(self.tokenizer)).to(self.device)

    def rated(self, draw: Draw, step: int, *, behaviour: bool, age: int = 0) -> Rollout:
        """What was drawn with what it is worth and its log-probs, for the step of this number.

        Args:
            draw: with the log-probs of the policy that sampled, unless that is the policy as it is.
            step: its number, for errors.
            behaviour: whether to compute log π_old where the draw does not hold it.
            age: how many versions of the policy lie between the one that sampled and the one as it is.

        Raises:
            NumericalError: as for ``next``.
        """
        chosen, responses = draw.chosen, draw.responses
        texts = decode_responses(self.tokenizer, responses, stop=self.config.stop)
        try:
            worth = rate(self.feedback, [self.prompts[i] for i in chosen], texts, responses.ended.cpu())
        except P3OError as error:
            raise type(error)(f"step {step}: {error}") from error
        if len(worth.kept) == 0:
            raise NumericalError(
                f"step {step}: the feedback on every prompt of the step is not finite; the first: {worth.faults[0]}"
            )
        if worth.faults:
            self.notice(f"step {step}: left out {len(worth.faults)} of {len(texts)} groups: {'; '.join(worth.faults)}")
        sampled = split_groups(draw.prompts, responses)
        groups = [sampled[i] for i in worth.kept.tolist()]
        kept = [self.prompts[chosen[i]] for i in worth.kept.tolist()]
        mask = responses.mask[worth.kept.to(self.device)]
        theirs = None if responses.logprobs is None else responses.logprobs[worth.kept.to(self.device)]
        own = None
        if draw.logprobs is not None:
            own = finite("behaviour", draw.logprobs[worth.kept.to(self.device)], kept, step)
        elif behaviour or theirs is not None:
            own = self.logprobs("behaviour", self.policy, groups, mask, kept, step)
        reference = self.logprobs("reference", self.reference, groups, mask, kept, step)
        experience = Experience(
            response_mask=mask,
            behaviour_logprobs=torch.zeros_like(reference) if own is None else own,
            reference_logprobs=reference,
            reward_gaps=worth.gaps.to(self.device),
            rewards=None if worth.rewards is None else worth.rewards.to(self.device),
            age=torch.full((len(groups),), age, dtype=torch.long, device=self.device),
        )
        distinct = len({text for group in texts for text in group}) / sum(map(len, texts))
        ended, dropped = responses.ended.float().mean().item(), len(texts) - len(groups)
        repeated = sum(len(set(group)) == 1 for group in texts) / len(texts)
        rollout = Rollout(groups, experience, ended, distinct, repeated, dropped, self.sampler.take_metrics())
        # Of late groups only the log-probs of the policy that sampled them can be compared with the sampler's own.
        comparable = theirs is not None and (draw.logprobs is not None or age == 0)
        return self.corrected(rollout, theirs, step) if comparable and theirs is not None else rollout

    def corrected(self, rollout: Rollout, theirs: Float[Tensor, "group response time"], step: int) -> Rollout:
        """The rollout weighed, or without some of its groups, for what the sampler's log-probs differ from the learner's.

        Raises:
            NumericalError: if no group is left.
        """
        if self.sampler.correction is None:
            return rollout
        experience = rollout.experience
        found = mismatch(experience.behaviour_logprobs, theirs, experience.response_mask, self.sampler.correction)
        if not bool(found.keep.any()):
            raise NumericalError(
                f"step {step}: the sampler's log-probs of every group are too far from the learner's (mean difference of a "
                f"token {found.metrics['mismatch_mean']:.2g} nats); vLLM must run with --logprobs-mode "
                "processed_logprobs and in the learner's dtype, or raise rl.rollout.drop_beyond"
            )
        kept = found.keep.nonzero().squeeze(-1)
        return replace(
            rollout,
            groups=[rollout.groups[i] for i in kept.tolist()],
            experience=experience.replace(weights=found.weights).select(kept),
            sampler={**rollout.sampler, **found.metrics},
        )

    def publish(self) -> None:
        """Sample from the policy as it is now."""
        self.sampler.publish(self.policy)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing is being sampled for the training: whoever samples may be asked for something else."""
        yield

    def logprobs(
        self,
        whose: str,
        model: nn.Module,
        groups: Sequence[GroupTokens],
        mask: Bool[Tensor, "group response time"],
        prompts: Sequence[str],
        step: int,
    ) -> Float[Tensor, "group response time"]:
        """A model's log-probs of what has just been sampled.

        Raises:
            NumericalError: if one is not finite, naming the step and the first such prompt.
        """
        return finite(whose, self.passes.logprobs(model, groups, mask.shape[-1]), prompts, step)

    def divert(self, attempt: int) -> None:
        """Sample other prompts and other responses from here on."""
        self.order.divert(attempt)
        self.sampler.divert(attempt)

    def state_dict(self) -> State:
        """Where it stands in the prompts and in the sampler's random numbers."""
        return {"prompt_order": self.order.state_dict(), "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Go back to where ``state_dict`` was taken."""
        self.order.load_state_dict(state["prompt_order"])
        self.sampler.load_state_dict(state["sampler"])


def finite(
    whose: str, found: Float[Tensor, "group response time"], prompts: Sequence[str], step: int
) -> Float[Tensor, "group response time"]:
    """These log-probs, if all are numbers.

    Raises:
        NumericalError: if one is not finite, naming the step and the first such prompt.
    """
    good = found.isfinite().flatten(1).all(-1)
    if not bool(good.all()):
        prompt = prompts[int((~good).nonzero()[0])]
        raise NumericalError(
            f"step {step}: a {whose} log-prob is not finite, prompt {shorten(prompt)}; the weights are damaged: lower the "
            "learning rate, or choose on_fault: rollback"
        )
    return found
