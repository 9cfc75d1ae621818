"""What a model takes before it does anything: bytes of weights, gradients and the optimiser's moments.

Counted, not estimated: the model is built without memory (on PyTorch's meta device) as a stage would build it, adapter and
number formats included, and its parameters are added up.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig

from p3o.errors import P3OError
from p3o.models.adapters import LoraSettings, Task, add_adapter
from p3o.models.heads import Critic

Kind = Literal["language", "classifier", "critic"]
_BUILDERS: dict[Kind, tuple[Any, Task]] = {
    "language": (AutoModelForCausalLM, "CAUSAL_LM"),
    "classifier": (AutoModelForSequenceClassification, "SEQ_CLS"),
    "critic": (AutoModel, "FEATURE_EXTRACTION"),
}

_NAMES: dict[Kind, str] = {"language": "language model", "classifier": "sequence classifier", "critic": "body"}

_SMALL_STATE, _BLOCK = 4096, 256
"""Of bitsandbytes: weights of fewer elements have moments in 32 bits; others a float32 scale for each block of a moment."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one model.

    Attributes:
        frozen: weights that do not learn.
        trained: weights that do.
        gradients: of these.
        moments: of AdamW.
    """

    frozen: int = 0
    trained: int = 0
    gradients: int = 0
    moments: int = 0

    def __add__(self, other: "Footprint") -> "Footprint":
        return Footprint(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def total(self) -> int:
        """All of it."""
        return sum(vars(self).values())

    @property
    def frozen_copy(self) -> "Footprint":
        """Of ``language.frozen_copy``, which shares what is frozen already."""
        return Footprint(frozen=self.trained)


def footprint(model: nn.Module, optimiser: str) -> Footprint:
    """Of a model that is trained by this optimiser, by its name in the configuration."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = sum(_bytes(parameter) for parameter in learning)
    return Footprint(
        frozen=sum(_bytes(parameter) for parameter in model.parameters() if not parameter.requires_grad),
        trained=weights,
        gradients=weights,
        moments=sum(_moments(parameter, optimiser) for parameter in learning),
    )


def adapted_bytes(model: nn.Module) -> int:
    """Of the frozen weights under an adapter: what merging changes."""
    return sum(_bytes(parameter) for name, parameter in model.named_parameters() if ".base_layer." in name)


def unbuilt(config: PretrainedConfig, kind: Kind, *, dtype: torch.dtype, lora: LoraSettings | None = None) -> nn.Module:
    """A model of this configuration whose weights take no memory; of the critic, the head stays in float32.

    Args:
        config: of the language model.
        kind: what is built on it.
        dtype: of its weights.
        lora: the adapter to put on it.

    Raises:
        P3OError: if transformers has no such model.
    """
    builder, task = _BUILDERS[kind]
    if kind == "classifier":
        config = copy.deepcopy(config)
        config.num_labels = 1
    with torch.device("meta"):
        try:
            model: nn.Module = builder.from_config(config, dtype=dtype)
        except ValueError as error:
            raise P3OError(
                f"transformers has no {_NAMES[kind]} for {config.model_type} models; start from another model"
            ) from error
        if lora is not None:
            model = add_adapter(model, lora, task=task, seed=0)
        return Critic(model) if kind == "critic" else model


def _bytes(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size()


def _moments(parameter: nn.Parameter, optimiser: str) -> int:
    """Of one weight; PyTorch counts its steps in a float32 for each."""
    count = parameter.numel()
    if optimiser == "adamw":
        return 2 * _bytes(parameter) + 4
    if count < _SMALL_STATE:
        return 2 * 4 * count
    return 2 * (count + 4 * -(-count // _BLOCK))
