"""Which layout is right for a model: tried on it, not looked up.

Each layout computes the log-probs of a few random groups, and their gradient with respect to the input embeddings, and is
compared with the plain path of ``p3o.models.language`` on every response alone, without padding. How far two right ways may
differ depends on the model's depth and dtype, so it is measured as well: the plain path once more, on one padded batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from p3o.errors import P3OError
from p3o.models.language import response_logprobs
from p3o.models.layouts import LAYOUTS, Layout, LayoutName, device_of
from p3o.models.selection import LOGITS_BUDGET
from p3o.models.tokens import GroupTokens, collate_groups

LayoutChoice = Literal["auto", "shared", "split", "padded"]

SLACK = 16.0
"""A layout may differ from the plain path by so many times what padding does."""

PROBE_TEMPERATURE = 0.7


@dataclass(frozen=True)
class Verdict:
    """The layout that was chosen, and why.

    Attributes:
        layout: to be used for every log-prob of the run.
        rejected: the layouts that were tried before it, with the reason.
        chunked: whether logits over the byte budget may be computed in chunks.
    """

    layout: Layout
    rejected: dict[LayoutName, str]
    chunked: bool

    def __str__(self) -> str:
        reasons = "".join(f"; not {name}: {reason}" for name, reason in self.rejected.items())
        return f"layout {self.layout.name}{reasons}"


def choose_layout(
    model: nn.Module,
    *,
    choice: LayoutChoice = "auto",
    responses: int = 2,
    context: int | None = None,
    budget: int | None = LOGITS_BUDGET,
) -> Verdict:
    """The first of shared, split and padded that agrees with the plain path on this model.

    Args:
        model: a causal language model of transformers, in the mode (training or not) in which it will be used.
        choice: ``auto``, or the one layout to try.
        responses: K; the probe's groups have no more than three.
        context: the longest prompt with its response that will come, in tokens; a window of attention at least that
            long does not matter. None: any window does.
        budget: bytes of logits that may exist at once.

    Raises:
        P3OError: if the layout that was asked for, or none, agrees.
    """
    wanted = list(LAYOUTS) if choice == "auto" else [choice]
    window = sliding_window(model)
    groups = random_groups(model, min(responses, 3), window)
    plain = measured(model, groups, lambda: torch.cat([plain_logprobs(model, [one]) for one in singles(groups)]))
    tolerance = allowance(plain, measured(model, groups, lambda: plain_logprobs(model, groups)))
    rejected: dict[LayoutName, str] = {}
    for name in wanted:
        layout = LAYOUTS[name](budget=None)
        reason = objection(model, layout, groups, plain, tolerance, window=window, context=context)
        if reason is None:
            chunked = objection(model, LAYOUTS[name](budget=1), groups, plain, tolerance) is None
            return Verdict(replace(layout, budget=budget if chunked else None), rejected, chunked)
        rejected[name] = reason
    reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected.items())
    advice = "use layout auto" if choice != "auto" else "this model cannot be trained here"
    raise P3OError(f"layout {choice}: wrong for this model ({reasons}); {advice}")


@dataclass(frozen=True)
class Measurement:
    """Log-probs, and their gradient with respect to the embedding of each token id; None where no graph can be made."""

    logprobs: Tensor
    gradient: Tensor | None


def objection(
    model: nn.Module,
    layout: Layout,
    groups: Sequence[GroupTokens],
    plain: Measurement,
    tolerance: tuple[float, float],
    *,
    window: int | None = None,
    context: int | None = None,
) -> str | None:
    """Why the layout is not to be used with the model; None if nothing speaks against it."""
    if layout.name == "shared" and window is not None and (context is None or context > window):
        return f"its attention has a window of {window} tokens, which a mask of ours would switch off"
    time = max(len(response) for group in groups for response in group.responses)

    def run() -> Tensor:
        return layout.logprobs(model, groups, temperature=PROBE_TEMPERATURE, time=time, fill=0)

    try:
        got = measured(model, groups, run)
    except P3OError as error:
        return str(error)
    except Exception as error:  # whatever a model raises on input that it does not know is the answer
        return f"the model raises {type(error).__name__} on it"
    difference = float((got.logprobs - plain.logprobs.view_as(got.logprobs)).abs().max())
    if not difference <= tolerance[0]:
        return f"log-probs are {difference:.2g} nats off"
    if got.gradient is not None and plain.gradient is not None:
        difference = float((got.gradient - plain.gradient).norm() / plain.gradient.norm())
        if not difference <= tolerance[1]:
            return f"gradients are off by {difference:.2g} of their norm"
    return None


def allowance(alone: Measurement, padded: Measurement) -> tuple[float, float]:
    """What a right layout may differ by: nats, and share of the gradient's norm.

    Some times what padding changes, and not less than a few units in the last place of float32, in which models normalise and
    sometimes attend whatever their own dtype is. A padded batch that is not finite (some attentions make NaN of padding on
    the left) says nothing.
    """
    unit = max(torch.finfo(torch.float32).eps, torch.finfo(alone.logprobs.dtype).eps)
    logprobs, gradient = 4 * unit * float(alone.logprobs.abs().max()), 4 * unit
    noise = float((alone.logprobs - padded.logprobs.view_as(alone.logprobs)).abs().max())
    if math.isfinite(noise):
        logprobs = max(logprobs, noise)
        if alone.gradient is not None and padded.gradient is not None:
            gradient = max(gradient, float((alone.gradient - padded.gradient).norm() / alone.gradient.norm()))
    return SLACK * logprobs, SLACK * gradient


def plain_logprobs(model: nn.Module, groups: Sequence[GroupTokens]) -> Tensor:
    """The path of ``p3o.models.language``, which everything is compared with."""
    prompts, responses = collate_groups(groups, 0, time=LONGEST_RESPONSE)
    device = device_of(model)
    return response_logprobs(model, prompts.to(device), responses.to(device), temperature=PROBE_TEMPERATURE)


LONGEST_RESPONSE = 7


def random_groups(model: nn.Module, responses: int, window: int | None) -> list[GroupTokens]:
    """Two groups of random tokens, prompts and responses of unequal length, one response of a single token. A prompt is longer
    than a short window of attention, so that the probe notices it."""
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(0, config.vocab_size, (count,), generator=generator).tolist()

    prompt = 9 if window is None or window > 64 else window + 3
    lengths = [[LONGEST_RESPONSE, 1, *[4] * (responses - 2)], [2, 5, *[3] * (responses - 2)]]
    return [
        GroupTokens(some(size), [some(length) for length in row[:responses]], [True] * responses)
        for size, row in zip((prompt, 4), lengths, strict=True)
    ]


def singles(groups: Sequence[GroupTokens]) -> Iterator[GroupTokens]:
    """Every response as a group of its own."""
    for group in groups:
        for response, ended in zip(group.responses, group.ended, strict=True):
            yield GroupTokens(group.prompt, [response], [ended])


def measured(model: nn.Module, groups: Sequence[GroupTokens], run: Callable[[], Tensor]) -> Measurement:
    """``run()`` and the gradient of its sum, weighted at random, with respect to the embeddings, summed over each token id.

    Sharded weights get no gradient: their hooks expect whole backward passes.
    """
    get: Callable[[], nn.Module | None] | None = getattr(model, "get_input_embeddings", None)
    embeddings = None if get is None else get()
    sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    if embeddings is None or sharded:
        with torch.no_grad():
            return Measurement(run(), None)
    with torch.enable_grad(), _recorded(embeddings) as records:
        logprobs = run()
        weights = torch.rand(logprobs.numel(), generator=torch.Generator().manual_seed(1)).to(logprobs)
        gradients = torch.autograd.grad((logprobs.flatten() * weights).sum(), [output for _, output in records])
    ids = torch.tensor(sorted({i for group in groups for row in (group.prompt, *group.responses) for i in row}))
    total = gradients[0].new_zeros(len(ids), gradients[0].shape[-1])
    for (tokens, _), gradient in zip(records, gradients, strict=True):
        known = torch.isin(tokens, ids.to(tokens))
        total.index_add_(0, torch.searchsorted(ids.to(tokens), tokens[known]), gradient[known])
    return Measurement(logprobs.detach(), total)


@contextmanager
def _recorded(embeddings: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within, the ids and the output of every call of the embeddings are kept; the output is a leaf with a gradient."""
    records: list[tuple[Tensor, Tensor]] = []

    def keep(_module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        records.append((arguments[0], leaf))
        return leaf

    handle = embeddings.register_forward_hook(keep)
    try:
        yield records
    finally:
        handle.remove()


def sliding_window(model: nn.Module) -> int | None:
    """The shortest window of attention that the model's configuration names; None if every layer sees everything."""
    windows = [
        int(layer.sliding_window)
        for layer in DynamicCache(config=model.config).layers
        if getattr(layer, "is_sliding", False)
    ]
    return min(windows) if windows else None
