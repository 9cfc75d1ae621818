"""A run on one's own files asks nobody for anything: no telemetry, no hub, with nothing set to offline.

The run is a process of its own, because this one is told to be offline, and every connection of it is seen by an audit hook.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.files import write_jsonl

RUN = """
import sys

def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname") or (
        event in ("socket.connect", "socket.sendto") and arguments[0].family.name != "AF_UNIX"
    ):
        print("CONNECTED", event, arguments, file=sys.stderr, flush=True)

sys.addaudithook(watch)
from p3o.cli import main
sys.exit(main(sys.argv[1:]))
"""

CONFIG = """
name: mine
threads: 1
device: cpu
model: model
data: {prompts: prompts.jsonl, demonstrations: demonstrations.jsonl, preferences: pairs.jsonl}
sft: {steps: 1, batch_size: 4}
reward: {train: {steps: 1, batch_size: 4}}
rl:
  training: {steps: 1, prompts_per_step: 4, max_new_tokens: 8, epochs: 1, minibatches: 1}
  runs: {p3o_v1: {algorithm: p3o_v1}}
evaluation: {best_of: []}
"""

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")


def do_a_run(folder: Path, more: str) -> subprocess.CompletedProcess[str]:
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed=0).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = task.demonstrations(40, seed=0, split="train")
    write_jsonl(folder / "prompts.jsonl", [{"prompt": row.prompt} for row in rows])
    write_jsonl(folder / "demonstrations.jsonl", [{"prompt": row.prompt, "completion": row.completion} for row in rows])
    # Which of the two is the better one is chance.
    pairs = [
        {"prompt": row.prompt, "chosen": f"One {i % 7} .", "rejected": f"One {i % 5 + 7} ."}
        for i, row in enumerate(rows)
    ]
    write_jsonl(folder / "pairs.jsonl", pairs)
    (folder / "config.yaml").write_text(CONFIG + more)
    environment = {name: value for name, value in os.environ.items() if name not in OFFLINE}
    return subprocess.run(
        [sys.executable, "-c", RUN, "run", "--config", "config.yaml"],
        cwd=folder,
        env=environment | {"HF_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", "lora: {rank: 2}\n"], ids=["whole", "lora"])
def test_a_run_on_own_files_connects_to_nothing_and_says_what_it_doubts(tmp_path: Path, more: str) -> None:
    done = do_a_run(tmp_path, more)
    assert done.returncode == 0, done.stderr
    assert "CONNECTED" not in done.stderr
    assert (tmp_path / "runs" / "mine" / "rl" / "p3o_v1").is_dir(), "all stages were run"
    assert "models: float32 on cpu" in done.stderr, "the number format that was picked is told"
    warnings = json.loads((tmp_path / "runs" / "mine" / "run.json").read_text())["warnings"]
    assert any("held-out pairs as labelled" in text and "may be chance" in text for text in warnings)
    assert any("the clip range epsilon has no effect" in text for text in warnings)
    for text in warnings:
        assert f"warning: {text}" in done.stderr, "told when it happens, too"


def test_the_watch_sees_a_connection() -> None:
    """The negative control: one datagram to this machine itself."""
    attempt = "import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('127.0.0.1', 9))"
    done = subprocess.run(
        [sys.executable, "-c", RUN.split("from p3o")[0] + attempt],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "CONNECTED socket.connect" in done.stderr
