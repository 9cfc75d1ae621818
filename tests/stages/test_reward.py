"""What the stage says of a reward model that has learned nothing."""

import pytest
from scipy.stats import binomtest

from p3o.stages.reward import doubt_about


@pytest.mark.parametrize("pairs", [1, 10, 200])
def test_a_reward_model_at_chance_is_told(pairs: int) -> None:
    """trlx #338. The line is where scipy's interval leaves one half."""
    for right in range(pairs + 1):
        interval = binomtest(right, pairs).proportion_ci(method="wilson")
        assert (doubt_about(right / pairs, pairs) is None) == (interval.low > 0.5), right
    assert "ranks 50% of 200 held-out pairs as labelled (95 % interval 43% to 57%)" in str(doubt_about(0.5, 200))


def test_half_a_win_is_not_rounded_up() -> None:
    """15 of 20 are beyond chance (.531 to .888), 14 are not: a tie beside 14 must not make 15 of them."""
    assert doubt_about(15 / 20, 20) is None
    assert doubt_about(14.5 / 20, 20) is not None
