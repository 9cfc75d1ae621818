"""What a run's models hold, against the models that its stages load, with the weights that they share."""

from pathlib import Path

import pytest
import torch
from tests.models.families import FAMILIES
from torch import nn
from transformers import AutoConfig

from p3o.config import RunConfig
from p3o.errors import P3OError
from p3o.feedback.reward_model import load_reward_model
from p3o.models.adapters import LoraSettings
from p3o.models.language import frozen_copy, load_tokenizer
from p3o.models.sharing import share_frozen_weights
from p3o.stages.estimates import Arithmetic
from p3o.stages.footprints import Footprint
from p3o.stages.memory import Memory
from p3o.stages.models import Models

CPU = torch.device("cpu")


def weights(*models: nn.Module) -> int:
    """Bytes of distinct weights."""
    distinct = {id(parameter): parameter for model in models for parameter in model.parameters()}
    return sum(parameter.numel() * parameter.element_size() for parameter in distinct.values())


def counted(footprint: Footprint) -> int:
    return footprint.frozen + footprint.trained


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("save", [None, "adapter", "merged"])
def test_all_models_of_rl(tmp_path: Path, save: str | None, dtype: str) -> None:
    """Policy, reference, critic and a reward model of the run's own, saved and loaded as the stages do."""
    path = FAMILIES["llama"].write(tmp_path / "base")
    lora = None if save is None else {"rank": 4, "save": save}
    config = RunConfig.model_validate({"model": path, "lora": lora, "dtype": dtype})
    tokenizer, models = load_tokenizer(path), Models(config, CPU, adapter_seed=0)
    sft, reward = str(tmp_path / "sft"), str(tmp_path / "reward_model")
    torch.manual_seed(0)
    trained = models.policy(path)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)  # so that what is merged differs from its base
    models.save(trained, tokenizer, Path(sft))
    classifier = models.reward(sft, trained=True)
    with torch.no_grad():
        for parameter in classifier.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    models.save(classifier, tokenizer, Path(reward))
    policy, critic, scorer = models.policy(sft), models.critic(reward), models.reward(reward, trained=False)
    if lora is not None:
        share_frozen_weights(critic, policy)
        share_frozen_weights(scorer, policy)
    held = weights(policy, frozen_copy(policy), critic, scorer)
    memory = Memory(config, CPU, AutoConfig.from_pretrained(path))
    assert counted(memory.online("adamw", has_critic=True).rest) == pytest.approx(held, rel=0.02)
    learning = sum(p.numel() * p.element_size() for m in (policy, critic) for p in m.parameters() if p.requires_grad)
    assert memory.online("adamw", has_critic=True).rest.gradients == learning
    whole = save is None
    assert memory.arithmetic == Arithmetic(bytes=4 if dtype == "float32" else 2, casts=whole and dtype != "float32")


def test_a_given_reward_model_has_its_own_size(tmp_path: Path) -> None:
    path, other = FAMILIES["llama"].write(tmp_path / "base"), str(tmp_path / "scorer")
    load_reward_model(FAMILIES["gpt2"].write(tmp_path / "other"), device=CPU).save_pretrained(other)
    base = AutoConfig.from_pretrained(path)
    config = RunConfig.model_validate({"model": path, "reward": {"model": other}})
    alone = RunConfig.model_validate({"model": path, "reward": {"function": "a:b"}})
    difference = counted(Memory(config, CPU, base).online("adamw", has_critic=False).rest) - counted(
        Memory(alone, CPU, base).online("adamw", has_critic=False).rest
    )
    assert difference == weights(Models(config, CPU, adapter_seed=0).reward(other, trained=False))


def test_a_saved_adapter_goes_on_as_an_adapter(tmp_path: Path) -> None:
    path = FAMILIES["llama"].write(tmp_path / "base")
    lora = LoraSettings(rank=4)
    fresh = RunConfig(model=path, lora=lora)
    models = Models(fresh, CPU, adapter_seed=0)
    models.save(models.policy(path), load_tokenizer(path), tmp_path / "adapter")
    later = RunConfig(model=str(tmp_path / "adapter"))
    base = AutoConfig.from_pretrained(path)
    assert Memory(later, CPU, base).trained("language", "adamw") == Memory(fresh, CPU, base).trained(
        "language", "adamw"
    )


def test_a_model_without_a_classifier_is_told(tmp_path: Path) -> None:
    from transformers import CohereConfig

    small = CohereConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    memory = Memory(RunConfig(model=str(tmp_path)), CPU, small)
    assert memory.trained("language", "adamw").frozen == 0
    with pytest.raises(P3OError, match="transformers has no sequence classifier for cohere models"):
        memory.trained("classifier", "adamw")
