"""The sampler of a run whose responses are written by vLLM servers: ``p3o.training.samplers.Sampler`` over a fleet of them.

Of several processes that learn together the first talks to the servers, and the others get what it got. All of them take part
in making a version of the policy ready (``take``): a pass over the fixed text, and where the policy is sharded its gathering.
Then they wait, without a time limit, until the first one has what it asked for; errors are raised on all.
"""

import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from p3o.distributed.world import world
from p3o.errors import P3OError
from p3o.functional.mismatch import Correction
from p3o.models.tokens import PromptBatch, ResponseBatch, pad_right
from p3o.rollouts.config import RolloutConfig
from p3o.rollouts.fleet import Edition, Fleet
from p3o.rollouts.folders import Adapter, Disk
from p3o.rollouts.links import GlooLink, NcclLink
from p3o.rollouts.probe import own_logprobs
from p3o.rollouts.publishing import Broadcast, Publisher
from p3o.rollouts.server import Completion, SamplingSettings

Part = dict[str, Any] | None


class VLLMSampler:
    """K responses for each prompt from vLLM servers that have the learner's current weights.

    Args:
        config: servers, limits, and how weights reach them.
        settings: of the sampling.
        fill: the id that padding holds.
        probe: ids of the fixed text whose log-probs are compared after every push.
        folder: for weights that go by files, if the configuration names none.
        seed: of the prompts' seeds.
        warn: told in words which servers are lost and back.

    Attributes:
        fleet: the servers; None on processes other than the first.

    Raises:
        P3OError: if the environment variable of the key is not set.
    """

    def __init__(
        self,
        config: RolloutConfig,
        settings: SamplingSettings,
        *,
        fill: int,
        probe: Sequence[int],
        folder: Path,
        seed: int,
        warn: Callable[[str], None],
    ) -> None:
        self.config, self.settings, self.fill, self.probe = config, settings, fill, list(probe)
        self.correction: Correction | None = Correction(config.correction, config.weight_limit, config.drop_beyond)
        self.generator = torch.Generator().manual_seed(seed)
        self.publisher = _publisher(config, folder)
        self.fleet: Fleet | None = None
        if world().first:
            self.fleet = Fleet(config, self.publisher, self.probe, key=_key(config.api_key_env), warn=warn)
        self.family = f"p3o-{secrets.token_hex(4)}"
        self.updates = 0
        self.edition: Edition | None = None
        self.published: nn.Module | None = None

    @property
    def version(self) -> str:
        """Of the weights that were made ready last."""
        return f"{self.family}-{self.updates}"

    @property
    def own(self) -> list[float]:
        """The learner's log-probs of the fixed text with the weights that were published last; empty before."""
        return [] if self.edition is None else self.edition.logprobs

    def sample(self, policy: nn.Module, prompts: PromptBatch) -> ResponseBatch:
        """K responses for each prompt, with the servers' own log-probs.

        Raises:
            P3OError: as ``Fleet.write``.
        """
        if self.published is not policy:
            self.publish(policy)
        assert self.edition is not None
        part = world().together(self.begin(self.edition, prompts), patient=True)
        return self.collect(part).to(prompts.tokens.device)

    def publish(self, policy: nn.Module) -> None:
        """Give the policy's weights to all servers that are well, as a new version, and check that they have them.

        Raises:
            P3OError: as ``Fleet.issue``.
        """
        fleet, self.edition = self.fleet, None
        if fleet is not None:
            fleet.withdraw()  # what it holds of a sharded policy makes room
        self.edition, self.published = self.take(policy), policy
        edition = self.edition
        world().together(lambda: None if fleet is None else fleet.issue(edition), patient=True)

    def take(self, policy: nn.Module) -> Edition:
        """The policy as it is, as a new version. It reaches the servers when they are first to write by it.

        Raises:
            P3OError: as ``Publisher.take``.
        """
        started = time.monotonic()
        self.updates += 1
        logprobs = own_logprobs(policy, self.probe)
        push = self.publisher.take(policy, self.version)
        return Edition(self.version, push, logprobs, time.monotonic() - started)

    def begin(self, taken: Edition, prompts: PromptBatch) -> Callable[[], Part]:
        """K responses for each prompt by this version; the first process gets them."""
        rows = [tokens[mask].tolist() for tokens, mask in zip(prompts.tokens.cpu(), prompts.mask.cpu(), strict=True)]
        return self._asking(taken, rows, self.settings, self.generator)

    def write(
        self, policy: nn.Module, prompts: Sequence[Sequence[int]], *, responses: int, temperature: float, seed: int
    ) -> ResponseBatch:
        """Responses that are not learned from, by the policy as it is: as ``p3o.evaluation.writing.Writer``.

        What is sampled for the training is the same with and without. A policy that was published need not be again.

        Raises:
            P3OError: as ``publish`` and ``Fleet.write``.
        """
        if self.published is not policy:
            self.publish(policy)
        assert self.edition is not None
        settings = replace(self.settings, responses=responses, temperature=temperature)
        ask = self._asking(self.edition, prompts, settings, torch.Generator().manual_seed(seed))
        return replace(self.collect(world().together(ask, patient=True)), logprobs=None)

    def forget(self) -> None:
        """Let go of the version that was published last: the policy is about to change without being published."""
        self.published, self.edition = None, None
        if self.fleet is not None:
            self.fleet.withdraw()

    def _asking(
        self,
        taken: Edition,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        generator: torch.Generator,
    ) -> Callable[[], Part]:
        """The first process's work; the seeds of the prompts are drawn now, by all."""
        seeds = torch.randint(2**62, (len(prompts),), generator=generator).tolist()
        fleet = self.fleet
        if fleet is None:
            return lambda: None
        return lambda: vars(self._batch(fleet.write(taken, prompts, seeds, settings), settings.responses))

    def collect(self, part: Part) -> ResponseBatch:
        """What the first process got."""
        return ResponseBatch(**world().from_first(part))

    def _batch(self, groups: Sequence[Sequence[Completion]], responses: int) -> ResponseBatch:
        flat = [completion for group in groups for completion in group]
        tokens, mask = pad_right([completion.tokens for completion in flat], self.fill)
        logprobs = torch.zeros(mask.shape)
        logprobs[mask] = torch.tensor([value for completion in flat for value in completion.logprobs])
        shape = (len(groups), responses)
        return ResponseBatch(
            tokens.view(*shape, -1),
            mask.view(*shape, -1),
            torch.tensor([completion.ended for completion in flat]).view(shape),
            logprobs.view(*shape, -1),
        )

    def take_metrics(self) -> dict[str, int | float]:
        """What happened since this was last asked."""
        told = world().from_first(None if self.fleet is None else self.fleet.take_metrics())
        return {**told, "policy_version": self.updates}

    def divert(self, attempt: int) -> None:
        """Draw other random numbers from here on."""
        self.generator.manual_seed(self.generator.initial_seed() + attempt)

    def state_dict(self) -> dict[str, Any]:
        """Where in its random numbers it stands, and how many versions there have been."""
        return {"generator": self.generator.get_state(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where ``state_dict`` was taken; the weights are pushed anew before the next responses."""
        self.generator.set_state(state["generator"])
        self.updates = max(self.updates, state.get("updates", 0))  # none if this process sampled before
        self.published = None

    def close(self) -> None:
        """End what is under way and give back connections and files. The servers go on."""
        if self.fleet is not None:
            self.fleet.close()
        self.publisher.close()


def _publisher(config: RolloutConfig, folder: Path) -> Publisher:
    place = Path(config.folder) if config.folder is not None else folder
    dtype = None if config.push_dtype is None else getattr(torch, config.push_dtype)
    if config.weights == "disk":
        return Disk(place, dtype)
    if config.weights == "lora":
        return Adapter(place)
    link: type[GlooLink | NcclLink] = GlooLink if config.weights == "gloo" else NcclLink
    return Broadcast(lambda servers: link(servers, config.address, timeout=config.timeout), dtype)


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise P3OError(f"rl.rollout.api_key_env: the environment variable {variable} is not set")
    return key
