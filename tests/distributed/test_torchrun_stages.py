"""A whole run under torchrun: fine-tuning, the reward model and its refit are everybody's work, and equal to one process."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.distributed.test_torchrun import assert_alike, p3o, rows_of

CONFIG = """
name: run
device: cpu
threads: 1
embedded: {{demonstrations: 160, pairs: 64, prompts: 24}}
sft: {{steps: 6, batch_size: 12, micro_batch_size: 5, learning_rate: 4.0e-3, evaluate_every: 3}}
reward: {{train: {{steps: 4, batch_size: 9, micro_batch_size: 4, learning_rate: 1.0e-3, evaluate_every: 2}}}}
rl:
  training: {{steps: 3, prompts_per_step: 4, max_new_tokens: 8, learning_rate: 4.0e-4}}
  refit: {{every: 2, pairs: 12}}
  runs:
    p3o_v2: {{algorithm: p3o_v2, refit: true}}
evaluation: {{prompts: 6, every: 3, best_of: [], batch_size: 6}}
checkpoints: {{every: 2, best: true}}
parallel: {{mode: {mode}, timeout_minutes: 2}}
"""
MODELS = ("sft", "best/sft", "reward_model", "best/reward_model", "refits/p3o_v2/1/reward_model", "rl/p3o_v2")


def prepared(folder: Path, mode: str) -> Path:
    """With the configuration in it."""
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG.format(mode=mode))
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    folder = prepared(tmp_path_factory.mktemp("run") / "one", "data")
    done = p3o(folder, "run", 1)
    assert done.returncode == 0, done.stderr
    assert "sft: one process" in done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "said"), [("data", "each with complete models"), ("fsdp", "sharded")])
def test_all_processes_train_in_every_stage_that_trains(tmp_path: Path, one: Path, mode: str, said: str) -> None:
    folder = prepared(tmp_path / mode, mode)
    done = p3o(folder, "run", 2)
    assert done.returncode == 0, done.stderr
    for told in (
        "sft: 2 processes",
        "reward model: layout shared (a prompt and all its responses in one row); 2 processes",
        "rl p3o_v2: layout shared (a prompt and all its responses in one row); 2 processes",
    ):
        assert done.stderr.count(f"{told}, {said}") == 1
    assert_alike(rows_of(folder), rows_of(one), 1e-3)
    for name in MODELS:
        got, right = (load_file(path / "run" / name / "model.safetensors") for path in (folder, one))
        assert got.keys() == right.keys()
        # AdamW's steps are of the size of the learning rate where a gradient is all rounding.
        assert all(bool((got[key] - right[key]).abs().max() < 4e-3) for key in got), name
    assert not (folder / "run/checkpoints/sft").exists()
