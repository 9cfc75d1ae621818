"""LoRA (Hu et al., 2021, arXiv:2106.09685) by peft: W becomes W + (α/r)·BA, and only A and B learn.

B starts at zero, so a fresh adapter changes nothing. The base weights are frozen and held once: the reference shares them
(``language.frozen_copy``), and so can the reward model and the critic (``sharing``). There is no adapter dropout: all stages
train in evaluation mode, where it would never act.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from p3o.errors import P3OError, first_line
from p3o.models.loading import peft, put_on

Task = Literal["CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION"]
"""peft's names of a language model, a classifier (its head is trained and saved whole) and a bare body (of a critic)."""


class LoraSettings(BaseModel):
    """A low-rank adapter instead of training all weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(16, gt=0, description="r, rank of the update to each weight matrix.")
    alpha: float = Field(32.0, gt=0, description="α; the update is scaled by α/r.")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="Names of the linear layers to adapt; all-linear: all except the output head."
    )
    save: Literal["adapter", "merged"] = Field(
        "adapter", description="What is saved: only the adapter, or a complete model with the adapter merged in."
    )


def add_adapter(model: nn.Module, settings: LoraSettings, *, task: Task, seed: int) -> nn.Module:
    """The model with a fresh adapter: its own weights frozen, the adapter's drawn from the seed alone and trainable.

    The model itself is changed; use what is returned. A model that has an adapter already (a policy that was fine-tuned with
    one) is returned as it is: training goes on with that adapter, so the result stays one adapter on the original base, and
    ``unheeded`` says which settings do nothing.

    Raises:
        P3OError: if a target module is not there or no linear layer.
    """
    if has_adapter(model):
        return model
    modules = settings.target_modules
    config = peft().LoraConfig(
        task_type=task,
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=modules if isinstance(modules, str) else list(modules),
        # GPT-2 keeps its matrices transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    training = model.training
    try:
        # Adapters are drawn on the CPU. torch.manual_seed would seed every GPU of the machine as well, and not put it back.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            adapted = put_on(model, config)
    except (ValueError, NotImplementedError) as error:
        raise P3OError(f"lora.target_modules: {first_line(error)}; name linear layers of the model") from error
    return adapted.train(training)


def unheeded(model: nn.Module, settings: LoraSettings) -> str | None:
    """In words, how the adapter that a model has already differs from these settings, which then do nothing; None if the
    model has none, or one such as they ask for."""
    if not has_adapter(model):
        return None
    config: Any = model.active_peft_config
    found = {"rank": getattr(config, "r", None), "alpha": getattr(config, "lora_alpha", None)}
    differing = [
        f"{name} {value:g}, not lora.{name} {getattr(settings, name):g}"
        for name, value in found.items()
        if value is not None and value != getattr(settings, name)
    ]
    adapted, wanted = _adapted(plain_model(model), settings.target_modules)
    if adapted != wanted:
        differing.append(f"{len(adapted)} adapted layers, not the {len(wanted)} of lora.target_modules")
    if not differing:
        return None
    return f"it is already an adapter, whose training continues with its own settings: {'; '.join(differing)}"


def _adapted(model: nn.Module, targets: Literal["all-linear"] | Sequence[str]) -> tuple[set[str], set[str]]:
    """Names of the linear layers of the model inside an adapter that are adapted, and of those that the targets name."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    layers = {
        name: hasattr(module, "base_layer")
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear | Conv1D) or hasattr(module, "base_layer"))
        and module is not head
        # Not what is inside an adapted layer, nor a head that is trained and saved whole.
        and not re.search(r"\.(base_layer|lora_\w+|original_module|modules_to_save)\b", name)
    }
    adapted = {name for name, is_adapted in layers.items() if is_adapted}
    if isinstance(targets, str):
        return adapted, set(layers)
    return adapted, {name for name in layers if any(f".{name}".endswith(f".{target}") for target in targets)}


def has_adapter(model: nn.Module) -> bool:
    """Whether the model is one of peft's."""
    return hasattr(model, "get_base_model")


def plain_model(model: nn.Module) -> nn.Module:
    """The transformers model inside a model of peft; any other model as it is."""
    return model.get_base_model() if has_adapter(model) else model  # type: ignore[operator]


def merged(model: nn.Module) -> nn.Module:
    """A whole model of its own with the adapter's update added to the weights, all of them trainable.

    Raises:
        P3OError: if transformers, not peft, put the adapter into the model; then nothing takes it out again.
    """
    if not has_adapter(model):
        if getattr(model, "_hf_peft_config_loaded", False):
            raise P3OError("an adapter that transformers put into its model cannot be merged; use load_language_model")
        return model
    adapted: Any = copy.deepcopy(model)
    whole: nn.Module = adapted.merge_and_unload()
    return whole.requires_grad_(True).train(model.training)
