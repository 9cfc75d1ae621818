"""What a step of a stage will take, from the model's configuration, before anything is loaded.

Weights, gradients and moments are counted (``footprints``). What grows with a forward pass is estimated, per token and layer:

    4 · 7.6 · hidden               the residual stream, norms and their inputs, in float32
    c · 4 · attention width        queries, keys, values and what attention makes of them; c bytes a number
    c · 4 · width of the MLP       gate, its activation, the other branch and their product

which is what transformers' Llama and Qwen2 keep for the backward pass, to a few percent (a test measures it); models whose MLP
has no gate keep less, OPT less than half. Then logits in float32: one buffer for the
predicted tokens, cut into chunks above ``LOGITS_BUDGET``. While sampling, keys and values of all tokens. An estimate of the
order, not a promise: allocators keep more.

Of several processes, bytes are those of each; rows, tokens and samples of a step are those of all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PretrainedConfig

from p3o.models.selection import LOGITS_BUDGET
from p3o.stages.footprints import Footprint, unbuilt

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


Moment = Literal["training", "sampling", "evaluating"]


@dataclass(frozen=True)
class Gathered:
    """Bytes that each process holds whole although the models are sharded; none if they are not.

    Attributes:
        passes: at the height of a training pass: gathered weights, and gradients that are not scattered yet.
        sampling: the whole policy, in the format of passes.
        evaluating: at the height of the passes that measure the KL, one of the policy and one of the reference.
        unshared: of the weights at rest, what is never sharded: reward models that score.
        first: more in the first process, in the CPU's memory: the policy's weights, to save them or to send them to servers.
    """

    passes: int = 0
    sampling: int = 0
    evaluating: int = 0
    unshared: int = 0
    first: int = 0


WHOLE = Gathered()
"""Of models that are not sharded."""


@dataclass(frozen=True)
class StepEstimate:
    """One step of a stage; bytes are those of each process.

    Attributes:
        forward_tokens: in the largest forward pass with gradients, padding included.
        tokens: that the step trains on, at most.
        sampled_tokens: that the step generates, at most.
        weight_bytes: of all models.
        gradient_bytes: of what is trained.
        optimiser_bytes: AdamW's moments.
        pass_bytes: what the moment of most memory adds: activations and logits of the largest pass, or keys and values.
        gathered_bytes: what it adds of sharded models: weights that are gathered, and their gradients.
        height: that moment.
        unshared_bytes: of ``weight_bytes``, those that are whole on every process though others are sharded.
        first_bytes: that the first process of several gathers in the CPU's memory besides.
    """

    forward_tokens: int
    tokens: int
    sampled_tokens: int
    weight_bytes: int
    gradient_bytes: int
    optimiser_bytes: int
    pass_bytes: int
    gathered_bytes: int = 0
    height: Moment = "training"
    unshared_bytes: int = 0
    first_bytes: int = 0

    @property
    def shared_bytes(self) -> int:
        """At rest, but for what is never sharded: with ``parallel.cpu_offload`` these are in the CPU's memory."""
        return self.weight_bytes - self.unshared_bytes + self.gradient_bytes + self.optimiser_bytes

    @property
    def total_bytes(self) -> int:
        """All of it, but for ``first_bytes``."""
        return self.shared_bytes + self.unshared_bytes + self.pass_bytes + self.gathered_bytes


