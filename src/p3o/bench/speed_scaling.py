"""``p3o bench scaling``: how the cost of a P3O step grows with prompts, responses, lengths and the model's width.

Each is varied alone around one base, on small Llamas with random weights. Sampling, the reference's pass and training are
measured apart and set beside the operations that the mathematics needs (``speed_flops``). All points take turns, so that a
machine that slows down slows all of them. On a CPU one thread works and its own seconds count, so that other work on the
machine does not; on a GPU those of the wall.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from p3o.bench.results import check_writable, commit, machine
from p3o.bench.speed_flops import STEP_PASSES, forward_operations
from p3o.bench.speed_work import Setting, word_tokenizer
from p3o.bench.speed_workers import Report, own_step
from p3o.errors import P3OError
from p3o.files import write_json
from p3o.training.progress import Progress

STEPS = 5
"""Of every point; the first warms up and is not counted."""

VOCABULARY, LAYERS, HEAD_WIDTH = 4096, 4, 32

PHASES = {
    "sampling": ("generation",),
    "reference": ("reference pass",),
    "training": ("forward", "backward", "optimiser"),
}
"""What is told apart, by the names of ``speed_workers``."""


@dataclass(frozen=True)
class Point:
    """One step's size: prompts, K, tokens of a prompt and of a response, hidden width of the model."""

    prompts: int = 8
    responses: int = 2
    prompt: int = 128
    response: int = 32
    hidden: int = 128

    @property
    def setting(self) -> Setting:
        """The work, as the other benchmark describes it; all responses run to the limit."""
        name = "/".join(str(value) for value in vars(self).values())
        return Setting(name, (self.prompt,) * self.prompts, self.response, responses=self.responses)


BASE = Point()

AXES: dict[str, tuple[int, ...]] = {
    "prompts": (2, 4, 8, 16, 32),
    "responses": (2, 4, 8, 16),
    "prompt": (32, 64, 128, 256, 512, 1024),
    "response": (8, 16, 32, 64, 128, 256),
    "hidden": (64, 128, 256, 512),
}
TITLES = {
    "prompts": "prompts a step",
    "responses": "responses of a prompt (K)",
    "prompt": "tokens of a prompt",
    "response": "tokens of a response",
    "hidden": "hidden width of the model",
}


def main(json_path: Path | None, plot: Path | None, *, axes: Mapping[str, Sequence[int]] = AXES) -> None:
    """Run the benchmark, print its table, write what was asked for.

    Raises:
        P3OError: if a file cannot be written there, or the plot's name has no ending that is known.
    """
    check_writable(json_path, plot.parent if plot is not None else None)
    if plot is not None and plot.suffix not in (".svg", ".png", ".html"):
        raise P3OError(f"--plot: {plot.name} must end in .svg, .png or .html")
    logging.disable_progress_bar()
    results = {
        "command": "p3o bench scaling",
        "commit": commit(),
        "machine": machine(),
        "model": f"Llama of {LAYERS} layers, vocabulary {VOCABULARY}, random weights, float32",
        "base": vars(BASE),
        "steps": STEPS,
        **measure(axes),
    }
    results["summary"] = summary(results["axes"])
    if json_path is not None:
        write_json(json_path, results)
    if plot is not None:
        from p3o.bench.speed_chart import scaling_chart

        scaling_chart(results).save(str(plot))
    console = Console()
    console.print(table(results["axes"]))
    for name, value in results["summary"].items():
        console.print(f"{name}: {value:.3g}")


def points(axes: Mapping[str, Sequence[int]]) -> list[Point]:
    """All points, each once."""
    every = [replace(BASE, **{axis: value}) for axis, values in axes.items() for value in values]
    return list(dict.fromkeys(every))


