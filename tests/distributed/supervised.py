"""What two ranks do for ``test_supervised.py``, in one go: meeting and importing takes longer than the work."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.distributed.learner import CPU, MODES, language_model, outcome, weights
from tests.models.families import FAMILIES
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from p3o.config import RunConfig
from p3o.distributed import ParallelConfig, world
from p3o.distributed.sharding import is_sharded, shard
from p3o.feedback.reward_model import RewardModel, load_reward_model
from p3o.models.language import load_language_model, save_model
from p3o.models.recomputation import blocks
from p3o.stages.models import Models
from p3o.training.checkpoint import Checkpoints
from p3o.training.loop import Trainer, fit, resume
from p3o.training.reward_model import RewardTrainer, RewardTrainingConfig, ranking_accuracy
from p3o.training.sft import SFTConfig, SFTTrainer, completion_loss

LLAMA, QWEN = FAMILIES["llama"].tokenizer(), FAMILIES["qwen2"].tokenizer()
SETTINGS: dict[str, Any] = {
    "steps": 4,
    "batch_size": 5,
    "micro_batch_size": 2,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup_fraction": 0.0,
}
ROWS = [([3 + i % 4] * (1 + 2 * i % 7), [5 + (3 * i + k) % 12 for k in range(1 + 4 * i % 9)]) for i in range(11)]
"""Of unequal length, so that ranks with equal tokens have unequal numbers of rows."""
PAIRS = [
    ("a b c d e f g h i j", "k", "l m"),
    ("a", "b c", "d"),
    # Without a prompt, and this tokenizer has no first token of its own: such rows have no beginning in common.
    ("", "e f g h", "i"),
    ("j k", "l m n o p a b", "c"),
    ("", "n", "o p"),
    ("d e f", "g", "h i j k l m"),
    ("n", "o p a", "b c d"),
    ("e f g h i", "j k", "l"),
]


def spread(model: nn.Module, mode: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model as the mode has it."""
    if mode == "fsdp":
        shard(model, blocks(model), ParallelConfig(mode="fsdp"), compute=dtype, device=CPU)
    return model


def sft(mode: str, **settings: Any) -> SFTTrainer:
    """A trainer of a small random language model."""
    model = spread(language_model().to(torch.float64), mode)
    return SFTTrainer(model, ROWS, SFTConfig(**(SETTINGS | settings)), fill=0, seed=3)


