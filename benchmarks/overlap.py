"""How much of generation goes on behind the learner's back, and whether a step gets faster: one machine, one learner's process.

    python benchmarks/overlap.py [--steps N] [--repeats N] [--json FILE]
    python benchmarks/overlap.py --server http://127.0.0.1:8000 --model models/smollm2 [--prompts N] [--tokens N] [--lag D]

The learner itself samples: a Llama of 3.3 million parameters in float32, 16 prompts with 4 responses of up to 48 tokens, P3O-V2
with two epochs of two minibatches. Or a vLLM server does, started as docs/scale_vllm.md says (``p3o_gloo``): the model of the
folder, chat prompts (4 a step, with 4 responses of up to 32 tokens, unless told otherwise), one epoch of two minibatches, the
weights pushed after every step.

Plain loop and loop with rollouts ahead take turns, so that other work on the machine meets both alike; seconds are medians over
all steps but the first two of each training.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from p3o.algorithms import make_algorithm
from p3o.bench.results import commit, machine
from p3o.data.embedded import task
from p3o.data.embedded.language import MAX_POSITIONS, build_tokenizer
from p3o.models.language import frozen_copy, load_language_model, load_tokenizer
from p3o.models.tokens import encode_prompts, end_id, pad_id
from p3o.rollouts.config import RolloutConfig
from p3o.rollouts.probe import probe_text
from p3o.rollouts.sampler import VLLMSampler
from p3o.rollouts.server import SamplingSettings
from p3o.training.asynchrony import RolloutsAhead
from p3o.training.online import OnlineConfig, OnlineTrainer

ALONE = [(0, 1), (0, 2), (1, 1), (2, 1), (1, 2)]
"""(max_staleness, threads of torch): with rollouts ahead, learner and producer have that many each."""
SERVED = [(0, 1), (1, 1), (2, 1)]
SEED = 0
THINGS = ["a fox", "the sea", "an old house", "a long train", "winter", "bread", "a bridge", "the night sky"]


@dataclass
class Measured:
    """What was seen with one setting, over all repeats."""

    seconds: list[float] = field(default_factory=list)
    """Of every step but the first two."""
    shares: list[float] = field(default_factory=list)
    """Of the sampling that overlapped with training."""
    pushes: list[int] = field(default_factory=list)
    told: dict[str, list[float]] = field(default_factory=dict)
    """What the sampler tells of each step."""


def long_texts(_prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A reward that keeps texts long."""
    return [float(len(response)) for response in responses]


def trainer(
    policy: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    config: OnlineConfig,
    **sampler: VLLMSampler,
) -> OnlineTrainer:
    """P3O-V2."""
    algorithm, reference = make_algorithm("p3o_v2"), frozen_copy(policy)
    return OnlineTrainer(policy, reference, tokenizer, algorithm, long_texts, prompts, config, seed=SEED, **sampler)


def alone(max_staleness: int, steps: int) -> OnlineTrainer:
    """A fresh small model that samples in the learner's process."""
    tokenizer = build_tokenizer()
    torch.manual_seed(SEED)
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
    config = OnlineConfig(
        steps=steps,
        prompts_per_step=16,
        responses_per_prompt=4,
        max_new_tokens=48,
        learning_rate=1e-5,
        kl_stop=None,
        max_staleness=max_staleness,
    )
    prompts = task.prompts(64, seed=0, split="train")
    return trainer(LlamaForCausalLM(shape).eval(), tokenizer, prompts, config)


def served(chosen: argparse.Namespace, max_staleness: int, steps: int) -> OnlineTrainer:
    """The model of a folder, whose responses the server writes."""
    tokenizer = load_tokenizer(chosen.model)
    policy = load_language_model(chosen.model, device=torch.device("cpu"))
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"Write two sentences about {thing}."}],
            add_generation_prompt=True,
            tokenize=False,
        )
        for thing in THINGS
    ]
    config = OnlineConfig(
        steps=steps,
        prompts_per_step=chosen.prompts,
        responses_per_prompt=chosen.responses,
        epochs=1,
        max_new_tokens=chosen.tokens,
        learning_rate=1e-6,
        kl_stop=None,
        max_staleness=max_staleness,
    )
    sampler = VLLMSampler(
        RolloutConfig(engine="vllm", urls=(chosen.server,)),
        SamplingSettings(chosen.responses, chosen.tokens, config.temperature, end_id(tokenizer)),
        fill=pad_id(tokenizer),
        probe=probe_text(encode_prompts(tokenizer, prompts)),
        folder=Path(tempfile.gettempdir()),  # for weights that go by files; these do not
        seed=SEED,
        warn=print,
        overlapped=max_staleness > 0,
    )
    return trainer(policy, tokenizer, prompts, config, sampler=sampler)


def measure(run: OnlineTrainer, steps: int, found: Measured) -> None:
    """Train, and add what was seen."""
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        metrics = run.step()
        seconds.append(time.perf_counter() - start)
        for name in ("push_seconds", "rollout_seconds", "mismatch_max", "staleness"):
            if name in metrics:
                found.told.setdefault(name, []).append(metrics[name])
    found.seconds += seconds[2:]
    found.shares.append(run.source.overlap.share if isinstance(run.source, RolloutsAhead) else 0.0)
    sampler = run.rollouts.sampler
    if isinstance(sampler, VLLMSampler):
        found.pushes.append(sampler.updates)
        sampler.close()


def row(setting: tuple[int, int], found: Measured) -> dict[str, float]:
    """A setting's figures."""
    told = {name: statistics.median(values) for name, values in found.told.items() if name.endswith("seconds")}
    told |= {name: max(values) for name, values in found.told.items() if not name.endswith("seconds")}
    return {
        "max_staleness": setting[0],
        "threads": setting[1],
        "seconds_per_step": statistics.median(found.seconds),
        "quickest_step": min(found.seconds),
        "overlap": statistics.mean(found.shares),
        **({"pushes": statistics.mean(found.pushes)} if found.pushes else {}),
        **told,
    }


def main() -> None:
    """Measure, print a row for each setting and write the JSON."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--server", metavar="URL", help="of a vLLM server; none: the learner samples itself")
    options.add_argument("--model", metavar="FOLDER", help="of the policy, with --server")
    options.add_argument("--prompts", type=int, default=4, help="a step, with --server")
    options.add_argument("--responses", type=int, default=4, help="to each, with --server")
    options.add_argument("--tokens", type=int, default=32, help="of a response at most, with --server")
    options.add_argument("--lag", type=int, action="append", help="only this max_staleness; may be repeated")
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    if (chosen.server is None) != (chosen.model is None):
        options.error("--server and --model belong together")
    if chosen.steps < 3:
        options.error("--steps: the first two are not counted")
    make: Callable[[int, int], OnlineTrainer] = alone
    settings = ALONE
    if chosen.server is not None:
        make, settings = (lambda lag, steps: served(chosen, lag, steps)), SERVED
    settings = [setting for setting in settings if chosen.lag is None or setting[0] in chosen.lag]
    found = {setting: Measured() for setting in settings}
    for _, (lag, threads) in itertools.product(range(chosen.repeats), settings):
        torch.set_num_threads(threads)
        measure(make(lag, chosen.steps), chosen.steps, found[lag, threads])
    rows = [row(setting, found[setting]) for setting in settings]
    for figures in rows:
        print("  ".join(f"{key} {value:.3g}" for key, value in figures.items()))
    if chosen.json is not None:
        command = " ".join(["python", "benchmarks/overlap.py", *sys.argv[1:]])
        record = {"command": command, "seed": SEED, "commit": commit(), "machine": machine(), "rows": rows}
        chosen.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
