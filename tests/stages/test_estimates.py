"""Estimates against models that are really built and trained: bytes counted exactly, activations measured."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from p3o.models.adapters import LoraSettings, plain_model
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy
from p3o.models.layouts import LAYOUTS
from p3o.models.precision import compute_in
from p3o.models.recomputation import enable_gradient_checkpointing
from p3o.models.tokens import GroupTokens
from p3o.stages.estimates import (
    Arithmetic,
    ModelShape,
    OnlineWork,
    activation_bytes,
    model_shape,
    online_step,
    supervised_step,
)
from p3o.stages.footprints import _BUILDERS, Footprint, Kind, footprint, unbuilt
from p3o.training.optimisation import Optimisation, OptimiserConfig
from p3o.training.passes import Passes

SHAPE = ModelShape(
    parameters=1000, layers=2, hidden=10, attention_width=8, key_value_width=4, mlp_width=30, vocabulary=50
)
SMALL = {"vocab_size": 40, "hidden_size": 32, "num_attention_heads": 4}
LLAMA = LlamaConfig(**SMALL, intermediate_size=48, num_hidden_layers=3, num_key_value_heads=2)
GPT2 = GPT2Config(vocab_size=40, n_embd=32, n_layer=3, n_head=4, n_positions=64)
LORA = LoraSettings(rank=4)


@pytest.mark.parametrize(("config", "width", "mlp"), [(LLAMA, 16, 48), (GPT2, 32, 128)])
def test_the_shape_is_that_of_the_model(config: PretrainedConfig, width: int, mlp: int) -> None:
    parameters = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    assert model_shape(config) == ModelShape(parameters, 3, 32, 32, width, mlp, 40)


def size(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", _BUILDERS)
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_weights_gradients_and_moments_are_counted(
    config: PretrainedConfig, kind: Kind, dtype: torch.dtype, lora: LoraSettings | None
) -> None:
    """Against the tensors of a model of real memory after one update."""
    counted = footprint(unbuilt(config, kind, dtype=dtype, lora=lora), "adamw")
    meta = unbuilt(config, kind, dtype=dtype, lora=lora)
    assert {parameter.device.type for parameter in meta.parameters()} == {"meta"}
    model: nn.Module = meta.to_empty(device="cpu")
    if kind == "language":
        plain_model(model).tie_weights()  # new memory has untied them
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = Optimisation({"model": model}, OptimiserConfig(learning_rate=1e-3), 1)
    for parameter in learning:
        parameter.data.zero_()
        parameter.grad = torch.ones_like(parameter)
    assert counted.gradients == size([parameter.grad for parameter in learning if parameter.grad is not None])
    training.update()
    moments = [tensor for state in training.optimiser.state.values() for tensor in state.values()]
    assert counted.moments == size(moments)
    assert counted.trained == size([parameter.data for parameter in learning])
    assert counted.frozen == size([p.data for p in model.parameters() if not p.requires_grad])
    assert (counted.frozen == 0) == (lora is None)
    if isinstance(model, Critic):
        assert model.head.weight.dtype == torch.float32


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_reference_shares_what_is_frozen(lora: LoraSettings | None) -> None:
    counted = footprint(unbuilt(LLAMA, "language", dtype=torch.float32, lora=lora), "adamw")
    policy = unbuilt(LLAMA, "language", dtype=torch.float32, lora=lora).to_empty(device="cpu")
    tensors = {id(p): p.data for model in (policy, frozen_copy(policy)) for p in model.parameters()}
    both = counted + counted.frozen_copy
    assert both.frozen + both.trained == size(list(tensors.values()))
    assert both.total == counted.total + counted.trained


def test_moments_of_eight_bits() -> None:
    """As bitsandbytes keeps them: 100 elements in 32 bits, 5000 in 8 with a scale for each block of 256."""
    model = nn.Module()
    model.small, model.large = nn.Parameter(torch.zeros(100)), nn.Parameter(torch.zeros(50, 100))
    for name in ("adamw_8bit", "paged_adamw_8bit"):
        assert footprint(model, name).moments == 2 * (400 + 5000 + 4 * 20)
    assert footprint(model, "adamw").moments == 2 * 4 * 5100 + 2 * 4


def kept(model: nn.Module, groups: list[GroupTokens]) -> int:
    """Bytes that a pass keeps for its backward pass, weights and logits not counted."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        LAYOUTS["shared"](budget=None).logprobs(model, groups, temperature=1.0, time=64, fill=0)
    sizes = {address: tensor.untyped_storage().nbytes() for address, tensor in found.items()}
    logits = {tensor.untyped_storage().nbytes() for tensor in found.values() if tensor.shape[-1] == VOCABULARY}
    return sum(count for address, count in sizes.items() if address not in parameters) - max(logits)


