"""What `--dry-run` prints."""

from collections.abc import Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from p3o.stages.dry_run import DryRun, Example, StageOutlook
from p3o.stages.estimates import GIB, StepEstimate

_PASSES = {"training": "activations and logits", "sampling": "keys and values", "evaluating": "activations and logits"}
_GATHERED = {
    "training": "weights gathered from the other processes and gradients not yet sharded",
    "sampling": "weights gathered from the other processes",
    "evaluating": "weights gathered from the other processes",
}
_PROMPT, _RESPONSE = "prompt   │ ", "response ┃ "


def print_outlook(outlook: DryRun, console: Console, *, changed: Sequence[str]) -> None:
    """Print it. ``changed`` are the settings that differ from their defaults, as ``key=value``."""
    for part in _parts(outlook, changed):
        console.print(part, soft_wrap=isinstance(part, Text))


def _parts(outlook: DryRun, changed: Sequence[str]) -> list[RenderableType]:
    parts: list[RenderableType] = [
        Text(f"dry run for {outlook.folder}: nothing was written"),
        Text(f"settings that differ from their defaults: {', '.join(changed) or 'none'}"),
    ]
    if outlook.model is not None:
        size = f"{outlook.model.parameters:,} parameters, vocabulary {outlook.model.vocabulary:,}"
        parts.append(Text(f"model: {size}; computes on {outlook.device}"))
    if outlook.counts:
        table = _table("rows", "number", "mean tokens", "longest")
        for counts in outlook.counts:
            table.add_row(counts.what, f"{counts.rows:,}", f"{counts.mean:.1f}", f"{counts.longest:,}")
        parts += [Text(), table]
    together = any(stage.processes.count > 1 for stage in outlook.outlooks)
    heads = ("processes", "memory of each, about") if together else ("memory, about",)
    stages = _table("stage", "would do", "tokens a step", "sampled", *heads)
    stages.columns[1].justify = "left"
    stages.columns[1].no_wrap = False
    for stage in outlook.outlooks:
        estimate = stage.estimate
        known: tuple[str, ...] = ()
        if estimate is not None:
            known = (f"{estimate.tokens:,}", f"{estimate.sampled_tokens:,}")
            known += (f"{stage.processes.count:,}",) if together else ()
            known += (_needed(estimate, outlook.offloads and stage.processes.sharded),)
        stages.add_row(stage.stage, stage.does, *known)
    parts += [stages, *(Text(_divided(stage)) for stage in outlook.outlooks if stage.processes.count > 1)]
    if outlook.example is not None:
        parts += _example(outlook.example)
    return parts


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for head in others:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _example(example: Example) -> list[RenderableType]:
    """Prompt and response, each behind its own mark, a dot between tokens; on a terminal the response is green."""
    trained = f"{example.response_tokens} response tokens trained on" if example.response else "the response is sampled"
    lines: list[RenderableType] = [
        Text(f"the first of the {example.what}: {example.prompt_tokens} prompt tokens (not trained on), {trained}")
    ]
    for mark, tokens, style in ((_PROMPT, example.prompt, "dim"), (_RESPONSE, example.response, "green")):
        if tokens:
            text = "·".join(token.replace("\n", "↵") for token in tokens)
            lines.append(Text(mark) + Text(text, style=style))
    return lines


def _needed(estimate: StepEstimate, offloads: bool) -> str:
    """What each process needs; with shards on the CPU, of the GPU and of the CPU."""
    if not offloads:
        return _memory(estimate.total_bytes)
    return f"{_memory(estimate.total_bytes - estimate.shared_bytes)} + {_memory(estimate.shared_bytes)} on the CPU"


def _divided(stage: StageOutlook) -> str:
    """What of a stage's memory its processes share, and what each of them holds whole."""
    count, estimate = stage.processes.count, stage.estimate
    if estimate is None:
        return f"{stage.stage}: {count} processes"
    host = f"if all run on one host, it needs {count} times this memory"
    if not stage.processes.sharded:
        return f"{stage.stage}: each of the {count} processes holds complete copies of the models; {host}"
    parts = [f"{_memory(estimate.shared_bytes)} of shards (1/{count} of weights, gradients and moments)"]
    if estimate.unshared_bytes:
        parts.append(f"{_memory(estimate.unshared_bytes)} of reward models, which are not sharded while they score")
    parts.append(
        f"at most, while {estimate.height}, {_memory(estimate.gathered_bytes)} of {_GATHERED[estimate.height]}"
    )
    parts.append(f"{_memory(estimate.pass_bytes)} of {_PASSES[estimate.height]}")
    first = (
        f"the first one also holds {_memory(estimate.first_bytes)} of complete weights on its CPU, to save or send them"
    )
    return f"{stage.stage}: each of the {count} processes holds {', '.join(parts)}; {host}; {first}"


def _memory(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"
