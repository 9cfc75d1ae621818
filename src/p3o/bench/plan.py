"""``p3o bench plan``: what P3O would take on a cluster, by formulas, beside PPO; tables, charts, JSON.

Nothing is run. The efficiencies are assumptions until ``--calibrate`` replaces the learner's by one that ``p3o bench speed``
measured.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from p3o.bench.plan_cost import METHODS, Assumptions, evaluation_bytes, learner_cost, learner_memory
from p3o.bench.plan_shapes import SHAPES, Work
from p3o.bench.plan_split import TURNS, Plan, best_plan
from p3o.bench.results import check_writable, write_json
from p3o.errors import P3OError, shorten
from p3o.files import make_folder, open_for_reading

GPUS = (8, 16, 32, 64, 128, 256, 512)
GEMM_SHARE = 0.70
"""Of a GPU's peak in large bfloat16 products: what turns a measured share of the GEMM rate into a share of the peak."""

GROUP_SIZES, LENGTHS = (2, 4, 8, 16), (128, 256, 512, 1024, 2048, 4096)
SWEPT, SWEPT_RANKS = ("8B", 64), 32
"""Model and GPUs of the sweep over lengths; ranks of a learner in the sweep over K."""

GB = 1e9


def main(json_path: Path | None, output: Path | None, *, calibrate: Path | None, work: Work) -> None:
    """Reckon, print, write what was asked for.

    Args:
        json_path: every figure and every assumption.
        output: a folder for the charts, as SVG and PNG.
        calibrate: a file of ``p3o bench speed --json``.
        work: one step.

    Raises:
        P3OError: if a file cannot be read or written, or is no such file.
    """
    check_writable(json_path, output)
    assumed, told = (Assumptions(), "assumed") if calibrate is None else calibrated(Assumptions(), calibrate)
    results = reckon(work, assumed) | {"efficiency": told}
    if json_path is not None:
        write_json(results, json_path)
    if output is not None:
        from p3o.bench.plan_chart import write_charts

        make_folder(output)
        write_charts(results, output)
    console = Console()
    console.print(
        f"One step: {step_in_words(work)}. Efficiency of the learner: {told}. Nothing was run: H100 by data sheet."
    )
    for table in tables(results):
        console.print(table)


def step_in_words(work: Work) -> str:
    """What is sampled and learned."""
    return (
        f"{work.prompts} prompts of {work.prompt_tokens} tokens, {work.responses} responses each of {work.response_tokens} "
        f"on average (the longest {work.tail:g} times that), {work.passes} training pass{'es' if work.passes > 1 else ''}"
    )


