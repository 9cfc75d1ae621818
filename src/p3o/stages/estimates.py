"""What a step of a stage will take, from the model's configuration, before anything is loaded.

Weights, gradients and moments are counted (``footprints``). What grows with a forward pass is estimated, per token and layer:

    4 · 7.6 · hidden               the residual stream, norms and their inputs, in float32
    c · 4 · attention width        queries, keys, values and what attention makes of them; c bytes a number
    c · 4 · width of the MLP       gate, its activation, the other branch and their product

which is what transformers' Llama and Qwen2 keep for the backward pass, to a few percent (a test measures it); GPT-2 keeps a
little more, models whose MLP has no gate (GPT-NeoX, OPT) up to half less. Then logits in float32: one buffer for the
predicted tokens, cut into chunks above ``LOGITS_BUDGET``. While sampling, keys and values of all tokens. An estimate of the
order, not a promise: allocators keep more.
"""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from p3o.models.selection import LOGITS_BUDGET
from p3o.stages.footprints import Footprint

GIB = 2**30
_FLOAT = 4
_STREAM = 7.6
_ATTENTION = 4
_MLP = 4
_LAST_NORM = 3
"""Numbers of ``hidden`` that the norm before the head keeps."""


@dataclass(frozen=True)
class ModelShape:
    """What the estimates need to know of a model."""

    parameters: int
    layers: int
    hidden: int
    attention_width: int
    key_value_width: int
    mlp_width: int
    vocabulary: int


@dataclass(frozen=True)
class Arithmetic:
    """How a model computes.

    Attributes:
        bytes: of a number: 2 in 16 bit, 4 in 32 bit.
        casts: whether its weights are kept in 32 bit and cast to 16 bit for every pass.
        recomputes: whether only the inputs of layers are kept (gradient checkpointing).
    """

    bytes: int = _FLOAT
    casts: bool = False
    recomputes: bool = False


@dataclass(frozen=True)
class StepEstimate:
    """One step of a stage.

    Attributes:
        forward_tokens: in the largest forward pass with gradients, padding included.
        tokens: that the step trains on, at most.
        sampled_tokens: that the step generates, at most.
        weight_bytes: of all models.
        gradient_bytes: of what is trained.
        optimiser_bytes: AdamW's moments.
        pass_bytes: activations and logits of the largest pass, or the sampling cache if that is larger.
    """

    forward_tokens: int
    tokens: int
    sampled_tokens: int
    weight_bytes: int
    gradient_bytes: int
    optimiser_bytes: int
    pass_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.gradient_bytes + self.optimiser_bytes + self.pass_bytes


