"""What a model takes before it does anything: bytes of weights, gradients and the optimiser's moments.

Counted, not estimated: the model is built without memory (on PyTorch's meta device) as a stage would build it, adapter and
number formats included, and its parameters are added up; where processes share them, the part of one of them, and what of the
others' parts it gathers at a time.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig

from p3o.errors import P3OError
from p3o.models.adapters import LoraSettings, Task, add_adapter
from p3o.models.heads import Critic
from p3o.models.recomputation import blocks

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


@dataclass(frozen=True)
class Gathering:
    """Bytes of a sharded model, beside its shards, that a process holds while it uses the model; in the format of passes.

    Attributes:
        kept: weights that stay whole from their first use in a step to the last: those outside of the layers, as FSDP's root
            is never dropped after its forward pass, or all with ``reshard_after_forward: false``.
        layer: of the largest layer; that at work and the next one are whole, unless all are kept.
        gradients: of what is outside of the layers and of one layer, before they are summed and scattered.
        whole: all weights, as sampling takes them.
    """

    kept: int = 0
    layer: int = 0
    gradients: int = 0
    whole: int = 0


def footprint(model: nn.Module, optimiser: str, *, processes: int = 1) -> Footprint:
    """Of a model that is trained by this optimiser, by its name in the configuration; of each process that shares it."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = sum(_share(parameter, processes) * parameter.element_size() for parameter in learning)
    frozen = (parameter for parameter in model.parameters() if not parameter.requires_grad)
    return Footprint(
        frozen=sum(_share(parameter, processes) * parameter.element_size() for parameter in frozen),
        trained=weights,
        gradients=weights,
        moments=sum(
            _moments(_share(parameter, processes), parameter.element_size(), optimiser) for parameter in learning
        ),
    )


def gathering(model: nn.Module, number: int, *, reshards: bool) -> Gathering:
    """Of a sharded model whose passes have numbers of so many bytes.

    Args:
        model: with its adapter, if it has one.
        number: bytes of a number in passes.
        reshards: whether layers are dropped after their forward pass.
    """
    layers = [list(block.parameters()) for block in blocks(model)]
    within = {id(parameter) for layer in layers for parameter in layer}
    outside = [parameter for parameter in model.parameters() if id(parameter) not in within]
    largest = max(layers, key=_numbers, default=[])
    whole = number * _numbers(model.parameters())
    return Gathering(
        kept=number * _numbers(outside) if reshards else whole,
        layer=number * _numbers(largest) if reshards else 0,
        gradients=number * _numbers(parameter for parameter in [*outside, *largest] if parameter.requires_grad),
        whole=whole,
    )


def adapted_bytes(model: nn.Module) -> int:
    """Of the frozen weights under an adapter: what merging changes."""
    return sum(_bytes(parameter) for name, parameter in model.named_parameters() if ".base_layer." in name)


def unbuilt(
    config: PretrainedConfig,
    kind: Kind,
    *,
    dtype: torch.dtype,
    lora: LoraSettings | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """A model of this configuration whose weights take no memory; of the critic, the head stays in float32.

    Args:
        config: of the language model.
        kind: what is built on it.
        dtype: of its weights.
        lora: the adapter to put on it.
        trust_remote_code: whether code in the model's repository may run.

    Raises:
        P3OError: if transformers has no such model.
    """
    builder, task = _BUILDERS[kind]
    if kind == "classifier":
        config = copy.deepcopy(config)
        config.num_labels = 1
    with torch.device("meta"):
        try:
            model: nn.Module = builder.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
        except ValueError as error:
            raise P3OError(
                f"transformers has no {_NAMES[kind]} for {config.model_type} models; choose another model"
            ) from error
        if lora is not None:
            model = add_adapter(model, lora, task=task, seed=0)
        return Critic(model) if kind == "critic" else model


def _bytes(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size()


def _numbers(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _share(parameter: nn.Parameter, processes: int) -> int:
    """Numbers of a parameter that each process holds: whole rows, and FSDP fills up the shards that have fewer."""
    rows = parameter.shape[0] if parameter.dim() else 1
    return -(-rows // processes) * (parameter.numel() // max(rows, 1))


def _moments(count: int, size: int, optimiser: str) -> int:
    """Of so many numbers of a weight, of so many bytes each; PyTorch counts its steps in a float32 for each weight."""
    if optimiser == "adamw":
        return 2 * count * size + 4
    if count < _SMALL_STATE:
        return 2 * 4 * count
    return 2 * (count + 4 * -(-count // _BLOCK))
