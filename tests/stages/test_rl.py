"""What the RL stage says before it starts, and which policy it keeps as the best."""

import json
from pathlib import Path

import pytest
from tests.stages.conftest import small_model

from p3o.algorithms import make_algorithm
from p3o.cli import main
from p3o.files import read_jsonl
from p3o.stages.rl import never_clips
from p3o.training.kl_control import KLController
from p3o.training.online import OnlineConfig


@pytest.mark.parametrize("name", ["p3o_v1", "p3o_v2", "ppo", "rloo", "grpo"])
@pytest.mark.parametrize("more", [{"epochs": 2}, {"minibatches": 2}, {"replay_batches": 1}, {"max_staleness": 1}])
def test_a_clip_that_no_update_can_reach_is_told(name: str, more: dict[str, int]) -> None:
    """One update per batch: the ratio is 1 throughout, whatever the clip range (trl #3120, #3757)."""
    once = {"epochs": 1, "minibatches": 1, "prompts_per_step": 4}
    assert never_clips(make_algorithm(name), OnlineConfig(**once))
    assert not never_clips(make_algorithm(name), OnlineConfig(**(once | more)))


@pytest.mark.parametrize("name", ["ppg", "reinforce", "online_dpo", "rebel", "p3o_r"])
def test_without_a_clip_range_there_is_nothing_to_tell(name: str) -> None:
    assert not never_clips(make_algorithm(name), OnlineConfig(epochs=1, minibatches=1))


def test_settings_left_alone_take_several_updates_per_batch() -> None:
    assert not never_clips(make_algorithm("p3o_v2"), OnlineConfig())


CONFIG = """
name: mine
seed: 1
threads: 1
device: cpu
model: model
data: {prompts: prompts.jsonl}
reward: {function: "counted_letters:count"}
rl:
  training: {steps: 5, prompts_per_step: 8, max_new_tokens: 6, learning_rate: 5.0e-2, kl_stop: null, kl_target: 100.0,
    kl_gain: 4.0}
  runs: {p3o_v2: {algorithm: p3o_v2, settings: {beta: 0.3}}}
evaluation: {prompts: 8, every: 1, best_of: [], batch_size: 8, followed_prompts: 0}
checkpoints: {every: 1, best: true}
"""

REWARD = """
def count(prompts, responses):
    return [float(response.count('e')) for response in responses]
"""


def test_the_best_under_a_kl_target_is_judged_by_the_beta_of_then(here: Path) -> None:
    """β falls here. What was best under the β of the start would be another policy."""
    small_model(here)
    (here / "counted_letters.py").write_text(REWARD)
    (here / "c.yaml").write_text(CONFIG)
    assert main(["rl", "--config", "c.yaml"]) == 0
    rows = read_jsonl(here / "runs/mine/metrics.jsonl")
    seen = {row["step"]: row for row in rows if row["stage"] == "evaluate" and row.get("policy") == "p3o_v2"}
    controller = KLController(0.3, target=100.0, gain=4.0)
    betas = {0: 0.3} | {row["step"]: controller.update(row["kl_k1"]) for row in rows if row["stage"] == "rl"}
    best, naive = seen[0], 0
    for step in range(1, 6):
        worth = {at: seen[at]["reward"] - betas[step] * seen[at]["kl"] for at in (best["step"], step)}
        best = seen[step] if worth[step] > worth[best["step"]] else best
        values = [seen[at]["reward"] - 0.3 * seen[at]["kl"] for at in (naive, step)]
        naive = step if values[1] > values[0] else naive
    kept = json.loads((here / "runs/mine/best/rl/p3o_v2/best.json").read_text())
    assert (kept["step"], kept["reward"], kept["kl"]) == (best["step"], best["reward"], best["kl"])
    assert kept["value"] == pytest.approx(best["reward"] - betas[best["step"]] * best["kl"])
    assert best["step"] != naive, "the test needs a β that decides"