def classifier() -> nn.Module:
    """One label on two layers."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(QWEN),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=48,
        initializer_range=0.3,
        num_labels=1,
        pad_token_id=QWEN.pad_token_id,
    )
    return LlamaForSequenceClassification(config).to(torch.float64).eval()


def reward(mode: str, **settings: Any) -> RewardTrainer:
    """A trainer of a small random reward model."""
    model = RewardModel(spread(classifier(), mode), QWEN, batch_size=4, layout=settings.pop("layout", "auto"))
    return RewardTrainer(model, PAIRS, RewardTrainingConfig(**(SETTINGS | settings)), seed=3)


LOADED = ("llama", "qwen2", "gpt2")
"""Families: with tied weights and without, with transposed matrices."""

TRAINERS: dict[str, Callable[..., Any]] = {"sft": sft, "reward": reward}


def model_of(trainer: Any) -> nn.Module:
    """What it trains."""
    model: nn.Module = trainer.model if isinstance(trainer, SFTTrainer) else trainer.reward_model.model
    return model


def judged(trainer: Any) -> float:
    """On rows that stand for held-out ones: the loss, or the accuracy."""
    if isinstance(trainer, SFTTrainer):
        return completion_loss(trainer.model, ROWS[2:9], fill=0, batch_size=2, layout=trainer.layout)
    return ranking_accuracy(trainer.reward_model, PAIRS[:7])


def taken(trainer: Any, steps: int = 2) -> dict[str, Any]:
    """The metrics of these steps, what held-out rows say before and after them, and the weights."""
    judgements = [judged(trainer)]
    rows = [dict(trainer.step()) for _ in range(steps)]
    judgements.append(judged(trainer))
    return {"rows": rows, "judged": judgements, "weights": weights(model_of(trainer))}


def saved(trainer: Trainer, folder: Path) -> None:
    """A checkpoint after the steps that are done."""
    Checkpoints(folder).save(trainer.done, {"trainer": trainer.state_dict(), "random": {}, "extra": {}})


def gone_on(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """From the checkpoint in this folder."""
    state = Checkpoints(folder).latest()
    assert state is not None
    trainer.load_state_dict(state["trainer"])
    return taken(trainer, 1)


def run_config(model: str, mode: str, **settings: Any) -> RunConfig:
    """Of a run that trains this model."""
    return RunConfig.model_validate({"model": model, "device": "cpu", "parallel": {"mode": mode}, **settings})


def everything(folder: Path) -> dict[str, Any]:
    """All that two ranks do."""
    found: dict[str, Any] = {}
    for name, make in TRAINERS.items():
        for mode in MODES:
            key, place = f"{name} {mode}", folder / name
            found[key] = taken(make(mode))
            found[f"{key} small"] = taken(make(mode, batch_size=1))
            first = make(mode)
            first.step()
            saved(first, place / mode)
            found[f"{key} saved"] = taken(first, 1)
            found[f"{key} from one"] = gone_on(make(mode), place / "one")
            found |= {f"{key} {fault}": value for fault, value in faults(make, mode, place / f"stopped {mode}").items()}
        found[f"{name} fsdp from data"] = gone_on(make("fsdp"), folder / name / "data")
        found[f"{name} data from fsdp"] = gone_on(make("data"), folder / name / "fsdp")
    found["padded"] = taken(reward("fsdp", layout="padded"))
    found["layouts"] = [str(reward(mode).reward_model) for mode in MODES]
    found["split"] = outcome(lambda: str(reward("fsdp", layout="split").reward_model))
    last = reward("fsdp")
    found["is sharded"] = is_sharded(model_of(last))
    last.step()
    save_model(model_of(last), QWEN, folder / "saved")
    world().barrier()
    found["saved"] = weights(model_of(last))
    found["first alone"] = world().done_by_first(lambda: {"rank": world().rank, "size": world().size})
    return found | loading(folder) | adapters(folder)


def faults(make: Callable[..., Any], mode: str, folder: Path) -> dict[str, Any]:
    """A number that is none on one rank, and a signal to one rank."""
    found: dict[str, Any] = {"nan": outcome(broken(make(mode)).step)}
    skipping = broken(make(mode, on_fault="skip"))
    before = weights(model_of(skipping))
    found["skipped"] = [dict(skipping.step()), weights(model_of(skipping)) == before]

    def one_is_asked(step: int, _metrics: Any) -> None:
        if step == 2 and world().rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    found["stopped"] = outcome(lambda: fit(make(mode), one_is_asked, checkpoints=Checkpoints(folder)))
    again = make(mode)
    resume(again, Checkpoints(folder))
    found["resumed at"] = again.done
    fit(again)
    found["ended"] = weights(model_of(again))
    return found


def broken(trainer: Any) -> Any:
    """The same, and the last rank's model gives numbers that are none."""
    if world().rank == world().size - 1:
        model_of(trainer).get_input_embeddings().register_forward_hook(lambda _module, _ids, states: states * torch.nan)
    return trainer


def loading(folder: Path) -> dict[str, Any]:
    """Models as the stages load them, read into shards; a new head as it is drawn for a whole model."""
    found = {}
    for family in LOADED:
        models = Models(run_config(str(folder / family), "fsdp"), CPU, adapter_seed=0)
        torch.manual_seed(7)
        classifier = models.reward(str(folder / family), trained=True)
        # What was trained is gone on with, head and all.
        save_model(classifier, FAMILIES[family].tokenizer(), folder / f"{family} reward")
        world().barrier()
        again = models.reward(str(folder / f"{family} reward"), trained=True)
        found[family] = {
            "language": weights(models.untrained()),
            "classifier": weights(classifier),
            "again": weights(again),
            "sharded": is_sharded(classifier) and is_sharded(again),
        }
    return found


def loaded(path: str) -> dict[str, Any]:
    """The same in one process."""
    torch.manual_seed(7)
    classifier = weights(load_reward_model(path, device=CPU))
    return {
        "language": weights(load_language_model(path, device=CPU)),
        "classifier": classifier,
        "again": classifier,
        "sharded": True,
    }


def adapted(path: str, mode: str, steps: int = 2) -> dict[str, Any]:
    """Both stages with LoRA, in float32: the metrics, and the weights that learned."""
    found = {}
    for name in TRAINERS:
        models = Models(run_config(path, mode, lora={"rank": 2}), CPU, adapter_seed=3)
        torch.manual_seed(7)
        trainer: Any
        if name == "sft":
            trainer = SFTTrainer(models.untrained(), ROWS, SFTConfig(**SETTINGS), fill=0, seed=3)
        else:
            reward_model = RewardModel(models.reward(path, trained=True), QWEN, batch_size=4)
            trainer = RewardTrainer(reward_model, PAIRS, RewardTrainingConfig(**SETTINGS), seed=3)
        found[name] = taken(trainer, steps)
    return found


def adapters(folder: Path) -> dict[str, Any]:
    """LoRA on two ranks."""
    path = str(folder / "qwen2")
    merged = Models(run_config(path, "fsdp", lora={"rank": 2, "save": "merged"}), CPU, adapter_seed=3)
    return {
        "adapted": {mode: adapted(path, mode) for mode in MODES},
        "merged": [outcome(merged.untrained), outcome(lambda: merged.reward(path, trained=True))],
    }
