"""All that has to be seen on a GPU, in one call: is it right, how fast is each part, what does it take, does it learn.

    python -m benchmarks.gpu --json gpu.json                        # the GPU, all parts
    python -m benchmarks.gpu --json gpu.json --only right layouts   # some of them
    python -m benchmarks.gpu --model DIR                            # a model of yours, such as SmolLM2-135M-Instruct
    python -m benchmarks.gpu --device cpu --quick                   # does the script itself work

The model is a Llama of SmolLM2-135M's shape with random weights (--quick: of 1.4 million parameters), unless a folder is named;
nothing is fetched, and neither vLLM nor TRL is needed. After every part the file is written; a part that fails leaves its error
there and the next one begins. Seconds are medians after a first run that is not counted, memory is the peak of torch's
allocator. Nothing of it has run on a GPU yet.
"""

import argparse
import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import transformers
from benchmarks.gpu_work import BF16, CPU, FULL, QUICK, Bench, sampled
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from p3o.algorithms import make_algorithm
from p3o.bench.speed_work import Phases, end_responses, reward
from p3o.data.embedded import task
from p3o.data.embedded.gold import gold_reward
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.files import read_jsonl
from p3o.functional.logprobs import sequence_logprobs
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy
from p3o.models.layouts import LAYOUTS, Layout
from p3o.models.precision import compute_in
from p3o.models.probe import choose_layout
from p3o.models.recomputation import enable_gradient_checkpointing
from p3o.models.tokens import GroupTokens, encode_prompts, encode_responses, pad_id
from p3o.training.environment import machine, versions
from p3o.training.online import OnlineConfig, OnlineTrainer
from p3o.training.sft import SFTConfig, SFTTrainer

CHAT_PROMPTS = Path(__file__).parent.parent / "examples/smollm2/prompts.jsonl"


def training_pass(bench: Bench, model: nn.Module, layout: Layout, groups: Sequence[GroupTokens]) -> Callable[[], None]:
    """Forward and backward."""

    def one() -> None:
        bench.logprobs(layout, model, groups).sum().backward()
        model.zero_grad()

    return one


def right(bench: Bench) -> dict[str, Any]:
    """The device against the processor: log-probs and gradients of every layout, greedy tokens; and against itself, twice."""
    groups = bench.groups(3, 3, 24, 12)
    found: dict[str, Any] = {}

    def of(layout: Layout, model: nn.Module) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        values = sequence_logprobs(logprobs := bench.logprobs(layout, model, groups), torch.ones_like(logprobs).bool())
        values.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).cpu()
        return logprobs.detach().cpu(), gradient

    exact, slope = of(LAYOUTS["padded"](budget=None), bench.copy(half=False, device=CPU))
    for half in (False, True):
        model = bench.copy(half=half)
        name = "bfloat16" if half else "float32"
        found[f"{name}, chosen"] = str(choose_layout(model, responses=3))
        for layout in (kind(budget=budget) for kind in LAYOUTS.values() for budget in (None, 2**20)):
            values, gradient = of(layout, model)
            again, same = of(layout, model)
            found[f"{name}, {layout.name}, {'whole' if layout.budget is None else 'chunked'}"] = {
                "logprobs_off": float((values - exact).abs().max()),
                "gradient_off": float((gradient - slope).norm() / slope.norm()),
                "repeats_exactly": torch.equal(values, again) and torch.equal(gradient, same),
            }
    greedy = [sampled(bench, bench.copy(half=False, device=place), 4, 12, greedy=True) for place in (CPU, bench.device)]
    found["greedy_tokens_agree"] = float((greedy[0] == greedy[1]).float().mean())
    return found


def products(bench: Bench) -> dict[str, Any]:
    """The rate of large matrix products: what the other figures are to be held against."""
    width, found = (8192 if bench.device.type == "cuda" else 256), {}
    for dtype in (torch.float32, BF16):
        a, b = (torch.randn(width, width, device=bench.device, dtype=dtype) for _ in range(2))
        seconds = bench.timed(lambda a=a, b=b: a @ b)["seconds"]
        found[str(dtype).removeprefix("torch.")] = {"operations_per_second": 2 * width**3 / seconds}
    return found


