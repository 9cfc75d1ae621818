"""What two ranks with vLLM servers do for ``test_ranks.py``, in one go: meeting and importing takes longer than the work."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tests.distributed.learner import (
    CPU,
    MODES,
    PROMPTS,
    TOKENIZER,
    gone_on,
    language_model,
    outcome,
    saved,
    taken,
    varied,
    weights,
)
from torch import nn

from p3o.algorithms import make_algorithm
from p3o.cli import main
from p3o.distributed import ParallelConfig, world
from p3o.distributed.sharding import shard
from p3o.errors import P3OError
from p3o.evaluation.policy import Evaluator
from p3o.models.adapters import LoraSettings, add_adapter
from p3o.models.language import frozen_copy
from p3o.models.recomputation import blocks
from p3o.models.tokens import encode_prompts, end_id, pad_id
from p3o.rollouts import folders
from p3o.rollouts.config import RolloutConfig
from p3o.rollouts.probe import probe_text
from p3o.rollouts.sampler import VLLMSampler
from p3o.rollouts.server import SamplingSettings
from p3o.stages.rollout import writer_of
from p3o.training.online import OnlineConfig, OnlineTrainer

SETTINGS = {
    "steps": 2,
    "prompts_per_step": 5,
    "max_new_tokens": 8,
    "learning_rate": 1e-2,
    "schedule": "constant",
    "warmup_fraction": 0.0,
    "micro_batch_prompts": 1,
    "kl_stop": 0.5,
}
"""Five prompts in two minibatches, one group a pass: ranks differ in passes."""

Runs = Callable[..., OnlineTrainer]


@contextmanager
def served(urls: Sequence[str], folder: Path, mode: str = "one") -> Iterator[Runs]:
    """Makes trainers of a small random model in float64 whose responses are written by these servers; by itself with none."""
    made: list[VLLMSampler] = []

    def make(*, lora: bool = False, weights: str = "gloo", patience: float = 20.0, **training: Any) -> OnlineTrainer:
        policy: nn.Module = language_model().double()
        if lora:
            policy = add_adapter(policy, LoraSettings(rank=2), task="CAUSAL_LM", seed=0)
        reference = frozen_copy(policy)
        if mode == "fsdp":
            for model in (policy, reference):
                shard(model, blocks(model), ParallelConfig(mode="fsdp"), compute=torch.float64, device=CPU)
        config = OnlineConfig(**(SETTINGS | training))
        if urls:
            made.append(
                VLLMSampler(
                    RolloutConfig(
                        engine="vllm",
                        urls=tuple(urls),
                        weights=weights,
                        timeout=60,
                        check_every=0.05,
                        patience=patience,
                    ),
                    SamplingSettings(2, config.max_new_tokens, 1.0, end_id(TOKENIZER)),
                    fill=pad_id(TOKENIZER),
                    probe=probe_text(encode_prompts(TOKENIZER, PROMPTS)),
                    folder=folder / "weights",
                    seed=3,
                    warn=lambda _: None,
                )
            )
        return OnlineTrainer(
            policy,
            reference,
            TOKENIZER,
            make_algorithm("p3o_v2"),
            varied,
            PROMPTS,
            config,
            seed=5,
            sampler=made[-1] if urls else None,
        )

    try:
        yield make
    finally:
        for sampler in made:
            sampler.close()


def evaluated(run: OnlineTrainer, steps: int) -> dict[str, Any]:
    """``taken`` with an evaluation before, between and after the steps."""
    judge = Evaluator(
        TOKENIZER,
        run.rollouts.reference,
        PROMPTS,
        varied,
        gold=None,
        max_new_tokens=8,
        temperature=0.9,
        missing_eos_penalty=0.5,
        batch_size=4,
        seed=7,
        write=writer_of(run),
    )
    seen, rows = [vars(judge.sampled(run.policy))], []
    for _ in range(steps):
        rows.append(dict(run.step()))
        seen.append(vars(judge.sampled(run.policy)))
    return {"rows": rows, "weights": weights(run.policy), "evaluated": seen}


def briefly(folder: Path, steady: list[str], dead: list[str]) -> dict[str, Any]:
    """What must work every day: servers that stay, and none at all."""
    found: dict[str, Any] = {}
    for mode in MODES:
        with served(steady, folder, mode) as runs:
            found[f"{mode} gloo"] = taken(runs(), 2)
            found[f"{mode} ahead 1"] = taken(runs(max_staleness=1, steps=4), 4)
            found[f"{mode} gloo evaluated"] = evaluated(runs(), 2)
            found[f"{mode} ahead 1 evaluated"] = evaluated(runs(max_staleness=1, steps=4), 4)
    with served(dead, folder, "fsdp") as runs:
        found["no server"] = outcome(runs(patience=0.0).step)
        found["no server ahead"] = outcome(runs(patience=0.0, max_staleness=1).step)
    world().barrier()
    return found


def everything(
    folder: Path, steady: list[str], base: list[str], mortal: list[str], again: list[str], dead: list[str], config: str
) -> dict[str, Any]:
    """All else that two ranks do.

    Args:
        folder: for files.
        steady: servers that stay.
        base: one with the weights that the policy starts with, for adapters.
        mortal: one that is killed when it has been asked for a few groups, and comes back.
        again: another one.
        dead: none there.
        config: of a run by the command line.
    """
    found: dict[str, Any] = {}
    for mode in MODES:
        with served(steady, folder, mode) as runs:
            first = runs()
            first.step()
            saved(first, folder / mode)
            found[f"{mode} saved"] = taken(first, 1)
            found[f"{mode} from one"] = gone_on(runs(), folder / "one")
            found[f"{mode} ahead 2"] = taken(runs(max_staleness=2, steps=4), 4)
            found[f"{mode} arrival"] = taken(runs(max_staleness=1, steps=3, stale_ratio="arrival"), 3)
            early = runs(max_staleness=1, steps=3)
            early.step()
            saved(early, folder / f"{mode} ahead")
            found[f"{mode} ahead saved"] = taken(early, 2)
            found[f"{mode} ahead from one"] = gone_on(runs(max_staleness=1, steps=3), folder / "one ahead", 2)
            found[f"{mode} merged"] = taken(runs(lora=True), 2)
            found[f"{mode} disk"] = taken(runs(weights="disk"), 2)
            found[f"{mode} disk ahead"] = taken(runs(weights="disk", max_staleness=1, steps=4), 4)
            found[f"{mode} disk evaluated"] = evaluated(runs(weights="disk", max_staleness=2, steps=4), 4)
        with served(base, folder, mode) as runs:
            found[f"{mode} lora"] = taken(runs(lora=True, weights="lora"), 2)
            found[f"{mode} lora ahead"] = taken(runs(lora=True, weights="lora", max_staleness=1, steps=3), 3)
            found[f"{mode} lora evaluated"] = evaluated(runs(lora=True, weights="lora", max_staleness=1, steps=3), 3)
        found[f"{mode} left behind"] = sorted(path.name for path in (folder / "weights").iterdir())
    with served(mortal, folder, "fsdp") as runs:
        found["killed"] = taken(runs(), 2)
    with served(again, folder, "fsdp") as runs:
        found["killed ahead"] = taken(runs(max_staleness=1, steps=4), 4)
    with served((), folder, "data") as runs:
        found["by themselves ahead"] = taken(runs(max_staleness=1, steps=3), 3)
    with served((), folder, "fsdp") as runs:
        found["sharded by themselves ahead"] = outcome(lambda: runs(max_staleness=1))
    return found | failures(folder, steady, dead, config)


def failures(folder: Path, steady: list[str], dead: list[str], config: str) -> dict[str, Any]:
    """What ends all ranks; after each they are still in step."""
    found: dict[str, Any] = {}
    write = folders.write

    def fails_in_the_middle(weights: Iterator[tuple[str, torch.Tensor]], path: Path) -> None:
        next(iter(weights))
        raise P3OError("no room is left")

    with served(steady, folder, "fsdp") as runs:
        folders.write = fails_in_the_middle  # type: ignore[assignment]
        found["no room"] = outcome(runs(weights="disk").step)
        folders.write = write
        refused = runs(lora=False, weights="lora")
        found["no adapter"] = outcome(refused.step)
    world().barrier()
    for name, url in (("command", steady[0]), ("command without", dead[0])):
        with contextlib.redirect_stderr(io.StringIO()) as told, contextlib.redirect_stdout(io.StringIO()):
            rollout = f"rl.rollout={{engine: vllm, urls: [{url!r}], patience: 0}}"
            code = main(
                ["rl", "--config", config, "--name", name.split()[-1], "--output", str(folder), "--set", rollout]
            )
        found[name] = [code, told.getvalue()]
    return found


def waits(folder: Path, urls: list[str]) -> dict[str, Any]:
    """The servers take longer than the limit on collectives."""
    with served(urls, folder, "data") as runs:
        found = {"data": taken(runs(steps=1), 1)}
    with served(urls, folder, "fsdp") as runs:
        found["fsdp"] = taken(runs(steps=1), 1)
        found["fsdp ahead"] = taken(runs(steps=2, max_staleness=1), 2)
    return found
