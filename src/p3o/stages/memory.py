"""What the models of a run hold in memory, with its number formats, adapters and shared weights."""

from dataclasses import replace

import torch
from torch import nn
from transformers import PretrainedConfig

from p3o.config import RunConfig
from p3o.models.adapters import LoraSettings
from p3o.models.language import load_model_config
from p3o.models.loading import is_adapter, peft
from p3o.stages.estimates import Arithmetic
from p3o.stages.footprints import Footprint, Kind, adapted_bytes, footprint, unbuilt
from p3o.stages.models import Models


class Memory:
    """Counts the models that a stage has at once.

    Args:
        config: of the run.
        device: where it computes.
        base: the language model's configuration.
    """

    def __init__(self, config: RunConfig, device: torch.device, base: PretrainedConfig) -> None:
        self.config, self.base = config, base
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
            casts=precision.weights != precision.compute,
            recomputes=self.config.gradient_checkpointing,
        )

    def trained(self, kind: Kind, optimiser: str) -> Footprint:
        """Of a model that learns."""
        return footprint(self._unbuilt(kind), optimiser)

    def online(self, optimiser: str, *, has_critic: bool, copies: int = 0) -> Footprint:
        """Of policy and reference, and, where they are, of the critic, the reward model and the copies that sample ahead."""
        policy = self.trained("language", optimiser)
        models = policy
        for _ in range(1 + copies):
            models += policy.frozen_copy
        lora = self.lora
        if has_critic:
            critic = self.trained("critic", optimiser)
            if lora is not None:
                # On the policy's base it holds nothing frozen of its own; on one that an adapter was merged into, what
                # merging has changed.
                one_base = lora.save == "adapter" or not self.config.reward.is_trained
                critic = replace(critic, frozen=0 if one_base else adapted_bytes(self._unbuilt("critic")))
            models += critic
        if self.config.reward.is_trained:
            scorer = self.trained("classifier", optimiser)
            adapted = lora is not None and lora.save == "adapter"
            models += Footprint(frozen=scorer.trained if adapted else self._fixed(self.base))
        given = [self.config.reward.model, *(part.model for part in self.config.reward.parts.values())]
        for path in filter(None, given):
            models += Footprint(
                frozen=self._fixed(load_model_config(path, trust_remote_code=self.config.trust_remote_code))
            )
        return models

    def _unbuilt(self, kind: Kind) -> nn.Module:
        return unbuilt(self.base, kind, dtype=self.models.precision(trained=True).weights, lora=self.lora)

    def _fixed(self, config: PretrainedConfig) -> int:
        """Bytes of a reward model that only scores."""
        dtype = self.models.precision(trained=False).weights
        return footprint(unbuilt(config, "classifier", dtype=dtype).requires_grad_(False), "adamw").frozen


def _adapter(path: str) -> LoraSettings | None:
    """The settings of a saved adapter; None if it names its layers by a pattern."""
    saved = peft().PeftConfig.from_pretrained(path)
    if isinstance(saved.target_modules, str):
        return None
    return LoraSettings(rank=saved.r, alpha=saved.lora_alpha, target_modules=tuple(sorted(saved.target_modules)))
