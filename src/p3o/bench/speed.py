"""``p3o bench speed``: a step of P3O beside a step of TRL's RLOO, and beside PPO's for the price of a critic.

The same model, prompts, lengths, dtype and threads. Every contender runs in a process of its own, so that peaks of memory do
not mix, and they take turns step by step, so that a machine that slows down slows all of them. A ratio is the median over the
turns of (their seconds / ours in the same turn). The rate of matrix products is measured between the turns.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from p3o.bench.results import check_writable, commit, machine
from p3o.bench.speed_flops import STEP_PASSES, TRAINING_PASSES, forward_operations, gemm_rate
from p3o.bench.speed_work import QUICK, SETTINGS, Setting, write_llama
from p3o.bench.speed_workers import TRL_ROWS, serve
from p3o.errors import P3OError
from p3o.files import write_json
from p3o.models.language import load_language_model, load_model_config, load_tokenizer
from p3o.training.progress import Advance, Progress

TITLES = {"p3o": "P3O", "trl": "TRL RLOO", "ppo": "PPO"}
CONTENDERS = tuple(TITLES)
STEPS, QUICK_STEPS = 4, 3
"""Steps of every contender in every setting; the first warms up and is not counted."""

MAIN, MIXED, CRITIC = "256,64", "mixed", "64,64"
"""The settings that the summary speaks of; the last for the price of a critic."""

STEP_TIMEOUT = 3600.0
"""Seconds after which a step is given up."""


def main(json_path: Path | None, *, quick: bool, model: Path | None) -> None:
    """Run the benchmark, print its table, write what was asked for.

    A run that was interrupted goes on at the next setting if it is started again with the same arguments and file.

    Args:
        json_path: where to write; after every setting, with ``complete`` saying whether it was the last.
        quick: one setting; without ``model``, on a Llama of 1.4 million parameters.
        model: a folder; None: a Llama of SmolLM2-135M's shape with random weights.

    Raises:
        P3OError: if TRL is not installed, the model cannot be loaded, or a contender fails.
    """
    if find_spec("trl") is None or find_spec("datasets") is None:
        raise P3OError("bench speed: TRL, which p3o is compared with, is not installed; run: pip install trl datasets")
    check_writable(json_path, None)
    if model is not None:
        load_model_config(str(model))
        load_tokenizer(str(model))
    settings, steps = (QUICK, QUICK_STEPS) if quick else (SETTINGS, STEPS)
    logging.disable_progress_bar()
    results = started(json_path, identity(quick=quick, model=model, steps=steps))
    left = [setting for setting in settings if setting.name not in results["settings"]]
    progress = Progress()
    with tempfile.TemporaryDirectory(prefix="p3o-speed-") as scratch:
        folder = str(model)
        if model is None:
            folder = f"{scratch}/llama"
            write_llama(Path(folder), quick=quick)
        total = steps * sum(len(contending(setting)) for setting in left)
        with progress.stage("bench speed", total=total) as advance:
            for setting in left:
                results["settings"][setting.name] = measure(setting, folder, scratch, steps, advance)
                results["complete"] = len(results["settings"]) == len(settings)
                results["summary"] = summary(results["settings"])
                if json_path is not None:
                    write_json(json_path, results)
    console = Console()
    for table in tables(results["settings"]):
        console.print(table)
    for name, value in summary(results["settings"]).items():
        console.print(f"{name}: {'not measured' if value is None else f'{value:.3g}'}")


def identity(*, quick: bool, model: Path | None, steps: int) -> dict[str, Any]:
    """What must be the same for an interrupted run to go on."""
    import transformers
    import trl

    shape = "SmolLM2-135M's shape, random weights" if not quick else "1.4M parameters, random weights"
    return {
        "command": "p3o bench speed" + (" --quick" if quick else "") + (f" --model {model.name}" if model else ""),
        "commit": commit(),
        "machine": machine() | {"threads": torch.get_num_threads(), "gpu": gpu_name()},
        "versions": {"trl": trl.__version__, "transformers": transformers.__version__},
        "model": model.name if model else f"Llama of {shape}",
        "dtype": "float32",
        "steps": steps,
        "trl_rows_per_pass": TRL_ROWS,
    }


def gpu_name() -> str | None:
    """The GPU that everything runs on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def started(json_path: Path | None, run: Mapping[str, Any]) -> dict[str, Any]:
    """The results of an interrupted run with the same identity, or none yet."""
    if json_path is not None:
        with suppress(OSError, ValueError, AttributeError):
            found = json.loads(json_path.read_text(encoding="utf-8"))
            if found.get("complete") is False and all(found.get(name) == value for name, value in run.items()):
                return dict(found)
    return {**run, "complete": False, "settings": {}, "summary": {}}


def measure(setting: Setting, folder: str, scratch: str, steps: int, advance: Advance) -> dict[str, Any]:
    """All contenders on one setting, in turns."""
    rates = [gemm_rate()]
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in contending(setting)}
    with contenders(setting, folder, scratch, steps) as connections:
        for _ in range(steps):
            for name, connection in connections.items():
                connection.send("step")
                turns[name].append(reply(name, connection))
                advance(1, seconds=sum(turns[name][-1]["phases"].values()))
            rates.append(gemm_rate())
        peaks = {name: reply(name, connection)["peak_bytes"] for name, connection in connections.items()}
    counted = {name: reports[1:] for name, reports in turns.items()}
    model = load_language_model(folder, device=torch.device("cpu"))
    rate = median(rates)
    return {
        "setting": {
            "prompts": list(setting.prompts),
            "response": setting.response,
            "end": setting.end,
            "responses": setting.responses,
        },
        "gemm_flops": rate,
        "layout": counted["p3o"][0]["layout"],
        "contenders": {
            name: described(reports, peaks[name], rate, setting, model) for name, reports in counted.items()
        },
        "ratios": {
            name: median(
                sum(theirs["phases"].values()) / sum(ours["phases"].values())
                for theirs, ours in zip(counted[name], counted["p3o"], strict=True)
            )
            for name in counted
            if name != "p3o"
        },
    }