def layouts(bench: Bench) -> dict[str, Any]:
    """A training pass of every layout: where a row of K responses, whose attention grows with K², stops paying."""
    model, found = bench.copy(half=True), {}
    for shape in bench.size.shapes:
        groups = bench.groups(*shape)
        for kind in LAYOUTS.values():
            row = bench.timed(training_pass(bench, model, kind(), groups))
            found[f"{kind.name} {shape}"] = row | {"positions": sum(map(kind().length, groups))}
    return found


def memory(bench: Bench) -> dict[str, Any]:
    """The first shape with other budgets of logits, with each kernel of attention, with recomputed layers."""
    groups, found, model = bench.groups(*bench.size.shapes[0]), {}, bench.copy(half=True)
    for mib in (64, 256, 1024, 4096):
        layout = LAYOUTS["shared"](budget=mib * 2**20)
        found[f"logits of {mib} MiB"] = bench.timed(training_pass(bench, model, layout, groups))
    for backend in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH):
        for name in ("shared", "padded"):
            with sdpa_kernel(backend):
                try:
                    row = bench.timed(training_pass(bench, model, LAYOUTS[name](), groups))
                except RuntimeError as error:
                    row = {"refused": str(error).splitlines()[0]}
            found[f"{name}, {backend.name.lower()}"] = row
    enable_gradient_checkpointing(model)
    found["recomputed"] = bench.timed(training_pass(bench, model, LAYOUTS["shared"](), groups))
    return found


def sampling(bench: Bench) -> dict[str, Any]:
    """Tokens per second and the milliseconds of a token, by rows, of weights in float32 that are cast once and in bfloat16."""
    found = {}
    for name, model in (("cast", bench.copy(half=True)), ("bfloat16", bench.copy(half=False).to(BF16))):
        for rows in bench.size.rows:
            row = bench.timed(lambda model=model, rows=rows: sampled(bench, model, rows, bench.size.tokens))
            if "seconds" in row:
                row |= {"tokens_per_second": rows * bench.size.tokens / row["seconds"]}
                row |= {"milliseconds_per_token": 1000 * row["seconds"] / bench.size.tokens}
            found[f"{name}, {rows} rows"] = row
    return found


def compiled(bench: Bench) -> dict[str, Any]:
    """The training pass with compiled layers, beside the plain one; the first run compiles."""
    groups, found = bench.groups(*bench.size.shapes[0]), {}
    for name in ("eager", "compiled"):
        model: Any = bench.copy(half=True)
        if name == "compiled":
            for layer in model.model.layers:
                layer.compile(dynamic=True)
        for layout in (LAYOUTS["shared"](), LAYOUTS["padded"]()):
            found[f"{name}, {layout.name}"] = bench.timed(training_pass(bench, model, layout, groups))
    return found


def steps(bench: Bench) -> dict[str, Any]:
    """Whole steps of the trainer, by phase: P3O-V2 and PPO."""
    prompts, responses, prompt, response = bench.size.step
    found = {}
    for name in ("p3o_v2", "ppo"):
        policy, algorithm = bench.copy(half=True), make_algorithm(name)
        reference = frozen_copy(policy)
        end_responses(policy, bench.tokenizer, 0.0)
        body = compute_in(frozen_copy(policy.base_model).requires_grad_(True), BF16)
        critic = Critic(body).eval() if algorithm.needs_critic else None
        texts = bench.tokenizer.batch_decode([group.prompt for group in bench.groups(prompts, 1, prompt, 2)])
        config = OnlineConfig(
            steps=1 + bench.size.repeats, prompts_per_step=prompts, responses_per_prompt=responses, max_new_tokens=response,
            learning_rate=1e-6, kl_stop=None,
        )  # fmt: skip
        run = OnlineTrainer(
            policy,
            reference,
            bench.tokenizer,
            algorithm,
            lambda _, texts: reward(texts),
            texts,
            config,
            seed=0,
            critic=critic,
        )
        phases = Phases()
        phases.wrap(run.rollouts.sampler, "sample", "sampling")
        phases.wrap(run.rollouts, "rated", "reward and reference")
        phases.wrap(run, "accumulate", "training passes")
        phases.wrap(run.optimisation, "update", "optimiser")
        parts: list[Mapping[str, float]] = []

        def one(run: OnlineTrainer = run, phases: Phases = phases, parts: list[Mapping[str, float]] = parts) -> None:
            phases.take()
            run.step()
            parts.append(phases.take())

        row = bench.timed(one)
        later = parts[1:]
        phase_seconds = {phase: median(part.get(phase, 0.0) for part in later) for phase in set().union(*later)}
        found[name] = row | {"phases": phase_seconds, "layout": run.layouts}
    return found


