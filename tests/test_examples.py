"""The examples run, and what they train gets better at what they reward."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from p3o.algorithms import Algorithm, make_algorithm
from p3o.algorithms.base import AlgorithmConfig
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.types import Experience

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained model of the embedded task, as a folder of transformers."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_custom_loop_raises_its_reward(model: str) -> None:
    rewards = [reward for reward, _ in load("custom_loop").train(model, steps=12, learning_rate=5e-3)]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 200, "sampling alone moves these sums by less than 100"


def test_custom_loop_is_the_library_s_first_step(model: str) -> None:
    """Before its first update the loss is that of P3O-V2 at ratio 1: nothing to gain yet, 0."""
    [(_, loss)] = load("custom_loop").train(model, steps=1, updates=1)
    assert loss == 0.0


def test_custom_algorithm_fulfils_the_protocol_and_learns(model: str) -> None:
    module = load("custom_algorithm")
    assert isinstance(module.SignedPairs(AlgorithmConfig()), Algorithm)
    rows = module.train(model, steps=3)
    assert len(rows) == 3
    assert rows[-1]["kl_k1"] != 0.0, "the policy has moved"


def test_custom_algorithm_is_ppg_on_signs() -> None:
    """On-policy, with gaps that are ±1 already, it has the gradient of PPG."""
    torch.manual_seed(1)
    logprobs = (-torch.rand(2, 2, 3, dtype=torch.float64)).requires_grad_()
    gaps = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64).expand(2, 2, 2)
    experience = Experience(
        response_mask=torch.ones(2, 2, 3, dtype=torch.bool),
        behaviour_logprobs=logprobs.detach(),
        reference_logprobs=-torch.rand(2, 2, 3, dtype=torch.float64),
        reward_gaps=gaps,
        rewards=None,
        age=torch.zeros(2, dtype=torch.long),
    )
    own = load("custom_algorithm").SignedPairs(AlgorithmConfig(beta=0.3))
    gradients = [
        torch.autograd.grad(algorithm.loss(logprobs, algorithm.prepare(experience)).loss, logprobs)[0]
        for algorithm in (own, make_algorithm("ppg", beta=0.3))
    ]
    assert torch.allclose(*gradients, rtol=1e-12)
    assert gradients[0].abs().max() > 0.1
