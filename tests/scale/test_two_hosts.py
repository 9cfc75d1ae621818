"""Two virtual hosts with a cable between them, which is cut while they train; the scenarios are in two_hosts.py."""

from pathlib import Path

import pytest
from tests.scale.two_hosts import measure, refusal

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


def test_a_host_that_is_cut_off_and_comes_back_changes_nothing(tmp_path: Path) -> None:
    if reason := refusal():
        pytest.skip(reason)
    # Each scenario is compared with others inside.
    rows = list(measure(tmp_path, cuts=[90.0]))
    assert [row["run"] for row in rows] == [
        "one process",
        "torchrun, two hosts",
        "Ray, two hosts",
        "Ray, two hosts, second cut off for 90 s",
    ]
    undisturbed, cut = (" ".join(row["told"]) for row in rows[2:])
    assert "failure" not in undisturbed
    assert "attempt 2, 2 workers" in cut
    assert "continuing after step" in cut
