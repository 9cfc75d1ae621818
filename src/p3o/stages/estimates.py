"""What a stage will take: memory and tokens per step, estimated from the model's configuration before anything is loaded.

Counted are what grows with the model (weights, gradients, two moments of AdamW) and what grows with a forward pass:

    activations of a layer   34 · hidden bytes per token in 16 bit, twice that in 32 bit
                             (Korthikanti et al., arXiv:2205.05198, Eq. 2 without the attention matrix, which fused attention
                             does not keep)
    logits                   three tensors of the vocabulary per predicted token: logits, log-softmax, their gradient
    cache of keys and values 2 · layers · key-value width per token, while sampling

An estimate of the order, not a promise: allocators keep more, gradient checkpointing less.
"""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

GIB = 2**30
_ADAM_MOMENTS = 2
_LAYER_BYTES_16_BIT = 34
_LOGIT_TENSORS = 3


@dataclass(frozen=True)
class ModelShape:
    """What the estimates need to know of a model."""

    parameters: int
    layers: int
    hidden: int
    key_value_width: int
    vocabulary: int


@dataclass(frozen=True)
class StepEstimate:
    """One step of a stage.

    Attributes:
        forward_tokens: in the largest forward pass with gradients, padding included.
        tokens: that the step trains on, at most.
        sampled_tokens: that the step generates, at most.
        model_bytes: weights, gradients and moments of all models.
        pass_bytes: activations and logits of the largest pass, or the sampling cache if that is larger.
    """

    forward_tokens: int
    tokens: int
    sampled_tokens: int
    model_bytes: int
    pass_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.model_bytes + self.pass_bytes


def model_shape(config: PretrainedConfig) -> ModelShape:
    """The shape of a causal language model of this configuration; its parameters are counted without allocating any."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    heads = int(config.num_attention_heads)
    key_value_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=int(config.num_hidden_layers),
        hidden=int(config.hidden_size),
        key_value_width=key_value_heads * head_width,
        vocabulary=int(config.vocab_size),
    )


def supervised_step(
    shape: ModelShape, *, rows: int, rows_per_pass: int, row_tokens: int, dtype_bytes: int = 4, has_logits: bool = True
) -> StepEstimate:
    """A step of supervised fine-tuning, or of the reward model (``has_logits=False``; a pair is two rows)."""
    in_pass = min(rows, rows_per_pass) * row_tokens
    return StepEstimate(
        forward_tokens=in_pass,
        tokens=rows * row_tokens,
        sampled_tokens=0,
        model_bytes=shape.parameters * _trained_bytes(dtype_bytes),
        pass_bytes=_pass_bytes(shape, in_pass, in_pass if has_logits else 0, dtype_bytes),
    )


def online_step(
    shape: ModelShape,
    *,
    prompts: int,
    responses: int,
    prompts_per_pass: int,
    epochs: int,
    prompt_tokens: int,
    response_tokens: int,
    has_critic: bool,
    has_reward_model: bool,
    max_staleness: int = 0,
    dtype_bytes: int = 4,
) -> StepEstimate:
    """A step of RL: a trained policy, a frozen reference, and, where they are, a trained critic and a frozen reward model of
    the same size. Sampling ahead takes up to ``max_staleness`` copies of the policy, and its cache beside the pass."""
    row = prompt_tokens + response_tokens
    in_pass = min(prompts, prompts_per_pass) * responses * row
    predicted = min(prompts, prompts_per_pass) * responses * response_tokens
    models = (1 + has_critic) * _trained_bytes(dtype_bytes) + (1 + has_reward_model + max_staleness) * dtype_bytes
    cache = prompts * responses * row * 2 * shape.layers * shape.key_value_width * dtype_bytes
    in_training = _pass_bytes(shape, in_pass, predicted, dtype_bytes)
    return StepEstimate(
        forward_tokens=in_pass,
        tokens=epochs * prompts * responses * response_tokens,
        sampled_tokens=prompts * responses * response_tokens,
        model_bytes=shape.parameters * models,
        pass_bytes=in_training + cache if max_staleness else max(in_training, cache),
    )


def _trained_bytes(dtype_bytes: int) -> int:
    """Of a trained parameter: weight, gradient and moments."""
    return (2 + _ADAM_MOMENTS) * dtype_bytes


def _pass_bytes(shape: ModelShape, tokens: int, predicted: int, dtype_bytes: int) -> int:
    layers = tokens * shape.layers * shape.hidden * _LAYER_BYTES_16_BIT * dtype_bytes // 2
    return layers + predicted * shape.vocabulary * 4 * _LOGIT_TENSORS  # logits are taken in float32
