"""A run that loses a node of its cluster goes on with fewer workers, and with more when a node is back."""

from pathlib import Path

import pytest
from tests.scale.clusters import MARK, started
from tests.scale.runs import Listener, assert_equal, begun, checkpoint_of, copy, done, metrics, wait_for_checkpoint

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

STEPS = 24
SETTINGS = (
    f"evaluation.every={STEPS}",
    "checkpoints.every=2",
    "rl.training.learning_rate=3e-5",
    "reward.function=held:reward",
)
RUN = ("--algorithm", "p3o_v2", "--steps", str(STEPS), *(part for one in SETTINGS for part in ("--set", one)))
REWARD = '''
"""Of letters; slow enough to be watched, and waiting as long as there is a file "hold"."""

import time
from pathlib import Path


def reward(prompts, responses):
    time.sleep(0.2)
    while Path("hold").exists():
        time.sleep(0.05)
    return [len(set(response)) / 10 - len(response) / 100 for response in responses]
'''


def test_a_run_shrinks_and_grows_with_its_cluster(base: Path, mark: str, tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(REWARD)
    hold = tmp_path / "hold"
    alone, folder = copy(base, "alone"), copy(base, "elastic")
    with started(cpus=1) as cluster:
        node = cluster.join(cpus=1)
        result = done(alone, *RUN, cwd=tmp_path)  # meanwhile the node joins
        assert result.returncode == 0, result.stderr
        options = (*RUN, "--engine", "ray", "--workers", "2", "--ray-address", cluster.address)
        elastic = ("--set", "engine.min_workers=1", "--set", "engine.resize_seconds=2")
        with begun(folder, *options, *elastic, env=cluster.env | {MARK: mark}, cwd=tmp_path) as process:
            listener = Listener(process)
            wait_for_checkpoint(folder, 4, process)
            node.cut()
            listener.wait_for("engine: attempt 2, 1 worker")
            wait_for_checkpoint(folder, checkpoint_of(folder) + 4, process)
            hold.touch()
            shrunk = checkpoint_of(folder)
            cluster.join(cpus=1)
            listener.wait_for("engine: attempt 3, 2 workers")
            hold.unlink()
            told = listener.told()
    assert [line.partition("engine: ")[2] for line in told if "attempt" in line] == [
        "attempt 1, 2 workers",
        "attempt 2, 1 worker",
        "attempt 3, 2 workers",
    ]
    assert any("engine: failure 1 (of 3 allowed)" in line for line in told)
    begins = [int(line.rpartition(" ")[2]) for line in told if "continuing after step" in line]
    assert len(begins) == 2
    assert 4 <= begins[0] < shrunk <= begins[1] < STEPS, "each number of workers had its share of the steps"
    assert sum(row["stage"] == "rl" for row in metrics(folder)) == STEPS
    assert_equal(alone, folder)
