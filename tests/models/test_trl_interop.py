"""What TRL trains loads here and what is trained here loads in TRL, with equal logits and scores: whole models and adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from tests.models.families import FAMILIES
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from p3o.feedback.reward_model import RewardModel, load_reward_model
from p3o.models.adapters import LoraSettings, add_adapter, has_adapter
from p3o.models.language import load_language_model, load_tokenizer, save_model
from p3o.models.tokens import encode_prompts, encode_responses, pad_id
from p3o.training import reward_model as our_reward
from p3o.training import sft as our_sft
from p3o.training.loop import fit

# What TRL and its dependencies warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")
ROWS = [("a b c", " d e", " f g h"), ("d e", " a a a b", " c"), ("f", " g", " h i j a b"), ("k l m", " n", " o p")]
SETTINGS: dict[str, Any] = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": False,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
}
IDS = torch.tensor([[3, 4, 5, 6, 7, 8]])
CASES = pytest.mark.parametrize(("family", "lora"), [("llama", True), ("gpt2", False), ("gpt_neox", True)])


def their_lora(lora: bool, task: str) -> LoraConfig | None:
    return LoraConfig(r=2, task_type=task, target_modules="all-linear") if lora else None


def their_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@CASES
def test_a_policy_that_trl_trained_loads_here(tmp_path: Path, family: str, lora: bool) -> None:
    base = FAMILIES[family].write(tmp_path / "base")
    trainer = SFTTrainer(
        model=base,
        args=SFTConfig(output_dir=str(tmp_path / "trl"), model_init_kwargs={"dtype": "float32"}, **SETTINGS),
        train_dataset=Dataset.from_list([{"prompt": x, "completion": y} for x, y, _ in ROWS]),
        peft_config=their_lora(lora, "CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()
    ours = load_language_model(str(tmp_path / "trl"), device=CPU)
    assert has_adapter(ours) == lora
    assert torch.equal(their_logits(ours), their_logits(trainer.model))
    assert not torch.equal(their_logits(ours), their_logits(AutoModelForCausalLM.from_pretrained(base)))
    tokenizer = load_tokenizer(str(tmp_path / "trl"))
    assert tokenizer("a b")["input_ids"] == trainer.processing_class("a b")["input_ids"]


def preferences() -> Dataset:
    return Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in ROWS])


def scores_in_trl(trainer: RewardTrainer) -> tuple[list[list[int]], torch.Tensor]:
    """TRL's own batch of its training rows, as ids without padding, and its model's scores of them."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(ROWS))])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        scores = trainer.model.eval()(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)], scores


@CASES
def test_a_reward_model_that_trl_trained_loads_here_and_reads_the_same(tmp_path: Path, family: str, lora: bool) -> None:
    """Equal scores on the rows that TRL trained on, in TRL's own batch: the ids, and where the score is read, agree."""
    base = FAMILIES[family].write(tmp_path / "base")
    trainer = RewardTrainer(
        model=base,
        args=RewardConfig(output_dir=str(tmp_path / "trl"), model_init_kwargs={"dtype": "float32"}, **SETTINGS),
        train_dataset=preferences(),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=their_lora(lora, "SEQ_CLS"),
    )
    trainer.train()
    trainer.save_model()
    model = load_reward_model(str(tmp_path / "trl"), device=CPU)
    assert has_adapter(model) == lora
    ours = RewardModel(model, load_tokenizer(str(tmp_path / "trl")))
    for column, index in (("chosen_ids", 1), ("rejected_ids", 2)):
        rows = ours.encode([row[0] for row in ROWS], [row[index] for row in ROWS])
        theirs = trainer.train_dataset[column]
        assert sorted(rows) == sorted(theirs)
    rows, expected = scores_in_trl(trainer)
    torch.testing.assert_close(ours.forward(rows), expected, rtol=0, atol=1e-6)


@CASES
def test_a_policy_trained_here_loads_in_trl(tmp_path: Path, family: str, lora: bool) -> None:
    base = FAMILIES[family].write(tmp_path / "base")
    model, tokenizer = load_language_model(base, device=CPU), load_tokenizer(base)
    if lora:
        model = add_adapter(model, LoraSettings(rank=2), task="CAUSAL_LM", seed=0)
    prompts = encode_prompts(tokenizer, [row[0] for row in ROWS])
    rows = list(zip(prompts, encode_responses(tokenizer, [row[1] for row in ROWS]), strict=True))
    config = our_sft.SFTConfig(steps=1, batch_size=4, learning_rate=0.05, schedule="constant", warmup_fraction=0)
    fit(our_sft.SFTTrainer(model, rows, config, fill=pad_id(tokenizer), seed=0))
    save_model(model, tokenizer, tmp_path / "ours")
    folder = str(tmp_path / "ours")
    trainer = SFTTrainer(
        # TRL takes an adapter as a model of peft, not by the name of its folder.
        model=AutoPeftModelForCausalLM.from_pretrained(folder, is_trainable=True) if lora else folder,
        args=SFTConfig(output_dir=str(tmp_path / "trl"), **SETTINGS),
        train_dataset=Dataset.from_list([{"prompt": x, "completion": y} for x, y, _ in ROWS]),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    assert torch.equal(their_logits(trainer.model), their_logits(model))


@CASES
def test_a_reward_model_trained_here_loads_in_trl(tmp_path: Path, family: str, lora: bool) -> None:
    base = FAMILIES[family].write(tmp_path / "base")
    reward = RewardModel(load_reward_model(base, device=CPU), load_tokenizer(base))
    if lora:
        reward.model = add_adapter(reward.model, LoraSettings(rank=2), task="SEQ_CLS", seed=0)
    config = our_reward.RewardTrainingConfig(
        steps=1, batch_size=4, learning_rate=0.05, schedule="constant", warmup_fraction=0
    )
    fit(our_reward.RewardTrainer(reward, ROWS, config, seed=0))
    save_model(reward.model, reward.tokenizer, tmp_path / "ours")
    trainer = RewardTrainer(
        model=str(tmp_path / "ours"),
        args=RewardConfig(output_dir=str(tmp_path / "trl"), model_init_kwargs={"dtype": "float32"}, **SETTINGS),
        train_dataset=preferences(),
        processing_class=AutoTokenizer.from_pretrained(tmp_path / "ours"),
    )
    rows, theirs = scores_in_trl(trainer)
    torch.testing.assert_close(reward.forward(rows), theirs, rtol=0, atol=1e-6)
