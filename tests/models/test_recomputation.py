"""Gradient checkpointing: the same values and gradients, the layers run twice, dropout stays off."""

import copy
from pathlib import Path

import pytest
import torch
from tests.models.families import FAMILIES
from torch import Tensor, nn

from p3o.algorithms import make_algorithm
from p3o.errors import P3OError
from p3o.feedback.reward_model import RewardModel, load_reward_model
from p3o.models.adapters import LoraSettings, add_adapter
from p3o.models.language import frozen_copy, load_language_model, load_tokenizer, response_logprobs
from p3o.models.recomputation import enable_gradient_checkpointing
from p3o.models.tokens import PromptBatch, ResponseBatch, pad_left
from p3o.training.online import OnlineConfig, OnlineTrainer

CPU, F64 = torch.device("cpu"), torch.float64


def batch() -> tuple[PromptBatch, ResponseBatch]:
    tokens = torch.tensor([[[5, 6, 7], [8, 9, 2]]])
    return pad_left([[4, 5, 6]], 0), ResponseBatch(
        tokens, torch.ones(1, 2, 3, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)
    )


def gradients(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Log-probs and the gradient of their sum by everything that learns."""
    model.zero_grad()
    logprobs = response_logprobs(model, *batch(), temperature=1.0)
    logprobs.sum().backward()
    return logprobs.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def calls_of_norms(model: nn.Module) -> list[str]:
    """Filled with a name at every forward pass of a normalisation inside a layer."""
    calls: list[str] = []
    for name, module in model.named_modules():
        if "norm" in type(module).__name__.lower() and (".layers." in name or ".h." in name):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_the_same(tmp_path: Path, family: str, lora: bool) -> None:
    path = FAMILIES[family].write(tmp_path)  # GPT-2 and OPT have dropout of 0.1, which must not act
    plain = load_language_model(path, device=CPU, dtype=F64)
    if lora:
        plain = add_adapter(plain, LoraSettings(rank=2), task="CAUSAL_LM", seed=0)
    recomputing = copy.deepcopy(plain)
    enable_gradient_checkpointing(recomputing)
    assert not any(module.training for module in recomputing.modules())
    once, twice = calls_of_norms(plain), calls_of_norms(recomputing)
    expected, actual = gradients(plain), gradients(recomputing)
    for left, right in zip(expected, actual, strict=True):
        torch.testing.assert_close(right, left, rtol=0, atol=1e-12)
    assert expected[1].abs().max() > 1e-3
    assert sorted(twice) == sorted(once * 2), "every layer ran a second time in the backward pass"
    assert list(recomputing.state_dict()) == list(plain.state_dict())


def test_a_copy_recomputes_its_own_layers(tmp_path: Path) -> None:
    model = load_language_model(FAMILIES["llama"].write(tmp_path), device=CPU, dtype=F64)
    enable_gradient_checkpointing(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    assert (gradients(other)[0] - gradients(model)[0]).abs().max() > 1e-3


def test_a_reward_model_learns_the_same(tmp_path: Path) -> None:
    path = FAMILIES["gpt2"].write(tmp_path)
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        reward = RewardModel(load_reward_model(path, device=CPU, dtype=F64), load_tokenizer(path))
        if recompute:
            enable_gradient_checkpointing(reward.model)
        reward.forward(reward.encode(["a b", "c"], ["d", "e f g"])).sum().backward()
        results.append(torch.cat([p.grad.flatten() for p in reward.model.parameters() if p.grad is not None]))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)


def test_the_first_ratio_is_exactly_one_and_the_step_is_the_same(tmp_path: Path) -> None:
    path = FAMILIES["gpt2"].write(tmp_path)
    moved = []
    for recompute in (False, True):
        policy, tokenizer = load_language_model(path, device=CPU), load_tokenizer(path)
        reference = frozen_copy(policy)
        if recompute:
            enable_gradient_checkpointing(policy)
        config = OnlineConfig(
            steps=1, prompts_per_step=2, max_new_tokens=6, epochs=1, minibatches=1, learning_rate=1e-2
        )
        trainer = OnlineTrainer(
            policy,
            reference,
            tokenizer,
            make_algorithm("p3o_v2"),
            lambda prompts, responses: [float(len(response)) for response in responses],
            ["a b", "c d e"],
            config,
            seed=0,
        )
        metrics = trainer.step()
        assert metrics["ratio_max"] == 1.0
        moved.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    torch.testing.assert_close(moved[1], moved[0], rtol=0, atol=1e-6)


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(
        P3OError,
        match="gradient checkpointing: Linear does not support it; set gradient_checkpointing: false",
    ):
        enable_gradient_checkpointing(nn.Linear(2, 2))