def model_shape(config: PretrainedConfig, *, trust_remote_code: bool = False) -> ModelShape:
    """The shape of a causal language model of this configuration; its parameters are counted without allocating any.

    Raises:
        P3OError: if transformers has no such model, nor its repository one whose code may run.
    """
    model = unbuilt(config, "language", dtype=torch.float32, trust_remote_code=trust_remote_code)
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
    gathered: Gathered = WHOLE,
    processes: int = 1,
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
        gathered: of a sharded model.
        processes: among which the rows are divided; ``rows_per_pass`` is of each.
    """
    at_once = min(-(-rows // processes), rows_per_pass)
    inputs = at_once * row_tokens
    training = activation_bytes(shape, inputs, arithmetic) + logits_bytes(shape, at_once * predicted_tokens, arithmetic)
    return _step(
        models,
        gathered,
        {"training": (training, gathered.passes)},
        forward_tokens=inputs,
        tokens=rows * row_tokens,
        sampled_tokens=0,
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
        served: whether servers write the responses, those of the evaluation too, so that their cache is not here.
        sampling_prompts: sampled together at most; None: all of the step's.
        evaluated: responses of a batch of the evaluation, on each process.
        evaluated_prompt_tokens: of the longest held-out prompt.
        refit_tokens: of a batch of pairs for a refit, which the first process samples whoever writes the others; 0: none.
        processes: among which prompts and minibatches are divided; the budgets of a pass are of each.
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
    served: bool = False
    sampling_prompts: int | None = None
    evaluated: int = 0
    evaluated_prompt_tokens: int = 0
    refit_tokens: int = 0
    processes: int = 1

    @property
    def largest_pass(self) -> tuple[int, int]:
        """Its inputs and its predicted positions, as ``Passes.micro_batches`` fills it with the longest groups of a share."""
        others = self.response_tokens - 1
        if self.padded:
            inputs, predicted = self.responses * (self.prompt_tokens + others), self.responses * self.response_tokens
        else:
            # The first tokens of all responses are predicted from one position.
            inputs, predicted = self.prompt_tokens + self.responses * others, 1 + self.responses * others
        share = -(-self.minibatch // self.processes)
        most = min(share, self.pass_prompts or share)
        groups = max(1, min(most, self.pass_tokens // inputs))
        return groups * inputs, groups * predicted

    @property
    def evaluated_tokens(self) -> int:
        """Of a batch of the evaluation, prompts and responses."""
        return self.evaluated * (self.evaluated_prompt_tokens + self.response_tokens)


def online_step(
    shape: ModelShape,
    models: Footprint,
    arithmetic: Arithmetic,
    work: OnlineWork,
    *,
    has_critic: bool,
    gathered: Gathered = WHOLE,
) -> StepEstimate:
    """A step of RL. With a critic of the same shape, its activations stand beside the policy's."""
    inputs, predicted = work.largest_pass
    training = (1 + has_critic) * activation_bytes(shape, inputs, arithmetic)
    training += logits_bytes(shape, predicted, arithmetic)
    sampled = work.prompts * work.responses * work.response_tokens
    token = 2 * shape.layers * shape.key_value_width * arithmetic.bytes
    share = -(-work.prompts // work.processes)
    responses = min(share, work.sampling_prompts or share) * work.responses
    cache = 0 if work.served else responses * (work.prompt_tokens + work.response_tokens) * token
    cast = shape.parameters * arithmetic.bytes if arithmetic.casts else 0
    beside = cache + cast if work.ahead and not work.served else 0
    moments: dict[Moment, tuple[int, int]] = {
        "training": (training + beside, gathered.passes),
        "evaluating": (divergence_bytes(shape, work, arithmetic) + beside, gathered.evaluating),
    }
    if not work.served or work.refit_tokens:
        evaluated = 0 if work.served else work.evaluated_tokens * token
        here = max(0 if work.ahead else cache, evaluated, work.refit_tokens * token)
        moments["sampling"] = (here + cast + beside, gathered.sampling)
    return _step(models, gathered, moments, forward_tokens=inputs, tokens=work.epochs * sampled, sampled_tokens=sampled)


def activation_bytes(shape: ModelShape, inputs: int, arithmetic: Arithmetic) -> int:
    """What a forward pass over so many tokens keeps for its backward pass, but for logits."""
    layer = _FLOAT * _STREAM * shape.hidden
    layer += arithmetic.bytes * (_ATTENTION * shape.attention_width + _MLP * shape.mlp_width)
    # Of a layer that is computed again, its input is kept; one layer at a time is whole.
    kept = shape.layers * _FLOAT * shape.hidden + layer if arithmetic.recomputes else shape.layers * layer
    return round(inputs * (kept + _FLOAT * _LAST_NORM * shape.hidden)) + _cast_bytes(shape, arithmetic)


def logits_bytes(shape: ModelShape, predicted: int, arithmetic: Arithmetic) -> int:
    """The logits of so many predicted tokens, or of a chunk of them; overwritten in turn by softmax and gradient."""
    # In 16 bit, the model's own logits stand beside those in float32.
    number = _FLOAT if arithmetic.bytes == _FLOAT else _FLOAT + arithmetic.bytes
    return min(predicted * shape.vocabulary * _FLOAT, LOGITS_BUDGET) * number // _FLOAT


def divergence_bytes(shape: ModelShape, work: OnlineWork, arithmetic: Arithmetic) -> int:
    """Of the passes of an evaluation that measure the KL: the logits of both models, and what lives in a layer without a graph.

    That is the stream and its norm, and queries, keys, values and output, or activated gate, other branch and product.
    """
    most = LOGITS_BUDGET // (2 * _FLOAT * shape.vocabulary)
    responses = min(work.evaluated, max(1, most // work.response_tokens))  # a response is never cut
    number = _FLOAT if arithmetic.bytes == _FLOAT else _FLOAT + arithmetic.bytes
    logits = 2 * responses * work.response_tokens * shape.vocabulary * number
    inputs = responses * (work.evaluated_prompt_tokens + work.response_tokens)
    layer = 2 * _FLOAT * shape.hidden + arithmetic.bytes * max(_ATTENTION * shape.attention_width, 3 * shape.mlp_width)
    return logits + inputs * layer + _cast_bytes(shape, arithmetic)


def _cast_bytes(shape: ModelShape, arithmetic: Arithmetic) -> int:
    return shape.parameters * arithmetic.bytes if arithmetic.casts else 0


def _step(
    models: Footprint,
    gathered: Gathered,
    moments: Mapping[Moment, tuple[int, int]],
    *,
    forward_tokens: int,
    tokens: int,
    sampled_tokens: int,
) -> StepEstimate:
    """The moment that takes most, of the bytes that each adds by itself and in gathered weights."""
    height = max(moments, key=lambda moment: sum(moments[moment]))
    pass_bytes, gathered_bytes = moments[height]
    return StepEstimate(
        forward_tokens=forward_tokens,
        tokens=tokens,
        sampled_tokens=sampled_tokens,
        weight_bytes=models.frozen + models.trained,
        gradient_bytes=models.gradients,
        optimiser_bytes=models.moments,
        pass_bytes=pass_bytes,
        gathered_bytes=gathered_bytes,
        height=height,
        unshared_bytes=gathered.unshared,
        first_bytes=gathered.first,
    )
