"""The command under torchrun: the same run as in one process, and a rank that is killed costs nothing but time."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.distributed.ranks import free_port
from tests.models.families import FAMILIES

ROOT = Path(__file__).parents[2]
CONFIG = """
name: run
device: cpu
threads: 1
model: {model}
data: {{prompts: {prompts}, heldout_prompts: {prompts}}}
reward: {{function: tests.distributed.test_torchrun:reward}}
rl:
  training: {{steps: 4, prompts_per_step: 4, max_new_tokens: 8, learning_rate: 1.0e-3, replay_batches: 1}}
  runs:
    p3o_v2: {{algorithm: p3o_v2}}
    ppo: {{algorithm: ppo, training: {{critic_warmup_steps: 1}}}}
evaluation: {{prompts: 6, every: 2, followed_prompts: 2}}
checkpoints: {{every: 1}}
parallel: {{mode: {mode}, timeout_minutes: 2}}
"""
SETTINGS = {
    "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}
PROMPTS = ["a", "b c d e f g h", "i j", "k l m n o", "p", "a b c", "d e f g", "h i"]


def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A reward by the letters. With KILL_AT set, the last rank kills itself at that call, unless it has been started again."""
    global _calls
    _calls += 1
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
    if first and os.environ.get("RANK") == "1" and str(_calls) == os.environ.get("KILL_AT"):
        os.kill(os.getpid(), signal.SIGKILL)
    return [float(sum(ord(letter) * (i + 1) for i, letter in enumerate(text)) % 101) / 50 for text in responses]


_calls = 0


def run(folder: Path, mode: str, ranks: int, **environment: str) -> list[dict[str, Any]]:
    """`p3o rl` on so many ranks; its rows of metrics."""
    write(folder, mode)
    done = p3o(folder, "rl", ranks, **environment)
    assert done.returncode == 0, done.stderr
    assert ("exitcode: -9" in done.stderr) == ("KILL_AT" in environment), "a rank was killed where it was to be"
    return rows_of(folder)


def write(folder: Path, mode: str) -> None:
    """The folder with a configuration and what it names."""
    folder.mkdir()
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    model = FAMILIES["llama"].write(folder)
    (folder / "config.yaml").write_text(CONFIG.format(model=model, prompts=folder / "prompts.jsonl", mode=mode))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The metrics of the run."""
    return [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]


def p3o(folder: Path, command: str, ranks: int, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command on so many ranks, with the folder's config.yaml."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--max-restarts", "1"]
    arguments = [sys.executable, *(torchrun if ranks > 1 else []), "-m", "p3o", command, *more]
    arguments += ["--config", str(folder / "config.yaml"), "--output", str(folder)]
    return subprocess.run(
        arguments, cwd=ROOT, env={**os.environ, **SETTINGS, **environment}, capture_output=True, text=True, timeout=500
    )


def assert_alike(rows: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float) -> None:
    assert [(row["stage"], row.get("step")) for row in rows] == [(row["stage"], row.get("step")) for row in expected]
    for row, right in zip(rows, expected, strict=True):
        assert row.keys() == right.keys()
        for name in row:
            exact = not isinstance(right[name], int | float)
            assert row[name] == (right[name] if exact else pytest.approx(right[name], rel=tolerance, abs=tolerance)), (
                name
            )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["data", "fsdp"])
def test_a_rank_that_is_killed_costs_nothing_but_time(tmp_path: Path, mode: str) -> None:
    one, two = run(tmp_path / "one", mode, 1), run(tmp_path / "two", mode, 2)
    assert_alike(two, one, 1e-3)
    killed = run(tmp_path / "killed", mode, 2, KILL_AT="5")
    assert killed == two, "from the checkpoint on, the same numbers to the last bit"
    for name in ("p3o_v2", "ppo"):
        got, right = (load_file(tmp_path / run_ / "run/rl" / name / "model.safetensors") for run_ in ("killed", "two"))
        assert got.keys() == right.keys()
        assert all(got[key].equal(right[key]) for key in got)
    assert json.loads((tmp_path / "killed/run/run.json").read_text())["status"] == "complete"


@pytest.mark.slow
def test_two_hosts_go_on_when_one_loses_a_rank(tmp_path: Path) -> None:
    """Each host has a torchrun of its own, which counts for itself how often it has started its ranks again."""
    one = run(tmp_path / "one", "data", 1)
    folder = tmp_path / "two"
    write(folder, "data")
    port = str(free_port())
    hosts = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(host)),
                *("--nproc-per-node", "1", "--max-restarts", "1", "--rdzv-backend", "c10d", "--rdzv-id", "two"),
                *("--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-conf", f"is_host={host == 0}"),
                *("--local-addr", "127.0.0.1", "-m", "p3o", "rl"),
                *("--config", str(folder / "config.yaml"), "--output", str(folder)),
            ],
            cwd=ROOT,
            env={**os.environ, **SETTINGS, "KILL_AT": "5"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in range(2)
    ]
    told = [host.communicate(timeout=500)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], told
    assert any("exitcode: -9" in text for text in told), "a rank was killed where it was to be"
    assert_alike(rows_of(folder), one, 1e-3)
