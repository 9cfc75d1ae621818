"""Commands that measure p3o itself: the gate of the embedded task and the benchmarks."""

from pathlib import Path
from typing import Annotated

import typer

from p3o.cli.app import RUNS, JsonFile, Output, app, bench


@app.command()
def gate(
    json_file: JsonFile = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Number of seeds to run the whole pipeline with.")] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only test the gate itself, on `demo --quick`; it will fail.")
    ] = False,
    output: Output = RUNS,
) -> None:
    """Check over several seeds that the embedded task is learned; each claim passes or fails. Exit code 1 if one fails."""
    from p3o import gate as acceptance
    from p3o.training.progress import Progress

    lines = acceptance.run_gate(seeds, output=output, json_path=json_file, progress=Progress(), quick=quick)
    for line in lines:
        measured = "  ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in line.values)
        typer.echo(f"{'pass' if line.passed else 'FAIL'}  {line.name}: {measured} (wanted: {line.wanted})")
    if not all(line.passed for line in lines):
        raise typer.Exit(1)


@bench.command()
def frontier(
    json_file: JsonFile = None,
    full: Annotated[
        bool, typer.Option("--full", help="Run all problems, seeds and settings; takes about half an hour.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Also write the chart and tables to this folder.")
    ] = None,
) -> None:
    """Measure every algorithm against the exact KL–reward frontier of problems small enough to enumerate."""
    from p3o.bench import frontier as benchmark

    benchmark.main(json_file, full=full, output=output)


@bench.command()
def staleness(
    json_file: JsonFile = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Also write the chart and the JSON to this folder.")
    ] = None,
) -> None:
    """Measure what learning from the samples of an older policy costs every algorithm, on the problems of `frontier`."""
    from p3o.bench import staleness as benchmark

    benchmark.main(json_file, output=output)


@bench.command()
def speed(
    json_file: JsonFile = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Measure one setting only; without --model, on a Llama of 1.4 million parameters."
        ),
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", metavar="DIR", help="Folder of the model; default: a Llama with the shape of SmolLM2-135M."
        ),
    ] = None,
) -> None:
    """Compare a step of P3O with those of TRL's RLOO and our PPO: seconds by phase, memory, share of the peak matrix rate."""
    from p3o.bench import speed as benchmark

    benchmark.main(json_file, quick=quick, model=model)


@bench.command()
def plan(
    json_file: JsonFile = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Also write the charts to this folder.")
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="FILE",
            help="Output of p3o bench speed --json; use the efficiency measured there instead of an assumed one.",
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, metavar="N", help="Prompts per step.")] = 512,
    responses: Annotated[int, typer.Option(min=2, metavar="K", help="Responses per prompt.")] = 4,
    prompt_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Mean length of a prompt.")] = 512,
    response_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Mean length of a response.")] = 512,
    tail: Annotated[
        float, typer.Option(min=1, metavar="X", help="Length of the longest response divided by the mean length.")
    ] = 2.0,
    passes: Annotated[int, typer.Option(min=1, metavar="N", help="Training passes over each sample.")] = 1,
    updates: Annotated[int, typer.Option(min=1, metavar="N", help="Optimiser steps per step of RL.")] = 1,
) -> None:
    """Estimate memory, traffic and time of P3O and PPO on 8 to 512 GPUs for models of 1B, 8B and 70B. Runs nothing."""
    from p3o.bench import plan as benchmark
    from p3o.bench.plan_shapes import Work

    work = Work(prompts, responses, prompt_tokens, response_tokens, tail, passes, max(passes, updates))
    benchmark.main(json_file, output, calibrate=calibrate, work=work)


@bench.command()
def scaling(
    json_file: JsonFile = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write the curves to this .svg, .png or .html file.")
    ] = None,
) -> None:
    """Measure how the cost of a P3O step grows with prompts, responses, lengths and model size, varied one at a time."""
    from p3o.bench import speed_scaling as benchmark

    benchmark.main(json_file, plot)
