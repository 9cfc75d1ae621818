"""Gradient checkpointing: a layer's activations are computed again in the backward pass instead of being kept.

Transformers does this in training mode only, where dropout would act and the importance ratio would not be 1 before the first
update. All stages here train in evaluation mode, so the layers are wrapped one by one instead.
"""

from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from p3o.errors import P3OError


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Recompute every transformer layer in the backward pass, in evaluation mode as well; values and gradients stay the same.

    Passes without gradients, and passes that are given a cache of keys and values, run as before.

    Raises:
        P3OError: if the model has no layers of the kind that transformers can recompute.
    """
    layers = blocks(model)
    if not layers:
        raise P3OError(
            f"gradient checkpointing: {type(model).__name__} does not support it; set gradient_checkpointing: false"
        )
    for layer in layers:
        # A method of the instance: copies of the model recompute their own layers, and state_dict knows nothing of it.
        layer.forward = MethodType(_recomputed, layer)


def blocks(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The transformer layers, in order, as transformers marks them."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _recomputed(layer: Any, *arguments: Any, **settings: Any) -> Any:
    forward = partial(type(layer).forward, layer, **settings)
    # A cache would be written to a second time by the second pass.
    cached = settings.get("past_key_values") is not None or settings.get("layer_past") is not None
    if cached or not torch.is_grad_enabled():
        return forward(*arguments)
    # Without dropout there are no random numbers to put back.
    return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=layer.training)