def learning(bench: Bench) -> dict[str, Any]:
    """The embedded task from random weights: fine-tuning, then P3O-V2 on the exact reward; the first losses beside the
    processor's."""
    tokenizer, (updates, rl_steps) = build_tokenizer(), bench.size.updates
    rows = task.demonstrations(3000, seed=0)
    told = encode_prompts(tokenizer, [row.prompt for row in rows])
    encoded = list(zip(told, encode_responses(tokenizer, [row.completion for row in rows]), strict=True))
    found: dict[str, Any] = {}

    def tuned(device: torch.device, dtype: torch.dtype, steps: int) -> tuple[nn.Module, list[float]]:
        model = compute_in(build_model(tokenizer, seed=0).eval().to(device), dtype)
        config = SFTConfig(steps=steps, learning_rate=1e-3, schedule="constant")
        tuning = SFTTrainer(model, encoded, config, fill=pad_id(tokenizer), seed=0)
        return model, [tuning.step()["loss"] for _ in range(steps)]

    found["first losses, processor"] = tuned(CPU, torch.float32, min(3, updates))[1]
    for dtype in (torch.float32, BF16):
        name, start = str(dtype).removeprefix("torch."), perf_counter()
        policy, losses = tuned(bench.device, dtype, updates)
        found[f"first losses, {name}"] = losses[:3]
        found[f"fine-tuning, {name}"] = {"last_loss": losses[-1], "seconds": perf_counter() - start}
        config = OnlineConfig(
            steps=rl_steps, prompts_per_step=16, responses_per_prompt=4, max_new_tokens=40, learning_rate=4e-4,
        )  # fmt: skip
        prompts = task.prompts(400, seed=0, split="train")
        found[f"p3o_v2, {name}"] = rewards(
            OnlineTrainer(
                policy, frozen_copy(policy), tokenizer, make_algorithm("p3o_v2"), gold_reward, prompts, config, seed=0
            )
        )
    return found


def brevity(bench: Bench) -> dict[str, Any]:
    """P3O-V2 on the named model, which shall answer briefly: the reward of a real model rises."""
    if bench.is_random:
        return {"skipped": "no --model"}
    prompts = bench.tokenizer.apply_chat_template(
        [row["prompt"] for row in read_jsonl(CHAT_PROMPTS)], tokenize=False, add_generation_prompt=True
    )
    policy, (_, rl_steps) = bench.copy(half=True), bench.size.updates
    config = OnlineConfig(
        steps=rl_steps, prompts_per_step=32, responses_per_prompt=4, max_new_tokens=64, learning_rate=5e-6
    )

    def brief(_prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [-len(response.split()) / 10 for response in responses]

    return rewards(
        OnlineTrainer(
            policy, frozen_copy(policy), bench.tokenizer, make_algorithm("p3o_v2"), brief, prompts, config, seed=0
        )
    )


def rewards(run: OnlineTrainer) -> dict[str, Any]:
    """All steps of a training, in numbers."""
    start = perf_counter()
    seen = [run.step() for _ in range(run.total)]
    return {
        **{name: [row[name] for row in seen] for name in ("reward", "kl_k1", "length", "updates")},
        "layout": run.layouts,
        "seconds": perf_counter() - start,
    }


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    part.__name__: part for part in (right, products, sampling, layouts, steps, memory, learning, brevity, compiled)
}
"""What matters most first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description="What has to be seen on a GPU, in one call.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    asked = parser.parse_args(arguments)
    device = torch.device(asked.device)
    transformers.utils.logging.disable_progress_bar()
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "machine": machine(),
        "versions": versions() | {"cuda": torch.version.cuda},
        "model": "random weights" if asked.model is None else asked.model.name,
        "quick": asked.quick,
        "parts": {},
    }
    for name in asked.only:
        start = perf_counter()
        try:
            part = PARTS[name](Bench(device, QUICK if asked.quick else FULL, folder=asked.model, quick=asked.quick))
        except Exception as error:  # the other parts are worth having
            traceback.print_exc()
            part = {"error": f"{type(error).__name__}: {error}"}
        results["parts"][name] = part | {"took_seconds": perf_counter() - start}
        print(name, json.dumps(results["parts"][name], indent=1), flush=True)
        if asked.json is not None:
            asked.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return int(any("error" in part for part in results["parts"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