def measure(axes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Median seconds of every point by phase, and its operations."""
    todo = points(axes)
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = process_time if where.type == "cpu" else perf_counter
    if where.type == "cpu":
        torch.set_num_threads(1)
    reports: dict[Point, list[Report]] = {point: [] for point in todo}
    with (
        tempfile.TemporaryDirectory(prefix="p3o-scaling-") as scratch,
        Progress().stage("bench scaling", total=STEPS * len(todo)) as advance,
    ):
        folders = {hidden: write_llama(Path(scratch) / str(hidden), hidden) for hidden in {p.hidden for p in todo}}
        steps: dict[Point, Callable[[], Report]] = {
            point: own_step("p3o_v2", point.setting, folders[point.hidden], STEPS, where, clock) for point in todo
        }
        for _ in range(STEPS):
            for point, step in steps.items():
                reports[point].append(step())
                advance(1, seconds=sum(reports[point][-1]["phases"].values()))
        operations = {
            point: forward_operations(
                AutoModelForCausalLM.from_pretrained(folders[point.hidden]),
                point.setting,
                point.prompts * point.responses * point.response,
            )
            for point in todo
        }
    described = {point: describe(reports[point][1:], operations[point]) for point in todo}
    rows = {
        axis: [{axis: value, **described[replace(BASE, **{axis: value})]} for value in values]
        for axis, values in axes.items()
    }
    return {"layout": reports[todo[0]][0]["layout"], "axes": rows}


def describe(reports: Sequence[Report], operations: float) -> dict[str, Any]:
    """Medians over the steps of one point."""

    def seconds(report: Report, names: Sequence[str] | None) -> float:
        phases: dict[str, float] = report["phases"]
        return sum(time for name, time in phases.items() if names is None or name in names)

    return {
        "step_seconds": median(seconds(report, None) for report in reports),
        **{f"{phase}_seconds": median(seconds(r, names) for r in reports) for phase, names in PHASES.items()},
        "steps": [seconds(report, None) for report in reports],
        "operations": STEP_PASSES * operations,
    }


def summary(axes: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """How fast seconds and operations grow: exponents between the two largest values of each axis, and the fixed cost of a
    decode step."""
    found = {}
    for axis, rows in axes.items():
        if len(rows) > 1:
            for quantity in ("step_seconds", *(f"{phase}_seconds" for phase in PHASES), "operations"):
                name = f"{axis}_exponent_{quantity.removesuffix('_seconds')}"
                found[name] = exponent(*((row[axis], row[quantity]) for row in rows[-2:]))
    if len(axes.get("prompts", ())) > 1:
        # Sampling's seconds are a line in the number of rows; what it has at no rows at all is paid once for each token.
        line = [(row["prompts"], row["sampling_seconds"]) for row in axes["prompts"]]
        found["decode_step_fixed_seconds"] = intercept(line) / BASE.response
    return found


def exponent(low: tuple[int | float, int | float], high: tuple[int | float, int | float]) -> float:
    """b of y ∝ x^b through two points (x, y)."""
    return math.log(high[1] / low[1]) / math.log(high[0] / low[0])


def intercept(line: Sequence[tuple[int | float, int | float]]) -> float:
    """a of the least-squares line y = a + b·x."""
    x, y = sum(u for u, _ in line) / len(line), sum(v for _, v in line) / len(line)
    slope = sum((u - x) * (v - y) for u, v in line) / sum((u - x) ** 2 for u, _ in line)
    return y - slope * x


def table(axes: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """One row for each point."""
    made = Table("varied", "", "s/step", *PHASES, "GFLOP", "GFLOP/s", box=None)
    for axis, rows in axes.items():
        for row in rows:
            made.add_row(
                TITLES[axis],
                str(row[axis]),
                f"{row['step_seconds']:.2f}",
                *(f"{row[f'{phase}_seconds']:.2f}" for phase in PHASES),
                f"{row['operations'] / 1e9:.1f}",
                f"{row['operations'] / row['step_seconds'] / 1e9:.0f}",
            )
    return made


def write_llama(folder: Path, hidden: int) -> str:
    """A random Llama of this width with its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=LAYERS,
        num_attention_heads=hidden // HEAD_WIDTH,
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    word_tokenizer(VOCABULARY).save_pretrained(folder)
    return str(folder)