VOCABULARY, WIDE = 512, {"vocab_size": 512, "num_attention_heads": 4, "hidden_size": 128, "num_hidden_layers": 4}
FAMILIES: dict[str, tuple[Callable[[], PretrainedConfig], float, float]] = {
    "llama": (lambda: LlamaConfig(**WIDE, intermediate_size=384), 0.93, 1.07),
    "llama, wide": (lambda: LlamaConfig(**WIDE, intermediate_size=1536), 0.93, 1.07),
    "qwen2": (lambda: Qwen2Config(**WIDE, intermediate_size=384, num_key_value_heads=2), 0.93, 1.07),
    "qwen3": (lambda: Qwen3Config(**WIDE, intermediate_size=384, num_key_value_heads=2, head_dim=32), 0.85, 1.0),
    "gpt2": (
        lambda: GPT2Config(
            vocab_size=512, n_embd=128, n_layer=4, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=1
        ),
        0.95,
        1.15,
    ),
    "gpt_neox": (lambda: GPTNeoXConfig(**WIDE, intermediate_size=512), 1.2, 1.75),
    "opt": (lambda: OPTConfig(**WIDE, ffn_dim=512, word_embed_proj_dim=128), 1.5, 2.3),
}
"""Estimated over measured: at least, at most."""


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_those_that_are_kept(family: str, half: bool) -> None:
    make, low, high = FAMILIES[family]
    model = AutoModelForCausalLM.from_config(make()).eval()
    arithmetic = Arithmetic()
    if half:
        compute_in(model, torch.bfloat16)
        arithmetic = Arithmetic(bytes=2, casts=True)
    groups = [GroupTokens([5] * 100, [[6] * 51] * 2, [True] * 2)] * 4
    estimated = activation_bytes(model_shape(model.config), 4 * 200, arithmetic)
    assert low <= estimated / kept(model, groups) <= high + (0.05 if half else 0.0)


def test_recomputed_layers_keep_their_input() -> None:
    model = AutoModelForCausalLM.from_config(FAMILIES["llama"][0]()).eval()
    enable_gradient_checkpointing(model)
    groups = [GroupTokens([5] * 100, [[6] * 51] * 2, [True] * 2)] * 4
    shape = model_shape(model.config)
    estimated = activation_bytes(shape, 800, Arithmetic(recomputes=True))
    # Nothing of the one layer that is whole while it is computed again is kept by the forward pass.
    layer = (activation_bytes(shape, 800, Arithmetic()) - 800 * 3 * 128 * 4) / 4
    assert 0.93 <= (estimated - layer) / kept(model, groups) <= 1.07


