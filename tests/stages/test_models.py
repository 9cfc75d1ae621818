"""The models of a run: settings that do nothing are told."""

from pathlib import Path

import torch
from tests.models.families import FAMILIES

from p3o.config import RunConfig
from p3o.models.adapters import LoraSettings, add_adapter
from p3o.models.language import load_language_model, load_tokenizer, save_model
from p3o.stages.models import Models

CPU = torch.device("cpu")


def test_a_model_that_is_an_adapter_already_is_told_once(tmp_path: Path) -> None:
    base, adapter = FAMILIES["llama"].write(tmp_path / "base"), str(tmp_path / "adapter")
    policy = add_adapter(load_language_model(base, device=CPU), LoraSettings(rank=2), task="CAUSAL_LM", seed=0)
    save_model(policy, load_tokenizer(base), Path(adapter))
    told: list[str] = []
    config = RunConfig.model_validate({"model": adapter, "lora": {"rank": 8}})
    models = Models(config, CPU, adapter_seed=0, warn=told.append)
    for path in (base, adapter, adapter):
        models.policy(path)
    models.reward(adapter, trained=True)
    models.fixed(adapter)
    assert told == [
        f"model {adapter!r}: it is already an adapter, whose training continues with its own settings: rank 2, not lora.rank 8"
    ]
