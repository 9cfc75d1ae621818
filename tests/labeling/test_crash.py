"""kill -9 at random moments loses no label that was acknowledged, and doubles none."""

from pathlib import Path

import pytest
from benchmarks.label_torture import torture


@pytest.mark.slow
def test_every_acknowledged_label_is_there_exactly_once(tmp_path: Path) -> None:
    outcome = torture(tmp_path, kills=10, annotators=4, seed=0)
    assert outcome.whole, outcome
    assert outcome.acknowledged >= 20, "the kills fell among labels"
    assert outcome.retries > 0
