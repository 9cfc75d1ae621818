"""Commands that measure p3o itself: the gate of the embedded task and the benchmarks."""

from pathlib import Path
from typing import Annotated

import typer

from p3o.cli.app import RUNS, JsonFile, Output, app, bench


@app.command()
def gate(
    json_file: JsonFile = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="How many times to run the whole chain.")] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="Try the gate itself with `demo --quick`; it will fail.")
    ] = False,
    output: Output = RUNS,
) -> None:
    """Check that the embedded task is learned: pass or fail for each claim, over several seeds. Exit code 1 on a fail."""
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
    full: Annotated[bool, typer.Option("--full", help="All problems, seeds and settings; takes hours.")] = False,
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
        bool, typer.Option("--quick", help="One setting; without --model, on a Llama of 1.4 million parameters.")
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="DIR", help="Folder of the model; else a Llama of SmolLM2-135M's shape."),
    ] = None,
) -> None:
    """Measure a step of P3O beside TRL's RLOO and our PPO: seconds by phase, memory, share of the machine's matrix rate."""
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
            "--calibrate", metavar="FILE", help="Of p3o bench speed --json: its efficiency, not an assumed one."
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, metavar="N", help="Prompts of a step.")] = 512,
    responses: Annotated[int, typer.Option(min=2, metavar="K", help="Responses to each.")] = 4,
    prompt_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Mean length of a prompt.")] = 512,
    response_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Mean length of a response.")] = 512,
    tail: Annotated[float, typer.Option(min=1, metavar="X", help="The longest response over the mean one.")] = 2.0,
    passes: Annotated[int, typer.Option(min=1, metavar="N", help="Training passes over every sample.")] = 1,
    updates: Annotated[int, typer.Option(min=1, metavar="N", help="Optimiser steps.")] = 1,
) -> None:
    """Reckon memory, traffic and time of P3O and PPO on 8 to 512 GPUs for models of 1B, 8B and 70B. Runs nothing."""
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
    """Measure how the cost of a P3O step grows with prompts, responses, lengths and model size, each varied alone."""
    from p3o.bench import speed_scaling as benchmark

    benchmark.main(json_file, plot)
