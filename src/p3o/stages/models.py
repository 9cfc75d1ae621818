"""The models of a run as its configuration wants them: precision, adapters, recomputation, one copy of frozen weights."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerBase

from p3o.config import RunConfig
from p3o.distributed.sharding import shard
from p3o.feedback.reward_model import load_reward_model
from p3o.inputs import starting_model
from p3o.models.adapters import LoraSettings, add_adapter
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy, load_language_model, save_model
from p3o.models.precision import Precision, choose_precision, compute_in
from p3o.models.recomputation import blocks, enable_gradient_checkpointing
from p3o.models.sharded_loading import copy_shards, empty_model, fill, materialise


class Models:
    """Loads and saves models for the stages.

    Args:
        config: of the run.
        device: where they compute.
        adapter_seed: of fresh adapters.
    """

    def __init__(self, config: RunConfig, device: torch.device, *, adapter_seed: int) -> None:
        self.config, self.device, self.adapter_seed = config, device, adapter_seed

    def precision(self, *, trained: bool) -> Precision:
        """The number formats of a model that is trained, or only used."""
        whole = trained and self.config.lora is None
        return choose_precision(self.config.dtype, self.device, trains_all_weights=whole)

    def untrained(self) -> nn.Module:
        """What fine-tuning starts from: the given model, or the embedded task's own with random weights."""
        start = starting_model(self.config, self.config.seed)
        if start is not None:
            return self._prepared(start[0].to(self.device).eval(), trained=True)
        return self.policy(str(self.config.model))

    def policy(self, path: str) -> nn.Module:
        """A language model to train."""
        return self._prepared(self._language_model(path, trained=True), trained=True)

    def fixed(self, path: str) -> nn.Module:
        """A language model to sample from and to evaluate."""
        return self._prepared(self._language_model(path, trained=False), trained=False)

    def reward(self, path: str, *, trained: bool) -> nn.Module:
        """A sequence classifier, to train from a language model's folder or to score with."""
        precision = self.precision(trained=trained)
        model = load_reward_model(
            path,
            device=self.device,
            dtype=precision.weights,
            new_head=trained,
            trust_remote_code=self.config.trust_remote_code,
        )
        if trained and self.config.lora is not None:
            model = add_adapter(model, self.config.lora, task="SEQ_CLS", seed=self.adapter_seed)
        return self._computing(model, precision, trained=trained)

    def critic(self, path: str) -> Critic:
        """A critic to train, on the body of a model."""
        precision = self.precision(trained=True)
        critic = Critic.from_pretrained(
            path,
            device=self.device,
            dtype=precision.weights,
            lora=self.config.lora,
            seed=self.adapter_seed,
            trust_remote_code=self.config.trust_remote_code,
        )
        self._computing(critic.body, precision, trained=True)
        return critic

    def sharded(self, path: str) -> tuple[nn.Module, nn.Module]:
        """A policy to train and its frozen reference, spread over all processes, layer by layer.

        Weights go from their files straight into the shards where the files allow it; with an adapter, or where they do not,
        every process loads the whole model first.
        """
        empty = None
        if self.config.lora is None:
            empty = empty_model(
                AutoModelForCausalLM,
                path,
                what=f"model {path!r}",
                dtype=self.precision(trained=True).weights,
                trust_remote_code=self.config.trust_remote_code,
            )
        policy = self.policy(path) if empty is None else self._prepared(empty, trained=True)
        reference = frozen_copy(policy)
        for model in (policy, reference):
            self.shard(model)
        if empty is not None:
            fill(policy, path, what=f"model {path!r}", device=self.resting)
            materialise(reference, self.resting)
            copy_shards(reference, policy)
        return policy, reference

    def sharded_critic(self, path: str) -> Critic:
        """A critic to train, spread over all processes."""
        body = None
        if self.config.lora is None:
            body = empty_model(
                AutoModel,
                path,
                what=f"critic {path!r}",
                dtype=self.precision(trained=True).weights,
                trust_remote_code=self.config.trust_remote_code,
            )
        if body is None:
            critic = self.critic(path)
            self.shard(critic)
            return critic
        critic = Critic(self._computing(body, self.precision(trained=True), trained=True)).eval()
        self.shard(critic)
        fill(critic, path, what=f"critic {path!r}", device=self.resting, prefix="body")
        critic.start_at_zero()
        return critic

    def shard(self, model: nn.Module) -> None:
        """Spread a model over all processes, layer by layer."""
        compute = self.precision(trained=True).compute
        shard(model, blocks(model), self.config.parallel, compute=compute, device=self.device)

    @property
    def resting(self) -> torch.device:
        """Where shards are while they are not in use."""
        return torch.device("cpu") if self.config.parallel.cpu_offload else self.device

    def save(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        """Write a plain folder of transformers or peft."""
        merge = self.config.lora is not None and self.config.lora.save == "merged"
        save_model(model, tokenizer, folder, merge=merge)

    def _language_model(self, path: str, *, trained: bool) -> nn.Module:
        weights = self.precision(trained=trained).weights
        return load_language_model(
            path, device=self.device, dtype=weights, trust_remote_code=self.config.trust_remote_code
        )

    def _prepared(self, model: nn.Module, *, trained: bool) -> nn.Module:
        lora: LoraSettings | None = self.config.lora
        if trained and lora is not None:
            model = add_adapter(model, lora, task="CAUSAL_LM", seed=self.adapter_seed)
        return self._computing(model, self.precision(trained=trained), trained=trained)

    def _computing(self, model: nn.Module, precision: Precision, *, trained: bool) -> nn.Module:
        if trained and self.config.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        return compute_in(model, precision.compute)
