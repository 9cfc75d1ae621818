"""What the models of a run hold in memory, with its number formats, adapters, shared weights and shards."""

from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PretrainedConfig

from p3o.config import RunConfig
from p3o.models.adapters import LoraSettings
from p3o.models.language import load_model_config
from p3o.models.loading import is_adapter, peft
from p3o.stages.estimates import WHOLE, Arithmetic, Gathered
from p3o.stages.footprints import Footprint, Gathering, Kind, adapted_bytes, footprint, gathering, unbuilt
from p3o.stages.models import Models
from p3o.stages.processes import ONE, Processes


@dataclass(frozen=True)
class Held:
    """What the models of a stage take on each process.

    Attributes:
        rest: what is there all the time: weights, gradients and moments, or this process's shards of them.
        gathered: what is whole besides while sharded models are used.
    """

    rest: Footprint
    gathered: Gathered = WHOLE


class Memory:
    """Counts the models that a stage has at once.

    Args:
        config: of the run.
        device: where it computes.
        base: the language model's configuration.
        processes: that do the stage.
    """

    def __init__(
        self, config: RunConfig, device: torch.device, base: PretrainedConfig, processes: Processes = ONE
    ) -> None:
        self.config, self.base, self.processes = config, base, processes
        self.lora = config.lora
        if self.lora is None and config.model is not None and is_adapter(config.model):
            self.lora = _adapter(config.model)
        self.models = Models(config, device, adapter_seed=0)

    @property
    def arithmetic(self) -> Arithmetic:
        """Of a trained model."""
        precision = self.models.precision(trained=True)
        return Arithmetic(
            bytes=precision.compute.itemsize,
            # What FSDP gathers has the format of passes already.
            casts=precision.weights != precision.compute and not self.processes.sharded,
            recomputes=self.config.gradient_checkpointing,
        )

    def trained(self, kind: Kind, optimiser: str) -> Footprint:
        """Of a model that learns, at rest."""
        return footprint(self._unbuilt(kind), optimiser, processes=self.processes.shares)

    def supervised(self, kind: Kind, optimiser: str) -> Held:
        """Of a model that learns by itself: in fine-tuning, or the reward model."""
        rest = self.trained(kind, optimiser)
        if not self.processes.sharded:
            return Held(rest)
        alone = self._gathering(kind)
        return Held(rest, Gathered(passes=_at_work(alone), first=self._saved(kind)))

    def online(self, optimiser: str, *, has_critic: bool, copies: int = 0, sent: int = 1) -> Held:
        """Of policy and reference, and, where they are, of the critic, the reward models and the past policies.

        Args:
            optimiser: of policy and critic.
            has_critic: whether there is one.
            copies: places for the policy as it was, for what is sampled ahead.
            sent: versions of a sharded policy that the first process has whole at a time, for servers or to save it.
        """
        policy, sharded = self.trained("language", optimiser), self.processes.sharded
        # Sharded, a reference shares no base with the policy: each has shards of its own.
        rest = policy + Footprint(frozen=policy.frozen if sharded else 0) + policy.frozen_copy
        for _ in range(copies):
            rest += policy.frozen_copy
        if has_critic:
            rest += self._critic(optimiser)
        scorers = Footprint(frozen=self._scorers())
        if not sharded:
            return Held(rest + scorers)
        language = self._gathering("language")
        critic = self._gathering("critic") if has_critic else Gathering()
        gathered = Gathered(
            # The reference's passes are over by then, and what they gathered has been given back.
            passes=_at_work(language, critic),
            sampling=language.whole,
            # Of the same groups one after the other, so that the first is still there.
            evaluating=2 * language.kept + 2 * language.layer,
            unshared=scorers.frozen,
            first=sent * self._saved("language"),
        )
        return Held(rest + scorers, gathered)

    def _critic(self, optimiser: str) -> Footprint:
        critic, lora = self.trained("critic", optimiser), self.lora
        if lora is None or self.processes.sharded:
            return critic
        # On the policy's base it holds nothing frozen of its own; on one that an adapter was merged into, what merging has
        # changed.
        one_base = lora.save == "adapter" or not self.config.reward.is_trained
        return replace(critic, frozen=0 if one_base else adapted_bytes(self._unbuilt("critic")))

    def _scorers(self) -> int:
        """Bytes of the reward models that score; every process holds them whole."""
        reward, lora, scorers = self.config.reward, self.lora, 0
        if reward.is_trained:
            adapted = lora is not None and lora.save == "adapter"
            if adapted:
                scorer = footprint(self._unbuilt("classifier"), "adamw")
                # Its base is the policy's, but no shard of it.
                scorers += scorer.trained + (scorer.frozen if self.processes.sharded else 0)
            else:
                scorers += self._fixed(self.base)
        given = [reward.model, *(part.model for part in reward.parts.values())]
        for path in filter(None, given):
            scorers += self._fixed(load_model_config(path, trust_remote_code=self.config.trust_remote_code))
        return scorers

    def _gathering(self, kind: Kind) -> Gathering:
        reshards = self.config.parallel.reshard_after_forward
        return gathering(self._unbuilt(kind), self.arithmetic.bytes, reshards=reshards)

    def _saved(self, kind: Kind) -> int:
        """Bytes of the whole weights as they rest: what the first process gathers on its CPU to save or to send them."""
        counted = footprint(self._unbuilt(kind), "adamw")
        return counted.frozen + counted.trained

    def _unbuilt(self, kind: Kind) -> nn.Module:
        dtype, trusts = self.models.precision(trained=True).weights, self.config.trust_remote_code
        return unbuilt(self.base, kind, dtype=dtype, lora=self.lora, trust_remote_code=trusts)

    def _fixed(self, config: PretrainedConfig) -> int:
        """Bytes of a reward model that only scores."""
        dtype = self.models.precision(trained=False).weights
        scorer = unbuilt(config, "classifier", dtype=dtype, trust_remote_code=self.config.trust_remote_code)
        return footprint(scorer.requires_grad_(False), "adamw").frozen


def _at_work(*models: Gathering) -> int:
    """What is whole at the height of a training pass of these models, one after another, with their gradients."""
    kept = sum(model.kept + model.gradients for model in models)
    return kept + 2 * max(model.layer for model in models)


def _adapter(path: str) -> LoraSettings | None:
    """The settings of a saved adapter; None if it names its layers by a pattern."""
    saved = peft().PeftConfig.from_pretrained(path)
    if isinstance(saved.target_modules, str):
        return None
    return LoraSettings(rank=saved.r, alpha=saved.lora_alpha, target_modules=tuple(sorted(saved.target_modules)))