def model_shape(config: PretrainedConfig) -> ModelShape:
    """The shape of a causal language model of this configuration; its parameters are counted without allocating any."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    heads = int(config.num_attention_heads)
    key_value_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    named = (getattr(config, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner"))
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=int(config.num_hidden_layers),
        hidden=int(config.hidden_size),
        attention_width=heads * head_width,
        key_value_width=key_value_heads * head_width,
        mlp_width=next((int(width) for width in named if width), 4 * int(config.hidden_size)),
        vocabulary=int(config.vocab_size),
    )


def supervised_step(
    shape: ModelShape,
    models: Footprint,
    arithmetic: Arithmetic,
    *,
    rows: int,
    rows_per_pass: int,
    row_tokens: int,
    predicted_tokens: int,
) -> StepEstimate:
    """A step of supervised fine-tuning, or of the reward model.

    Args:
        shape: of the model.
        models: what it takes.
        arithmetic: how it computes.
        rows: of a step.
        rows_per_pass: of a pass at most.
        row_tokens: of the longest row.
        predicted_tokens: of the row that has most: the longest completion; 0 for the reward model.
    """
    at_once = min(rows, rows_per_pass)
    inputs = at_once * row_tokens
    return _step(
        models,
        forward_tokens=inputs,
        tokens=rows * row_tokens,
        sampled_tokens=0,
        pass_bytes=activation_bytes(shape, inputs, arithmetic)
        + logits_bytes(shape, at_once * predicted_tokens, arithmetic),
    )


@dataclass(frozen=True)
class OnlineWork:
    """The sizes of an RL step.

    Attributes:
        prompts: sampled in a step.
        responses: K.
        minibatch: prompts of an update, replayed ones included.
        epochs: passes over the buffer.
        prompt_tokens: of the longest prompt.
        response_tokens: of a response at most.
        pass_tokens: budget of a pass.
        pass_prompts: prompts of a pass at most; None: any number.
        padded: whether every response has a row of its own, or a prompt shares one.
        ahead: whether the next groups are sampled while these train, so that their cache stands beside the pass.
    """

    prompts: int
    responses: int
    minibatch: int
    epochs: int
    prompt_tokens: int
    response_tokens: int
    pass_tokens: int
    pass_prompts: int | None = None
    padded: bool = False
    ahead: bool = False

    @property
    def largest_pass(self) -> tuple[int, int]:
        """Its inputs and its predicted positions, as ``Passes.micro_batches`` fills it with the longest groups."""
        others = self.response_tokens - 1
        if self.padded:
            inputs, predicted = self.responses * (self.prompt_tokens + others), self.responses * self.response_tokens
        else:
            # The first tokens of all responses are predicted from one position.
            inputs, predicted = self.prompt_tokens + self.responses * others, 1 + self.responses * others
        most = min(self.minibatch, self.pass_prompts or self.minibatch)
        groups = max(1, min(most, self.pass_tokens // inputs))
        return groups * inputs, groups * predicted


def online_step(
    shape: ModelShape, models: Footprint, arithmetic: Arithmetic, work: OnlineWork, *, has_critic: bool
) -> StepEstimate:
    """A step of RL. With a critic of the same shape, its activations stand beside the policy's."""
    inputs, predicted = work.largest_pass
    training = (1 + has_critic) * activation_bytes(shape, inputs, arithmetic)
    training += logits_bytes(shape, predicted, arithmetic)
    sampled = work.prompts * work.responses * work.response_tokens
    cached = work.prompts * work.responses * (work.prompt_tokens + work.response_tokens)
    cache = cached * 2 * shape.layers * shape.key_value_width * arithmetic.bytes
    return _step(
        models,
        forward_tokens=inputs,
        tokens=work.epochs * sampled,
        sampled_tokens=sampled,
        pass_bytes=training + cache if work.ahead else max(training, cache),
    )


def activation_bytes(shape: ModelShape, inputs: int, arithmetic: Arithmetic) -> int:
    """What a forward pass over so many tokens keeps for its backward pass, but for logits."""
    layer = _FLOAT * _STREAM * shape.hidden
    layer += arithmetic.bytes * (_ATTENTION * shape.attention_width + _MLP * shape.mlp_width)
    # Of a layer that is computed again, its input is kept; one layer at a time is whole.
    kept = shape.layers * _FLOAT * shape.hidden + layer if arithmetic.recomputes else shape.layers * layer
    weights = shape.parameters * arithmetic.bytes if arithmetic.casts else 0
    return round(inputs * (kept + _FLOAT * _LAST_NORM * shape.hidden)) + weights


def logits_bytes(shape: ModelShape, predicted: int, arithmetic: Arithmetic) -> int:
    """The logits of so many predicted tokens, or of a chunk of them; overwritten in turn by softmax and gradient."""
    # In 16 bit, the model's own logits stand beside those in float32.
    number = _FLOAT if arithmetic.bytes == _FLOAT else _FLOAT + arithmetic.bytes
    return min(predicted * shape.vocabulary * _FLOAT, LOGITS_BUDGET) * number // _FLOAT


def _step(models: Footprint, *, forward_tokens: int, tokens: int, sampled_tokens: int, pass_bytes: int) -> StepEstimate:
    return StepEstimate(
        forward_tokens=forward_tokens,
        tokens=tokens,
        sampled_tokens=sampled_tokens,
        weight_bytes=models.frozen + models.trained,
        gradient_bytes=models.gradients,
        optimiser_bytes=models.moments,
        pass_bytes=pass_bytes,
    )
