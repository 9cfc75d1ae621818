"""What the servers are given is what a checkpoint of the policy would hold."""

import datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.models.families import FAMILIES
from tests.rollouts.conftest import TOKENIZER
from torch import distributed, nn

from p3o.data.embedded.language import build_model
from p3o.models.adapters import LoraSettings, add_adapter, merged
from p3o.models.language import load_language_model
from p3o.rollouts import folders
from p3o.rollouts.weights import Weights


def test_names_and_values_are_those_of_the_saved_model(policy: nn.Module, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path)  # type: ignore[operator]
    saved = load_file(tmp_path / "model.safetensors")
    given = dict(Weights(policy))
    assert set(given) == set(saved)
    for name, tensor in saved.items():
        assert torch.equal(given[name], tensor)
        assert not given[name].requires_grad
    assert [(s.name, s.dtype, s.size) for s in Weights(policy).shapes()] == [
        (name, tensor.dtype, tuple(tensor.shape)) for name, tensor in Weights(policy)
    ]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_adapter_is_merged_weight_by_weight(family: str, tmp_path: Path) -> None:
    model = load_language_model(FAMILIES[family].write(tmp_path), device=torch.device("cpu"))
    names = [name for name, _ in model.named_parameters()]
    adapted = add_adapter(model, LoraSettings(rank=2), task="CAUSAL_LM", seed=0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    whole = dict(merged(adapted).named_parameters())
    given = dict(Weights(adapted))
    assert list(given) == names
    for name, tensor in given.items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-6, atol=1e-6)
    # The policy itself is as before.
    assert any("lora_" in name for name, _ in adapted.named_parameters())


def test_what_comes_is_what_was_announced_where_adapters_are_finer_than_their_base() -> None:
    """On a GPU the base rests in bfloat16 and peft keeps its adapters in float32: the server waits for so many bytes."""
    adapted = add_adapter(build_model(TOKENIZER, seed=0).bfloat16(), LoraSettings(rank=2), task="CAUSAL_LM", seed=0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.ones_like(parameter, dtype=torch.float32)
    weights = Weights(adapted)
    announced = [(shape.name, shape.dtype, shape.size) for shape in weights.shapes()]
    assert [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights] == announced
    assert {dtype for _, dtype, _ in announced} == {torch.bfloat16}


def test_an_adapter_is_merged_before_it_is_rounded() -> None:
    """Half a step of bfloat16 at 1 on the weight, and a quarter from the adapter: rounded one by one they would be 1."""
    adapted = add_adapter(build_model(TOKENIZER, seed=0), LoraSettings(rank=1), task="CAUSAL_LM", seed=0)
    layer = next(module for module in adapted.modules() if hasattr(module, "base_layer"))
    step = torch.finfo(torch.bfloat16).eps
    with torch.no_grad():
        layer.base_layer.weight.fill_(1 + step / 2)
        layer.lora_A["default"].weight.fill_(1.0)
        layer.lora_B["default"].weight.fill_(1.0)
        update = layer.get_delta_weight("default")
        layer.lora_B["default"].weight.fill_(step / 4 / update.max().item())
    found = {name: tensor for name, tensor in Weights(adapted, torch.bfloat16) if tensor.eq(1 + step).all()}
    assert len(found) == 1
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


def test_shards_are_gathered(tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain, sharded = build_model(TOKENIZER, seed=0), build_model(TOKENIZER, seed=0)
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1, timeout=datetime.timedelta(seconds=20)
    )
    try:
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        assert all(hasattr(parameter, "full_tensor") for parameter in sharded.parameters())
        for (name, tensor), (wanted, parameter) in zip(Weights(sharded), plain.named_parameters(), strict=True):
            assert name == wanted
            assert not hasattr(tensor, "full_tensor")
            assert torch.equal(tensor, parameter)
        rounded = Weights(sharded, torch.bfloat16)
        assert {shape.dtype for shape in rounded.shapes()} == {torch.bfloat16}
        for (_, tensor), (_, parameter) in zip(rounded, plain.named_parameters(), strict=True):
            assert not hasattr(tensor, "full_tensor")
            assert torch.equal(tensor, parameter.bfloat16())
        assert all(parameter.dtype == torch.float32 for parameter in sharded.parameters())
    finally:
        distributed.destroy_process_group()


def test_large_models_go_to_several_files(policy: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "SHARD", 20_000)
    folders.write(Weights(policy), tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) > 2
    written = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert set(written) == {name for name, _ in Weights(policy)}
    assert all(torch.equal(tensor, written[name]) for name, tensor in Weights(policy))