def contending(setting: Setting) -> tuple[str, ...]:
    """Who takes part: the price of a critic is measured in one setting."""
    return CONTENDERS if setting.name == CRITIC else CONTENDERS[:2]


def described(
    reports: Sequence[Mapping[str, Any]], peak: int, rate: float, setting: Setting, model: Any
) -> dict[str, Any]:
    """Medians of one contender: seconds by phase, tokens a second, memory, share of the rate of matrix products."""
    names = sorted({name for report in reports for name in report["phases"]})
    phases = {name: median(report["phases"].get(name, 0.0) for report in reports) for name in names}
    seconds = [sum(report["phases"].values()) for report in reports]
    tokens = [report["tokens"] for report in reports]
    operations = [forward_operations(model, setting, sampled) for sampled in tokens]
    training = [report["phases"].get("forward", 0.0) + report["phases"].get("backward", 0.0) for report in reports]
    return {
        "step_seconds": median(seconds),
        "steps": seconds,
        "phases": phases,
        "sampled_tokens": tokens,
        "response_tokens_per_second": median(count / time for count, time in zip(tokens, seconds, strict=True)),
        "peak_bytes": peak,
        "train_pass_gemm_share": median(
            TRAINING_PASSES * count / time / rate for count, time in zip(operations, training, strict=True)
        ),
        "step_gemm_share": median(
            STEP_PASSES * count / time / rate for count, time in zip(operations, seconds, strict=True)
        ),
    }


@contextmanager
def contenders(setting: Setting, folder: str, scratch: str, steps: int) -> Any:
    """A process for each contender, ready to take steps; ended when the block is left, however that happens."""
    context = get_context("spawn")
    processes, connections = [], {}
    offline = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        for name in contending(setting):
            ours, theirs = context.Pipe()
            arguments = (theirs, name, setting, folder, scratch, torch.get_num_threads(), steps)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            connections[name] = ours
        for name, connection in connections.items():
            reply(name, connection)
        yield connections
    finally:
        for process in processes:
            process.terminate()
            process.join()
        if offline is None:
            del os.environ["HF_HUB_OFFLINE"]


def reply(name: str, connection: Connection) -> dict[str, Any]:
    """The contender's next message.

    Raises:
        P3OError: if it failed, ended, or took too long.
    """
    if not connection.poll(STEP_TIMEOUT):
        raise P3OError(f"bench speed: {name} took more than {STEP_TIMEOUT:.0f} s for a step; try --quick")
    try:
        report: dict[str, Any] = connection.recv()
    except EOFError as error:
        raise P3OError(f"bench speed: the process of {name} ended, perhaps for lack of memory; try --quick") from error
    if "error" in report:
        raise P3OError(f"bench speed: {name} failed: {report['error']}")
    return report


def summary(settings: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures that the benchmark is about; None where the setting was not measured."""
    main_setting, mixed, critic = (settings.get(name) for name in (MAIN, MIXED, CRITIC))
    ours, theirs = ({} if main_setting is None else main_setting["contenders"][name] for name in ("p3o", "trl"))
    return {
        "step_ratio_vs_trl": main_setting and main_setting["ratios"]["trl"],
        "mixed_step_ratio_vs_trl": mixed and mixed["ratios"]["trl"],
        "train_pass_gemm_share": ours.get("train_pass_gemm_share"),
        "step_gemm_share": ours.get("step_gemm_share"),
        "peak_memory_ratio_vs_trl": main_setting and ours["peak_bytes"] / theirs["peak_bytes"],
        "ppo_step_ratio": critic and critic["ratios"]["ppo"],
    }


def tables(settings: Mapping[str, Any]) -> list[Table]:
    """Medians by setting and contender; then the seconds of each phase."""
    rows = [
        (setting, name, row["ratios"].get(name, 1.0), found)
        for setting, row in settings.items()
        for name, found in row["contenders"].items()
    ]
    phases = sorted({phase for *_, found in rows for phase in found["phases"]})
    whole = Table("lengths", "", "s/step", "ratio", "tokens/s", "peak GiB", "train/GEMM", "step/GEMM")
    parts = Table("seconds", *(f"{setting} {TITLES[name]}" for setting, name, *_ in rows))
    for setting, name, ratio, found in rows:
        whole.add_row(
            setting,
            TITLES[name],
            f"{found['step_seconds']:.2f}",
            f"{ratio:.2f}",
            f"{found['response_tokens_per_second']:.0f}",
            f"{found['peak_bytes'] / 2**30:.2f}",
            f"{found['train_pass_gemm_share']:.0%}",
            f"{found['step_gemm_share']:.0%}",
        )
    for phase in phases:
        parts.add_row(phase, *(f"{found['phases'].get(phase, 0.0):.2f}" for *_, found in rows))
    return [whole, parts]
