"""How much of generation goes on behind the learner's back, and whether a step gets faster: one machine, one process.

    python benchmarks/overlap.py [--steps N] [--repeats N] [--json FILE]

A Llama of 3.3 million parameters in float32, 16 prompts with 4 responses of up to 48 tokens, P3O-V2 with two epochs of two
minibatches. Plain loop and loop with rollouts ahead take turns, so that other work on the machine meets both alike; seconds are
medians over all steps but the first two of each training.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from p3o.algorithms import make_algorithm
from p3o.bench.results import commit, machine
from p3o.data.embedded import task
from p3o.data.embedded.language import MAX_POSITIONS, build_tokenizer
from p3o.models.language import frozen_copy
from p3o.training.asynchrony import RolloutsAhead
from p3o.training.online import OnlineConfig, OnlineTrainer

PROMPTS = task.prompts(64, seed=0, split="train")
SETTINGS = [(0, 1), (0, 2), (1, 1), (2, 1), (1, 2)]
"""(max_staleness, threads of torch): with rollouts ahead, learner and producer have that many each."""


def trainer(max_staleness: int, steps: int) -> OnlineTrainer:
    """A fresh model in a trainer; the reward is the length, so that texts stay long."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    policy = LlamaForCausalLM(shape).eval()
    config = OnlineConfig(
        steps=steps,
        prompts_per_step=16,
        responses_per_prompt=4,
        max_new_tokens=48,
        learning_rate=1e-5,
        kl_stop=None,
        max_staleness=max_staleness,
    )
    return OnlineTrainer(
        policy,
        frozen_copy(policy),
        tokenizer,
        make_algorithm("p3o_v2"),
        lambda _, responses: [float(len(response)) for response in responses],
        PROMPTS,
        config,
        seed=0,
    )


def measure(max_staleness: int, threads: int, steps: int) -> tuple[list[float], float]:
    """Seconds of every step but the first two, and the share of sampling that overlapped with training."""
    torch.set_num_threads(threads)
    run, seconds = trainer(max_staleness, steps), []
    for _ in range(steps):
        start = time.perf_counter()
        run.step()
        seconds.append(time.perf_counter() - start)
    share = run.source.overlap.share if isinstance(run.source, RolloutsAhead) else 0.0
    return seconds[2:], share


def main() -> None:
    """Measure, print a row for each setting and write the JSON."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    seconds: dict[tuple[int, int], list[float]] = {setting: [] for setting in SETTINGS}
    shares: dict[tuple[int, int], list[float]] = {setting: [] for setting in SETTINGS}
    for _, setting in itertools.product(range(chosen.repeats), SETTINGS):
        steps, share = measure(*setting, chosen.steps)
        seconds[setting] += steps
        shares[setting].append(share)
    rows = [
        {
            "max_staleness": lag,
            "threads": threads,
            "seconds_per_step": statistics.median(seconds[lag, threads]),
            "quickest_step": min(seconds[lag, threads]),
            "overlap": statistics.mean(shares[lag, threads]),
        }
        for lag, threads in SETTINGS
    ]
    for row in rows:
        print("  ".join(f"{key} {value:.3g}" for key, value in row.items()))
    if chosen.json is not None:
        record = {"command": "python benchmarks/overlap.py", "commit": commit(), "machine": machine(), "rows": rows}
        chosen.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