def test_a_supervised_step() -> None:
    models = Footprint(frozen=1, trained=20, gradients=300, moments=4000)
    sizes = {"rows": 8, "rows_per_pass": 2, "row_tokens": 5}
    step = supervised_step(SHAPE, models, Arithmetic(), **sizes, predicted_tokens=3)
    assert (step.forward_tokens, step.tokens, step.sampled_tokens) == (10, 40, 0)
    assert (step.weight_bytes, step.gradient_bytes, step.optimiser_bytes) == (21, 300, 4000)
    # 10 tokens through 2 layers and a norm; 50 float32 logits for each of the 6 that are predicted, in 16 bit once more.
    activations = 10 * (2 * (4 * 7.6 * 10 + 4 * 4 * 8 + 4 * 4 * 30) + 4 * 3 * 10)
    assert step.pass_bytes == activations + 6 * 50 * 4
    assert step.total_bytes == 4321 + step.pass_bytes
    half = Arithmetic(bytes=2)
    with_half = supervised_step(SHAPE, models, half, **sizes, predicted_tokens=3)
    assert with_half.pass_bytes == activation_bytes(SHAPE, 10, half) + 6 * 50 * (4 + 2)
    many = ModelShape(**(vars(SHAPE) | {"vocabulary": 10**8}))
    chunked = supervised_step(many, models, Arithmetic(), **sizes, predicted_tokens=3)
    assert chunked.pass_bytes == activations + 2**28
    score = supervised_step(SHAPE, models, Arithmetic(), **sizes, predicted_tokens=0)
    assert score.pass_bytes == activations


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("budget", "most"), [(2048, None), (40, None), (2048, 3), (5, None)])
def test_the_largest_pass_is_the_one_that_is_made(padded: bool, budget: int, most: int | None) -> None:
    """Against the passes that training makes of the longest groups."""
    groups = [GroupTokens([5] * 3, [[6] * 7] * 4, [True] * 4)] * 6
    layout = LAYOUTS["padded" if padded else "shared"]()
    passes = Passes(layout, 1.0, 0, tokens=budget, groups=most)
    largest = max(sum(layout.length(groups[i]) for i in batch) for batch in passes.micro_batches(groups))
    work = OnlineWork(
        prompts=6, responses=4, minibatch=6, epochs=1, prompt_tokens=3, response_tokens=7,
        pass_tokens=budget, pass_prompts=most, padded=padded,
    )  # fmt: skip
    assert work.largest_pass[0] == largest


def test_an_online_step() -> None:
    models = Footprint(frozen=1, trained=20, gradients=300, moments=4000)
    work = OnlineWork(
        prompts=6, responses=4, minibatch=3, epochs=2, prompt_tokens=3, response_tokens=7, pass_tokens=2048
    )
    step = online_step(SHAPE, models, Arithmetic(), work, has_critic=True)
    # 3 groups of a prompt and 4 · 6 inputs; one prediction for all first tokens.
    assert (step.forward_tokens, step.tokens, step.sampled_tokens) == (3 * 27, 2 * 6 * 4 * 7, 6 * 4 * 7)
    activations = activation_bytes(SHAPE, 81, Arithmetic())
    assert step.pass_bytes == 2 * activations + 3 * 25 * 50 * 4
    # All prompts are sampled at once: with wide keys and values their cache is the larger part.
    wide = ModelShape(**(vars(SHAPE) | {"key_value_width": 400}))
    assert online_step(wide, models, Arithmetic(), work, has_critic=False).pass_bytes == 6 * 4 * 10 * 2 * 2 * 400 * 4
    half = replace(work, sampling_prompts=3)
    assert online_step(wide, models, Arithmetic(), half, has_critic=False).pass_bytes == 3 * 4 * 10 * 2 * 2 * 400 * 4
    # Weights that are cast for a pass are cast once for all tokens, and stay beside the cache as long.
    casting = Arithmetic(bytes=2, casts=True)
    cast = online_step(wide, models, casting, work, has_critic=False)
    assert cast.pass_bytes == 6 * 4 * 10 * 2 * 2 * 400 * 2 + 2 * SHAPE.parameters
    # Sampled ahead, the cache stands beside the pass.
    ahead = replace(work, ahead=True)
    beside = online_step(SHAPE, models, Arithmetic(), ahead, has_critic=True).pass_bytes - step.pass_bytes
    assert beside == 6 * 4 * 10 * 2 * SHAPE.layers * SHAPE.key_value_width * 4
    # More logits than the budget of a buffer are cut into chunks.
    many = ModelShape(**(vars(SHAPE) | {"vocabulary": 10**7}))
    assert online_step(many, models, Arithmetic(), work, has_critic=False).pass_bytes == activations + 2**28
