"""Number formats: what is chosen where, and weights that learn staying in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.families import FAMILIES
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from p3o.errors import P3OError
from p3o.models.adapters import LoraSettings, add_adapter
from p3o.models.language import accepted, frozen_copy, load_language_model, response_logprobs
from p3o.models.precision import Precision, choose_dtype, choose_precision, compute_in
from p3o.models.sampling import sample_responses
from p3o.models.tokens import ResponseBatch, pad_left
from p3o.training.past import past_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16, F32 = torch.bfloat16, torch.float32
PROMPTS = pad_left([[4, 5, 6], [7]], 0)
RESPONSES = ResponseBatch(
    torch.tensor([[[5, 6, 7]], [[8, 9, 2]]]), torch.ones(2, 1, 3, dtype=torch.bool), torch.ones(2, 1, dtype=torch.bool)
)


@pytest.mark.parametrize("supported", [True, False])
def test_auto_is_bfloat16_only_where_the_gpu_has_it(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported)
    assert choose_dtype("auto", CUDA) == (BF16 if supported else F32)
    assert choose_dtype("auto", CPU) == choose_dtype("auto", torch.device("mps")) == F32
    assert choose_dtype("bfloat16", CPU) == BF16


def test_weights_that_learn_stay_in_float32() -> None:
    whole = choose_precision("bfloat16", CPU, trains_all_weights=True)
    assert whole == Precision(weights=F32, compute=BF16)
    assert str(whole) == "float32 weights, bfloat16 arithmetic"
    assert choose_precision("bfloat16", CPU, trains_all_weights=False) == Precision(weights=BF16, compute=BF16)
    assert str(choose_precision("auto", CPU, trains_all_weights=True)) == "float32"
    assert choose_precision("float64", CPU, trains_all_weights=True) == Precision(torch.float64, torch.float64)


def test_bad_choices_are_refused() -> None:
    with pytest.raises(P3OError, match=r"dtype: 'fp8' is not one of auto, float32, float64, bfloat16, float16"):
        choose_dtype("fp8", CPU)
    with pytest.raises(P3OError, match=r"dtype: float16 is for GPUs"):
        choose_dtype("float16", CPU)
    with pytest.raises(P3OError, match=r"dtype: float64 is not available on Apple's GPUs"):
        choose_dtype("float64", torch.device("mps"))
    with pytest.raises(P3OError, match=r"float16 overflows when all weights are trained"):
        choose_precision("float16", CUDA, trains_all_weights=True)


def test_autocast_computes_in_bfloat16_on_float32_weights(tmp_path: Path) -> None:
    model = load_language_model(FAMILIES["llama"].write(tmp_path), device=CPU)
    exact = response_logprobs(model, PROMPTS, RESPONSES, temperature=1.0)
    arguments = {"position_ids": 1, "nothing": 2}
    known = accepted(model, arguments)
    assert compute_in(model, F32) is model
    assert torch.equal(response_logprobs(model, PROMPTS, RESPONSES, temperature=1.0), exact)
    compute_in(model, BF16)
    assert accepted(model, arguments) == known == {"position_ids": 1}
    rounded = response_logprobs(model, PROMPTS, RESPONSES, temperature=1.0)
    assert rounded.dtype == F32
    assert 1e-5 < (rounded - exact).abs().max() < 0.3
    assert torch.equal(response_logprobs(frozen_copy(model), PROMPTS, RESPONSES, temperature=1.0), rounded)
    rounded.sum().backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {F32}


def test_an_adapter_on_a_bfloat16_base_learns_in_float32(tmp_path: Path) -> None:
    model = load_language_model(FAMILIES["llama"].write(tmp_path), device=CPU, dtype=BF16)
    model = add_adapter(model, LoraSettings(rank=2), task="CAUSAL_LM", seed=0)
    response_logprobs(model, PROMPTS, RESPONSES, temperature=1.0).sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad and p.grad is not None} == {F32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {BF16}


class Casts(TorchDispatchMode):
    """Counts how often one of a model's weights is cast to bfloat16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights, self.count = {parameter.data_ptr() for parameter in model.parameters()}, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        casts = function is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == BF16
        self.count += casts and args[0].data_ptr() in self.weights
        return function(*args, **(kwargs or {}))


def responses_of(model: nn.Module, tokens: int) -> ResponseBatch:
    """So many tokens of two responses to each prompt, none of which is the end."""
    return sample_responses(
        model, PROMPTS, responses_per_prompt=2, max_new_tokens=tokens, eos_id=-1, pad_id=0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


def test_sampling_casts_each_weight_once_however_many_tokens(tmp_path: Path) -> None:
    """The policy itself, and its copy that samples ahead, which autocast would otherwise cast anew at every token."""
    policy = compute_in(load_language_model(FAMILIES["llama"].write(tmp_path), device=CPU), BF16)
    casts = []
    for model in (policy, past_of(policy, for_passes=True).source):
        for tokens in (3, 12):
            with Casts(model) as counted:
                responses_of(model, tokens)
            casts.append(counted.count)
    matrices = sum(isinstance(module, nn.Linear) for module in policy.modules())
    assert casts == [matrices] * 4


def test_the_cache_of_half_precision_arithmetic_is_half_and_samples_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = compute_in(load_language_model(FAMILIES["llama"].write(tmp_path), device=CPU), BF16)
    dtypes: list[torch.dtype] = []
    policy.register_forward_hook(
        lambda _module, _arguments, output: dtypes.append(output.past_key_values.layers[0].keys.dtype)
    )
    half = responses_of(policy, 12)
    assert dtypes == [F32] + [BF16] * 11, "transformers' own for the prefill, then ours"
    monkeypatch.setattr("p3o.models.cache.plain_layers", lambda _: False)
    dtypes.clear()
    whole = responses_of(policy, 12)
    assert dtypes == [F32] * 12, "transformers' own"
    assert torch.equal(half.tokens, whole.tokens)
