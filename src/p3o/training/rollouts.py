"""The first half of a step: K responses for each of the next prompts, scored, with log-probs of the learner's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from p3o.distributed.sharding import gathered
from p3o.distributed.shares import shares
from p3o.distributed.world import world
from p3o.errors import shorten
from p3o.functional.kl import kl_policy_reference_k1
from p3o.models.layouts import device_of
from p3o.models.sampling import draw_uniforms, sample_responses
from p3o.models.tokens import (
    GroupTokens,
    PromptBatch,
    ResponseBatch,
    decode_responses,
    encode_prompts,
    end_id,
    pad_id,
    pad_left,
    split_groups,
)
from p3o.training.checkpoint import State
from p3o.training.faults import NumericalError
from p3o.training.online_config import OnlineConfig
from p3o.training.optimisation import BatchOrder
from p3o.training.passes import Passes
from p3o.training.scoring import ComparisonFeedback, RewardFeedback, rate
from p3o.types import Experience


@runtime_checkable
class Sampler(Protocol):
    """Who writes the responses of a step."""

    def sample(self, policy: nn.Module, prompts: PromptBatch) -> ResponseBatch:
        """K responses for each prompt, by the policy as it is now.

        Where several processes train together, each of them calls this with all prompts of the step and gets all responses.
        """

    def divert(self, attempt: int) -> None:
        """Draw other random numbers from here on."""

    def state_dict(self) -> State:
        """Everything that the next responses depend on, but for the policy."""

    def load_state_dict(self, state: State) -> None:
        """Go back to where ``state_dict`` was taken."""


class LocalSampler:
    """The learner's own processes write the responses, each those of its share of the prompts.

    The random numbers belong to the response's place in the step: the number of processes changes nothing that is sampled.

    Args:
        tokenizer: of the policy.
        config: K, length limit, temperature, stop strings.
        seed: of the random numbers.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: OnlineConfig, *, seed: int) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.generator = torch.Generator().manual_seed(seed)

    def sample(self, policy: nn.Module, prompts: PromptBatch) -> ResponseBatch:
        """K responses for each prompt, by the policy as it is now."""
        together, responses = world(), self.config.responses_per_prompt
        groups = prompts.tokens.shape[0]
        uniforms = draw_uniforms(groups * responses, self.config.max_new_tokens, self.generator)
        if together.size == 1:
            return self._write(policy, prompts, uniforms)
        lengths = prompts.mask.sum(-1).tolist()
        mine = shares(lengths, together.size, equal_counts=True)[together.rank]
        own = None
        if mine:
            width = max(lengths[i] for i in mine)
            part = PromptBatch(prompts.tokens[mine, -width:], prompts.mask[mine, -width:])
            rows = uniforms.view(groups, responses, -1)[mine].flatten(0, 1)
        with gathered(policy):
            own = together.together(lambda: self._write(policy, part, rows) if mine else None)
        told = together.gather(None if own is None else {"groups": mine, **vars(own)})
        return _in_place([part for part in told if part is not None], pad_id(self.tokenizer)).to(prompts.tokens.device)

    def _write(self, policy: nn.Module, prompts: PromptBatch, uniforms: Tensor) -> ResponseBatch:
        return sample_responses(
            policy,
            prompts,
            responses_per_prompt=self.config.responses_per_prompt,
            max_new_tokens=self.config.max_new_tokens,
            eos_id=end_id(self.tokenizer),
            pad_id=pad_id(self.tokenizer),
            temperature=self.config.temperature,
            uniforms=uniforms,
            stop=self.config.stop,
            tokenizer=self.tokenizer,
        )

    def divert(self, attempt: int) -> None:
        """Draw other random numbers from here on."""
        self.generator.manual_seed(self.generator.initial_seed() + attempt)

    def state_dict(self) -> State:
        """Where in its random numbers it stands."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        """Go back to where ``state_dict`` was taken."""
        self.generator.set_state(state["generator"])


def _in_place(parts: Sequence[dict[str, Any]], fill: int) -> ResponseBatch:
    """The responses of all processes, each group where its prompt is, padded to the longest."""
    time = max(part["tokens"].shape[-1] for part in parts)
    order = torch.tensor([group for part in parts for group in part["groups"]]).argsort()

    def joined(name: str, value: int | bool) -> Tensor:
        padded = [nn.functional.pad(part[name], (0, time - part[name].shape[-1]), value=value) for part in parts]
        return torch.cat(padded)[order]

    ended = torch.cat([part["ended"] for part in parts])[order]
    return ResponseBatch(joined("tokens", fill), joined("mask", False), ended)


@dataclass(frozen=True)
class Rollout:
    """The groups of one step as sampled."""

    groups: list[GroupTokens]
    experience: Experience
    ended: float
    """Share of responses with their end of sequence."""
    distinct: float
    """Share of different texts among all responses."""
    dropped: int
    """Groups left out because their feedback was not finite."""

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
        return described | {
            "reward_gap": experience.reward_gaps.abs().mean().item(),
            "kl_k1": kl.mean().item(),
            "length": experience.response_mask.sum(-1).float().mean().item(),
            "ended": self.ended,
            "distinct": self.distinct,
        }


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

    def next(self, step: int, *, behaviour: bool) -> Rollout:
        """K responses for each of the next prompts, scored, with the learner's own log-probs.

        Args:
            step: its number, for errors.
            behaviour: whether to compute log π_old; otherwise it holds zeros until the update writes it.

        Raises:
            NumericalError: if the feedback on every prompt, or any log-prob, is not finite.
        """
        chosen = self.order.next().tolist()
        prompts = pad_left([self.encoded[i] for i in chosen], pad_id(self.tokenizer)).to(self.device)
        responses = self.sampler.sample(self.policy, prompts)
        texts = decode_responses(self.tokenizer, responses, stop=self.config.stop)
        worth = rate(self.feedback, [self.prompts[i] for i in chosen], texts, responses.ended.cpu())
        if len(worth.kept) == 0:
            raise NumericalError(f"step {step}: the feedback on every prompt of the step is not finite")
        sampled = split_groups(prompts, responses)
        groups = [sampled[i] for i in worth.kept.tolist()]
        kept = [self.prompts[chosen[i]] for i in worth.kept.tolist()]
        mask = responses.mask[worth.kept.to(self.device)]
        own = self.logprobs("behaviour", self.policy, groups, mask, kept, step) if behaviour else None
        reference = self.logprobs("reference", self.reference, groups, mask, kept, step)
        experience = Experience(
            response_mask=mask,
            behaviour_logprobs=torch.zeros_like(reference) if own is None else own,
            reference_logprobs=reference,
            reward_gaps=worth.gaps.to(self.device),
            rewards=None if worth.rewards is None else worth.rewards.to(self.device),
            age=torch.zeros(len(groups), dtype=torch.long, device=self.device),
        )
        distinct = len({text for group in texts for text in group}) / sum(map(len, texts))
        return Rollout(groups, experience, responses.ended.float().mean().item(), distinct, len(texts) - len(groups))

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
        found = self.passes.logprobs(model, groups, mask.shape[-1])
        finite = found.isfinite().flatten(1).all(-1)
        if not bool(finite.all()):
            prompt = prompts[int((~finite).nonzero()[0])]
            raise NumericalError(
                f"step {step}: a {whose} log-prob is not finite, prompt {shorten(prompt)}; the weights are damaged: lower the "
                "learning rate, or choose on_fault: rollback"
            )
        return found

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
