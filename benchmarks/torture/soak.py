"""Thousands of RL steps on the smallest model there is: memory flat, files bounded, no step slower than at the start.

    python -m benchmarks.torture.soak --count 5000

A whole ``p3o run`` in a process of its own, with checkpoints, evaluations and replay, watched from outside.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.torture.lives import Life, begin, import_everything
from benchmarks.torture.record import keep
from scipy.stats import theilslopes
from transformers import LlamaConfig, LlamaForCausalLM

from p3o.data.embedded import task
from p3o.data.embedded.language import build_tokenizer
from p3o.files import write_jsonl

CONFIG = """
name: soak
seed: {seed}
threads: 1
device: cpu
model: {folder}/model
data: {{prompts: {folder}/prompts.jsonl}}
reward: {{function: "benchmarks.torture.soak:short"}}
rl:
  training: {{steps: {steps}, prompts_per_step: 2, responses_per_prompt: 2, max_new_tokens: 6, replay_batches: 2,
    learning_rate: 1.0e-4, epochs: 1, minibatches: 1}}
  runs: {{p3o_r: {{algorithm: p3o_r}}}}
evaluation: {{prompts: 4, every: 500, best_of: [], batch_size: 4, followed_prompts: 2}}
checkpoints: {{every: 50, keep: 2}}
"""
WARM_UP = 0.2
"""Share of the run that is left out of the slopes: allocators and caches fill."""


def short(_: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A reward that needs no model."""
    return [-float(len(response)) for response in responses]


@dataclass(frozen=True)
class Glance:
    """What was seen of the process at a moment: seconds, steps done, resident bytes, open files, files and bytes on disk.

    ``bytes_on_disk`` leaves out metrics.jsonl and samples.jsonl, to which every step adds its line.
    """

    seconds: float
    step: int
    resident: int
    descriptors: int
    files: int
    bytes_on_disk: int


def glance(life: Life, folder: Path, started: float) -> Glance:
    """Look at the process and its folder."""
    resident = int(Path(f"/proc/{life.pid}/statm").read_text().split()[1]) * resource.getpagesize()
    metrics = folder / "metrics.jsonl"
    step = 0
    if metrics.exists() and (last := metrics.read_bytes()[-8000:].split(b"\n")[:-1]):
        rows = [json.loads(line) for line in last[1:]]
        step = max((row["step"] for row in rows if row["stage"] == "rl"), default=0)
    sizes = {}
    for path in folder.rglob("*"):
        try:
            sizes[path] = path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # an old checkpoint on its way out
            continue
    fixed = [size for path, size in sizes.items() if path.suffix != ".jsonl"]
    descriptors = len(list(Path(f"/proc/{life.pid}/fd").iterdir()))
    return Glance(time.monotonic() - started, step, resident, descriptors, len(sizes), sum(fixed))


def soak(output: Path, *, steps: int, seed: int, every: float) -> list[Glance]:
    """Run it and look at it every so many seconds."""
    tokenizer = build_tokenizer()
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **shape))
    model.save_pretrained(output / "model")
    tokenizer.save_pretrained(output / "model")
    write_jsonl(output / "prompts.jsonl", [{"prompt": text} for text in task.prompts(64, seed=seed, split="train")])
    (output / "soak.yaml").write_text(CONFIG.format(folder=output, steps=steps, seed=seed), encoding="utf-8")
    started = time.monotonic()
    life = begin(["rl", "--config", str(output / "soak.yaml"), "--output", str(output)], output / "stderr.txt")
    seen: list[Glance] = []
    while life.wait(seconds=every):
        try:
            seen.append(glance(life, output / "soak", started))
        except (FileNotFoundError, ProcessLookupError):
            continue  # before the first file, or after the last
    if life.code != 0:
        raise RuntimeError(f"ended with {life.code}:\n{life.told()}")
    return [one for one in seen if one.step]


def figures(seen: Sequence[Glance], steps: int) -> dict[str, Any]:
    """What the table tells. Slopes are Theil and Sen's, which a few disturbed moments do not move."""
    late = [one for one in seen if WARM_UP * steps <= one.step < steps]
    at = np.array([one.step for one in late], dtype=float)
    resident = np.array([one.resident for one in late]) / 2**20
    slope = theilslopes(resident, at)
    # Quarters and tenths of the steps, not of the time: a machine that others use is slow for minutes and then is not.
    seconds = np.interp(np.linspace(at[0], at[-1], 5), at, [one.seconds for one in late])
    speeds = np.diff(seconds) / (at[-1] - at[0]) * 4 * 1000
    tenths = np.interp(np.linspace(at[0], at[-1], 11), at, resident)
    return {
        "steps": steps,
        "minutes": round(seen[-1].seconds / 60, 1),
        "resident_mib_first_and_last": [round(float(resident[0]), 1), round(float(resident[-1]), 1)],
        # Model cards are written at the end, from the whole of metrics.jsonl.
        "resident_mib_after_the_last_step": round(max(one.resident for one in seen) / 2**20, 1),
        "resident_mib_at_tenths": [round(float(mib), 1) for mib in tenths],
        "resident_mib_per_1000_steps": round(float(slope[0]) * 1000, 3),
        "resident_mib_per_1000_steps_95": [round(float(bound) * 1000, 3) for bound in slope[2:]],
        "milliseconds_a_step_by_quarter": [round(float(speed), 1) for speed in speeds],
        "most_files": max(one.files for one in late),
        "most_open_files": max(one.descriptors for one in late),
        "most_mib_on_disk_beside_jsonl": round(max(one.bytes_on_disk for one in late) / 2**20, 2),
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="RL steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two looks")
    given = parser.parse_args()
    import_everything()
    with tempfile.TemporaryDirectory(prefix="p3o-soak-") as name:
        seen = soak(Path(name), steps=given.count, seed=given.seed, every=given.every)
    keep("soak", given, figures(seen, given.count))


if __name__ == "__main__":
    main()
