"""Every stage on every family, whole models and adapters, from folder to folder; and what is written loads elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel
from tests.models.families import FAMILIES
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from p3o.algorithms import make_algorithm
from p3o.feedback.reward_model import RewardModel, load_reward_model
from p3o.models.adapters import LoraSettings, add_adapter, has_adapter, merged
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy, load_language_model, load_tokenizer, response_logits, save_model
from p3o.models.tokens import PromptBatch, ResponseBatch, encode_prompts, encode_responses, pad_id, pad_left
from p3o.training.loop import fit
from p3o.training.online import OnlineConfig, OnlineTrainer
from p3o.training.reward_model import RewardTrainer, RewardTrainingConfig
from p3o.training.sft import SFTConfig, SFTTrainer

# peft 0.21 asks transformers by an old name where we call it directly.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CPU = torch.device("cpu")
LORA = LoraSettings(rank=2, alpha=4)
PROMPTS = ["a b c", "d", "e f g h", "i j"]
ANSWERS = ["k l", "m n o", "p", "a a b"]
OTHERS = ["p p p p", "a", "b c d", "o"]
RATES: dict[str, Any] = {"learning_rate": 1e-2, "schedule": "constant", "warmup_fraction": 0.0}


def batch(folder: str) -> tuple[PromptBatch, ResponseBatch]:
    """Two prompts of unequal length with two responses each."""
    tokenizer = load_tokenizer(folder)
    prompts = pad_left(encode_prompts(tokenizer, ["a b c", "d"]), pad_id(tokenizer))
    ids = encode_responses(tokenizer, ["e f", "g", "h i j k", "l"])
    tokens, mask = torch.full((4, 5), pad_id(tokenizer)), torch.zeros(4, 5, dtype=torch.bool)
    for i, row in enumerate(ids):
        tokens[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
    return prompts, ResponseBatch(tokens.view(2, 2, 5), mask.view(2, 2, 5), torch.ones(2, 2, dtype=torch.bool))


@torch.no_grad()
def logits(model: nn.Module, folder: str) -> Tensor:
    prompts, responses = batch(folder)
    return response_logits(model, prompts, responses)[responses.mask]


@torch.no_grad()
def plain_logits(model: Any) -> Tensor:
    """By nothing of ours: the forward pass of transformers or peft on one row."""
    return model.eval()(input_ids=torch.tensor([[3, 4, 5, 6, 7]])).logits


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters() if parameter.requires_grad])


def fine_tuned(path: str, folder: Path, lora: bool) -> str:
    """Two steps of SFT; the folder of the result."""
    model, tokenizer = load_language_model(path, device=CPU), load_tokenizer(path)
    if lora:
        model = add_adapter(model, LORA, task="CAUSAL_LM", seed=1)
    before = weights(model)
    rows = list(zip(encode_prompts(tokenizer, PROMPTS), encode_responses(tokenizer, ANSWERS), strict=True))
    fit(SFTTrainer(model, rows, SFTConfig(steps=2, batch_size=4, **RATES), fill=pad_id(tokenizer), seed=0))
    assert not torch.equal(before, weights(model))
    save_model(model, tokenizer, folder)
    assert torch.equal(logits(load_language_model(str(folder), device=CPU), path), logits(model, path))
    return str(folder)


def rewarded(path: str, folder: Path, lora: bool) -> str:
    """Two steps of reward-model training on the SFT model's folder; the folder of the result."""
    model, tokenizer = load_reward_model(path, device=CPU), load_tokenizer(path)
    if lora:
        model = add_adapter(model, LORA, task="SEQ_CLS", seed=2)
    assert has_adapter(model) == lora
    reward = RewardModel(model, tokenizer)
    head = [name for name, parameter in model.named_parameters() if "score" in name and parameter.requires_grad]
    assert len(head) == 1, "the head learns"
    pairs = list(zip(PROMPTS, ANSWERS, OTHERS, strict=True))
    fit(RewardTrainer(reward, pairs, RewardTrainingConfig(steps=2, batch_size=4, **RATES), seed=0))
    save_model(model, tokenizer, folder)
    again = RewardModel(load_reward_model(str(folder), device=CPU), load_tokenizer(str(folder)))
    assert again(PROMPTS, ANSWERS) == reward(PROMPTS, ANSWERS)
    auto = AutoPeftModelForSequenceClassification if lora else AutoModelForSequenceClassification
    elsewhere = auto.from_pretrained(str(folder), num_labels=1)
    elsewhere.config.pad_token_id = pad_id(tokenizer)
    assert RewardModel(elsewhere.eval(), tokenizer)(PROMPTS, ANSWERS) == reward(PROMPTS, ANSWERS)
    return str(folder)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_stage_from_folder_to_folder(tmp_path: Path, family: str, lora: bool) -> None:
    base = FAMILIES[family].write(tmp_path / "base")
    sft = fine_tuned(base, tmp_path / "sft", lora)
    reward_folder = rewarded(sft, tmp_path / "reward", lora)
    scorer = RewardModel(load_reward_model(reward_folder, device=CPU), load_tokenizer(reward_folder))
    for name in ("p3o_v2", "ppo"):
        policy, tokenizer = load_language_model(sft, device=CPU), load_tokenizer(sft)
        algorithm = make_algorithm(name)
        critic = Critic.from_pretrained(reward_folder, device=CPU) if algorithm.needs_critic else None
        config = OnlineConfig(steps=2, prompts_per_step=4, max_new_tokens=5, kl_stop=None, **RATES)
        trainer = OnlineTrainer(
            policy, frozen_copy(policy), tokenizer, algorithm, scorer, PROMPTS, config, seed=0, critic=critic
        )
        before = weights(policy)
        first = trainer.step()
        assert first["kl_k1"] == 0.0, "the reference is the policy as it was handed over"
        assert trainer.step()["kl_k1"] != 0.0
        assert not torch.equal(before, weights(policy))
        target = tmp_path / name
        save_model(policy, tokenizer, target)
        assert torch.equal(logits(load_language_model(str(target), device=CPU), sft), logits(policy, sft))
        expected = plain_logits(policy)
        if lora:
            assert not list(target.glob("model*.safetensors")), "the adapter alone"
            assert torch.equal(plain_logits(AutoPeftModelForCausalLM.from_pretrained(target)), expected)
            on_base = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(target))
            assert torch.equal(plain_logits(on_base), expected)
            save_model(policy, tokenizer, tmp_path / f"{name}_merged", merge=True)
            whole = AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}_merged")
            assert isinstance(whole, PreTrainedModel)
            torch.testing.assert_close(plain_logits(whole), expected, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(plain_logits(AutoModelForCausalLM.from_pretrained(target)), expected)
            assert not list(target.glob("*.bin")), "no pickle"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_is_the_adapted_one(tmp_path: Path, family: str) -> None:
    path = FAMILIES[family].write(tmp_path / "base")
    model = add_adapter(load_language_model(path, device=CPU, dtype=torch.float64), LORA, task="CAUSAL_LM", seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    before = logits(model, path)
    whole = merged(model)
    assert all(parameter.requires_grad for parameter in whole.parameters())
    torch.testing.assert_close(logits(whole, path), before, rtol=0, atol=1e-11)
    assert torch.equal(logits(model, path), before), "the adapted model is left as it was"
