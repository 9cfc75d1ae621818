"""The models of a run as its configuration wants them: precision, adapters, recomputation, one copy of frozen weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from p3o.config import RunConfig
from p3o.distributed.sharding import shard
from p3o.distributed.world import world
from p3o.errors import P3OError
from p3o.feedback.reward_model import load_reward_model
from p3o.inputs import starting_model
from p3o.models.adapters import LoraSettings, add_adapter, unheeded
from p3o.models.heads import HEADS, Critic
from p3o.models.language import frozen_copy, load_language_model, save_model
from p3o.models.precision import Precision, choose_precision, compute_in
from p3o.models.recomputation import blocks, enable_gradient_checkpointing
from p3o.models.sharded_loading import copy_shards, empty_model, fill, materialise, start_values

CANNOT_SAVE_MERGED = (
    "lora.save: a sharded model cannot be saved merged; choose lora.save: adapter, or parallel.mode: data"
)


class Models:
    """Loads and saves models for the stages.

    With ``parallel.mode: fsdp``, weights go from their files straight into the shards where the files allow it; with an
    adapter, or where they do not, every process loads the whole model first.

    Args:
        config: of the run.
        device: where they compute.
        adapter_seed: of fresh adapters.
        warn: told, in a line, of settings that do nothing.
    """

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        *,
        adapter_seed: int,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.config, self.device, self.adapter_seed = config, device, adapter_seed
        self._warn, self._warned = warn, set[str]()

    def precision(self, *, trained: bool) -> Precision:
        """The number formats of a model that is trained, or only used."""
        whole = trained and self.config.lora is None
        return choose_precision(self.config.dtype, self.device, trains_all_weights=whole)

    @property
    def is_sharding(self) -> bool:
        """Whether what is trained is to be spread over the processes; with one there is nobody to share with."""
        return self.config.parallel.mode == "fsdp" and world().size > 1

    def untrained(self) -> nn.Module:
        """What fine-tuning starts from: the given model, or the embedded task's own with random weights; sharded if it shall
        be."""
        start = starting_model(self.config, self.config.seed)
        if start is None:
            path = str(self.config.model)
            return self.sharded_policy(path) if self.is_sharding else self.policy(path)
        weights = self.precision(trained=True).weights
        model = self._prepared(start[0].to(self.device, weights).eval(), trained=True)
        if self.is_sharding:
            self.shard(model)
        return model

    def policy(self, path: str) -> nn.Module:
        """A language model to train."""
        model = self._language_model(path, trained=True)
        self._tell_unheeded(model, path)
        return self._prepared(model, trained=True)

    def fixed(self, path: str) -> nn.Module:
        """A language model to sample from and to evaluate."""
        return self._prepared(self._language_model(path, trained=False), trained=False)

    def reward(self, path: str, *, trained: bool) -> nn.Module:
        """A sequence classifier, to train from a language model's folder (sharded if it shall be) or to score with.

        A new head is drawn from torch's global generator.
        """
        if trained and self.is_sharding:
            return self._sharded_reward(path)
        return self._whole_reward(path, trained=trained)

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

    def sharded_policy(self, path: str) -> nn.Module:
        """A language model to train, spread over all processes, layer by layer."""
        empty = self._empty(AutoModelForCausalLM, path, what=f"model {path!r}")
        policy = self.policy(path) if empty is None else self._prepared(empty, trained=True)
        self.shard(policy)
        if empty is not None:
            fill(policy, path, what=f"model {path!r}", device=self.resting)
        return policy

    def sharded(self, path: str) -> tuple[nn.Module, nn.Module]:
        """A policy to train and its frozen reference, spread over all processes, layer by layer."""
        empty = self._empty(AutoModelForCausalLM, path, what=f"model {path!r}")
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
        body = self._empty(AutoModel, path, what=f"critic {path!r}")
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
        """Spread a model over all processes, layer by layer.

        Raises:
            P3OError: if it could not be saved as the configuration wants it.
        """
        if self.config.lora is not None and self.config.lora.save == "merged":
            raise P3OError(CANNOT_SAVE_MERGED)
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

    def _sharded_reward(self, path: str) -> nn.Module:
        what = f"reward model {path!r}"
        empty = self._empty(AutoModelForSequenceClassification, path, what=what, new=HEADS, num_labels=1)
        if empty is None:
            model = self._whole_reward(path, trained=True)
            self.shard(model)
            return model
        head = start_values(empty, path, what=what, new=HEADS)
        model = self._computing(empty, self.precision(trained=True), trained=True)
        self.shard(model)
        fill(model, path, what=what, device=self.resting, start=head)
        return model

    def _whole_reward(self, path: str, *, trained: bool) -> nn.Module:
        precision = self.precision(trained=trained)
        model = load_reward_model(
            path,
            device=self.device,
            dtype=precision.weights,
            new_head=trained,
            trust_remote_code=self.config.trust_remote_code,
        )
        if trained and self.config.lora is not None:
            self._tell_unheeded(model, path)
            model = add_adapter(model, self.config.lora, task="SEQ_CLS", seed=self.adapter_seed)
        return self._computing(model, precision, trained=trained)

    def _empty(self, auto_class: Any, path: str, *, what: str, **settings: Any) -> nn.Module | None:
        """A model to be sharded before its weights are read; None where that cannot be done."""
        if self.config.lora is not None:
            return None
        weights = self.precision(trained=True).weights
        trusts = self.config.trust_remote_code
        return empty_model(auto_class, path, what=what, dtype=weights, trust_remote_code=trusts, **settings)

    def _language_model(self, path: str, *, trained: bool) -> nn.Module:
        weights = self.precision(trained=trained).weights
        return load_language_model(
            path, device=self.device, dtype=weights, trust_remote_code=self.config.trust_remote_code
        )

    def _tell_unheeded(self, model: nn.Module, path: str) -> None:
        """Say once of each difference that a model which has an adapter already gets none by the lora section."""
        told = None if self.config.lora is None else unheeded(model, self.config.lora)
        if told is not None and told not in self._warned:
            self._warned.add(told)
            self._warn(f"model {path!r}: {told}")

    def _prepared(self, model: nn.Module, *, trained: bool) -> nn.Module:
        lora: LoraSettings | None = self.config.lora
        if trained and lora is not None:
            model = add_adapter(model, lora, task="CAUSAL_LM", seed=self.adapter_seed)
        return self._computing(model, self.precision(trained=trained), trained=trained)

    def _computing(self, model: nn.Module, precision: Precision, *, trained: bool) -> nn.Module:
        if trained and self.config.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        return compute_in(model, precision.compute)