def reckon(work: Work, assumed: Assumptions) -> dict[str, Any]:
    """Every figure of the plan, as plain values."""
    p3o, (name, gpus) = METHODS["p3o"], SWEPT
    return {
        "assumptions": asdict(assumed),
        "work": asdict(work),
        "plans": [
            {"model": shape.name, "method": key, "gpus": count, "turns": turns}
            | described(best_plan(shape, work, method, count, turns, assumed))
            for shape in SHAPES.values()
            for key, method in METHODS.items()
            for count in GPUS
            for turns in TURNS
        ],
        "growing_batch": [
            {"model": shape.name, "gpus": count, "prompts": grown.prompts}
            | described(best_plan(shape, grown, p3o, count, "asynchronous", assumed))
            for shape in SHAPES.values()
            for count in GPUS
            for grown in [replace(work, prompts=max(1, work.prompts * count // gpus))]
        ],
        "memory": [
            {
                "model": shape.name,
                "method": key,
                "ranks": ranks,
                "parts": memory.parts,
                "total": memory.total,
                "evaluating": evaluation_bytes(shape, memory),
            }
            for shape in SHAPES.values()
            for key, method in METHODS.items()
            for ranks in GPUS
            for memory in [learner_memory(shape, work, method, ranks, assumed)]
        ],
        "group_sizes": [
            # The same number of responses, in more or fewer groups.
            {
                "responses": size,
                "method": key,
                "learning_seconds": learner_cost(SHAPES[name], resized, method, SWEPT_RANKS, assumed).seconds,
            }
            for size in GROUP_SIZES
            for key, method in METHODS.items()
            if not method.lora
            for resized in [replace(work, responses=size, prompts=max(1, work.prompts * work.responses // size))]
        ],
        "lengths": [
            {"prompt_tokens": prompt, "response_tokens": response}
            | described(
                best_plan(
                    SHAPES[name],
                    replace(work, prompt_tokens=prompt, response_tokens=response),
                    p3o,
                    gpus,
                    "asynchronous",
                    assumed,
                )
            )
            for prompt in (128, 512, 2048)
            for response in LENGTHS
        ],
    }


def described(plan: Plan | None) -> dict[str, Any]:
    """The figures of a plan; only that it does not fit if there is none."""
    if plan is None:
        return {"fits": False}
    return {
        "fits": True,
        "learners": plan.learners,
        "rollouts": plan.rollouts,
        "seconds": plan.seconds,
        "tokens_per_second": plan.tokens_per_second,
        "utilisation": plan.utilisation,
        "sampling_seconds": plan.rollout.seconds,
        "learning_seconds": plan.learner.seconds,
        "computing_seconds": plan.learner.computing,
        "communicating_seconds": plan.learner.communicating,
        "push_seconds": plan.push,
        "broadcast_seconds": plan.broadcast,
        "gathered_bytes": plan.learner.gathered,
        "scattered_bytes": plan.learner.scattered,
        "push_bytes": plan.push_bytes,
        "responses_at_once": plan.rollout.at_once,
        "cache_bytes": plan.rollout.cache,
        "learner_bytes": plan.memory.total,
    }


def calibrated(assumed: Assumptions, path: Path) -> tuple[Assumptions, str]:
    """The learner's share of the peak from a file of ``p3o bench speed``, and where it comes from, in words.

    What is carried over is the share of the machine's own rate of matrix products that P3O's training pass reached: it is a
    property of the code rather than of the machine, as far as anything is. It is multiplied with the share of the peak that
    products themselves are assumed to reach. Sampling, links and memory stay as assumed: that benchmark measures none of them.

    Raises:
        P3OError: if the file is not one of these, or not finished.
    """
    with open_for_reading(path) as file:
        content = file.read()
    try:
        measured: Any = json.loads(content)
        settings: Mapping[str, Any] = measured["settings"]
        name = "256,64" if "256,64" in settings else next(iter(settings))
        share = float(settings[name]["contenders"]["p3o"]["train_pass_gemm_share"])
        machine = measured["machine"]
        where = machine.get("gpu") or machine.get("cpu") or "a CPU"
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
        raise P3OError(
            f"{path}: not a file written by p3o bench speed --json ({shorten(error)}); give such a file"
        ) from error
    if not 0 < share <= 1:
        raise P3OError(f"{path}: train_pass_gemm_share is {share:g}; it must lie between 0 and 1")
    told = f"{share:.0%} of the GEMM rate, measured by {measured.get('command', 'p3o bench speed')} on {where} at {name} tokens"
    return replace(assumed, training_share=share * GEMM_SHARE), f"{told}, times an assumed {GEMM_SHARE:.0%} of the peak"


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Plans of P3O by model and GPUs; P3O beside PPO; memory of a rank."""
    heads = ("learn", "sample", "s/step", "tokens/s", "sampling s", "learning s", "push s", "MFU")
    caption = "push: in bfloat16, gathered, to the host's memory and from there to all servers at once"
    plans = Table("model", "GPUs", "turns", *heads, caption=caption)
    for row in results["plans"]:
        if row["method"] == "p3o" and row["gpus"] in (8, 64, 512):
            figures = plan_cells(row) if row["fits"] else ["does not fit", *[""] * 7]
            plans.add_row(row["model"], str(row["gpus"]), row["turns"], *figures)
    beside = Table(
        "model",
        "GPUs",
        *(method.name for method in METHODS.values()),
        title="seconds of an asynchronous step",
        caption="–: does not fit",
    )
    memory = Table("model", "ranks", *(method.name for method in METHODS.values()), title="GB of a learner's rank")
    for model in SHAPES:
        for gpus in (8, 64, 512):
            chosen = {"model": model, "gpus": gpus, "turns": "asynchronous"}
            cells = [_one(results["plans"], chosen | {"method": key}) for key in METHODS]
            beside.add_row(model, str(gpus), *(f"{cell['seconds']:.1f}" if cell["fits"] else "–" for cell in cells))
            sizes = [_one(results["memory"], {"model": model, "ranks": gpus, "method": key}) for key in METHODS]
            memory.add_row(model, str(gpus), *(f"{cell['total'] / GB:.0f}" for cell in sizes))
    return [plans, beside, memory]


def plan_cells(row: Mapping[str, Any]) -> list[str]:
    """The figures of a plan that fits, as the table has them."""
    return [
        str(row["learners"]),
        str(row["rollouts"]),
        f"{row['seconds']:.1f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['sampling_seconds']:.1f}",
        f"{row['learning_seconds']:.1f}",
        f"{row['push_seconds']:.2f}",
        f"{row['utilisation']:.0%}",
    ]


def _one(rows: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    (found,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return found
