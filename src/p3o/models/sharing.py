"""One set of base weights for several models.

With LoRA, the policy, its reference, the reward model and the critic differ in small adapters and heads; what is frozen in them
and equal need not be in memory four times. ``language.frozen_copy`` gives a reference that shares from the start;
``share_frozen_weights`` does the same for models that were loaded apart.
"""

from torch import nn

from p3o.models.adapters import plain_model
from p3o.models.heads import Critic


def share_frozen_weights(model: nn.Module, owner: nn.Module) -> int:
    """Let ``model`` use the owner's tensors for its own frozen weights, wherever both are frozen and equal to the last bit.

    No output changes. Weights that either of the two trains are left alone.

    Returns:
        Bytes that ``model`` no longer holds for itself.
    """
    theirs = {_plain(name): parameter for name, parameter in _body(owner).named_parameters()}
    saved = 0
    for module_name, module in _body(model).named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            shared = theirs.get(_plain(f"{module_name}.{name}" if module_name else name))
            if shared is None or shared is parameter or shared.requires_grad or parameter.requires_grad:
                continue
            same_kind = (shared.dtype, shared.device, shared.shape) == (
                parameter.dtype,
                parameter.device,
                parameter.shape,
            )
            if same_kind and bool((shared == parameter).all()):
                setattr(module, name, shared)
                saved += parameter.numel() * parameter.element_size()
    return saved


def _body(model: nn.Module) -> nn.Module:
    """The transformer without its head, the part whose names agree between models of one family."""
    inner = plain_model(model.body if isinstance(model, Critic) else model)
    body: nn.Module = getattr(inner, "base_model", inner)
    return body


def _plain(name: str) -> str:
    """A weight's name without peft's mark on the layers it adapts."""
    return name.replace(".base_layer.", ".")
