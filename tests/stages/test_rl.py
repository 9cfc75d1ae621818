"""What the RL stage says before it starts."""

import pytest

from p3o.algorithms import make_algorithm
from p3o.stages.rl import never_clips
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
