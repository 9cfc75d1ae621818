"""Which layout is right for a model: tried on it, not looked up.

Each layout computes the log-probs (or values, or scores) of a few random groups, and their gradient with respect to the input
embeddings, and is compared with the plain path on every response alone, without padding. How far two right ways may differ
depends on the model's depth and dtype, so it is measured as well: the plain path once more, on one padded batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from p3o.errors import P3OError
from p3o.models.language import response_logprobs
from p3o.models.layouts import LAYOUTS, Layout, LayoutName, device_of
from p3o.models.selection import LOGITS_BUDGET
from p3o.models.tokens import GroupTokens, collate_groups

LayoutChoice = Literal["auto", "shared", "split", "padded"]


class LayoutNeeds(TypedDict):
    """What a run asks of its layouts; see :func:`choose_layout`."""

    choice: LayoutChoice
    responses: int
    context: int


SLACK = 16.0
"""A layout may differ from the plain path by so many times what padding does."""

COARSE = 8192.0
"""Where padding changes a number by more than so many units in the last place of the largest one, the model does not round
otherwise, it reads otherwise: what it then says is no measure of what may differ."""

PROBE_TEMPERATURE = 0.7


@dataclass(frozen=True)
class Verdict:
    """The layout that was chosen, and why.

    Attributes:
        layout: to be used for every number of the run that is of its kind: log-probs, values, scores.
        rejected: the layouts that were tried before it, with the reason.
        chunked: whether logits over the byte budget may be computed in chunks.
        misreads: by how much padding changes the numbers, where that is no rounding; 0 where it is.
    """

    layout: Layout
    rejected: dict[LayoutName, str]
    chunked: bool = False
    misreads: float = 0.0

    def __str__(self) -> str:
        reasons = "".join(f"; not {name}: {reason}" for name, reason in self.rejected.items())
        beware = f"; beware: padding, as there is in sampling, changes what it reads ({self.misreads:.2g} off)"
        return f"layout {self.layout.name} ({self.layout.words}){reasons}{beware if self.misreads else ''}"


@dataclass(frozen=True)
class Subject:
    """What a probe tries.

    Attributes:
        model: the transformer, whose embeddings the gradients are taken for.
        plain: numbers of groups on a path that is known to be right, one row per response, padded.
        laid_out: the same numbers, in the same order, by a layout.
        what: names the model in an error.
        off: how a difference is told.
        has_logits: whether the numbers come from logits, which a layout may compute in chunks.
    """

    model: nn.Module
    plain: Callable[[Sequence[GroupTokens]], Tensor]
    laid_out: Callable[[Layout, Sequence[GroupTokens]], Tensor]
    what: str = "model"
    off: str = "log-probs are {:.2g} nats off"
    has_logits: bool = False


def choose_layout(
    model: nn.Module,
    *,
    choice: LayoutChoice = "auto",
    responses: int = 2,
    context: int | None = None,
    budget: int | None = LOGITS_BUDGET,
) -> Verdict:
    """The first of shared, split and padded whose log-probs agree with the plain path on this model.

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

    def logprobs(layout: Layout, groups: Sequence[GroupTokens]) -> Tensor:
        return layout.logprobs(model, groups, temperature=PROBE_TEMPERATURE, time=LONGEST_RESPONSE, fill=0)

    subject = Subject(model, lambda groups: plain_logprobs(model, groups), logprobs, has_logits=True)
    return choose(subject, choice=choice, responses=responses, context=context, budget=budget)


def choose(
    subject: Subject,
    *,
    choice: LayoutChoice = "auto",
    responses: int = 2,
    context: int | None = None,
    budget: int | None = None,
) -> Verdict:
    """As :func:`choose_layout`, for any numbers."""
    wanted = list(LAYOUTS) if choice == "auto" else [choice]
    verdict = first_right(subject, wanted, responses=responses, context=context, budget=budget)
    if isinstance(verdict, Verdict):
        return verdict
    reasons = "; ".join(f"{name}: {reason}" for name, reason in verdict.items())
    advice = "use layout auto" if choice != "auto" else f"this {subject.what} cannot be trained here"
    raise P3OError(f"layout {choice}: wrong for this {subject.what} ({reasons}); {advice}")


def first_right(
    subject: Subject,
    wanted: Sequence[LayoutName],
    *,
    responses: int,
    context: int | None,
    budget: int | None = None,
    ending: Sequence[int] = (),
) -> Verdict | dict[LayoutName, str]:
    """The first of these layouts that agrees, or, if none does, what speaks against each.

    Args:
        subject: what is tried.
        wanted: layouts, in the order in which to try them.
        responses: K.
        context: the longest row that will come.
        budget: bytes of logits that may exist at once.
        ending: ids that end one of the responses, where they mean something to the numbers.
    """
    window = sliding_window(subject.model)
    groups = random_groups(subject.model, min(responses, 3), window, ending)
    plain = measured(subject.model, groups, lambda: torch.cat([subject.plain([one]) for one in singles(groups)]))
    padded = measured(subject.model, groups, lambda: subject.plain(groups))
    misreads = misreading(plain, padded, computes_in(subject.model))
    tolerance = allowance(plain, plain if misreads else padded)
    rejected: dict[LayoutName, str] = {}
    for name in wanted:
        layout = LAYOUTS[name](budget=None)
        reason = None
        if name == "shared" and window is not None and (context is None or context > window):
            reason = f"its attention has a window of {window} tokens, which a mask of ours would switch off"
        reason = reason or objection(subject, layout, groups, plain, tolerance)
        if reason is None:
            chunks = replace(layout, budget=1)
            chunked = subject.has_logits and objection(subject, chunks, groups, plain, tolerance) is None
            return Verdict(replace(layout, budget=budget if chunked else None), rejected, chunked, misreads)
        rejected[name] = reason
    return rejected


@dataclass(frozen=True)
class Measurement:
    """Numbers of groups, and their gradient with respect to the embedding of each token id; None where no graph can be made."""

    numbers: Tensor
    gradient: Tensor | None


def objection(
    subject: Subject,
    layout: Layout,
    groups: Sequence[GroupTokens],
    plain: Measurement,
    tolerance: tuple[float, float],
) -> str | None:
    """Why the layout is not to be used with the model; None if nothing speaks against it."""
    try:
        got = measured(subject.model, groups, lambda: subject.laid_out(layout, groups))
    except P3OError as error:
        return str(error)
    except Exception as error:  # whatever a model raises on input that it does not know is the answer
        return f"the model raises {type(error).__name__} on it"
    difference = float((got.numbers - plain.numbers.view_as(got.numbers)).abs().max())
    if not difference <= tolerance[0]:
        return subject.off.format(difference)
    if got.gradient is not None and plain.gradient is not None:
        difference = float((got.gradient - plain.gradient).norm() / plain.gradient.norm())
        if not difference <= tolerance[1]:
            return f"gradients are off by {difference:.2g} of their norm"
    return None


def misreading(alone: Measurement, padded: Measurement, dtype: torch.dtype) -> float:
    """By how much padding changes the numbers, if that is more than rounding in this dtype can do; else 0."""
    noise = float((alone.numbers - padded.numbers.view_as(alone.numbers)).abs().max())
    largest = float(alone.numbers.abs().max())
    share = max(COARSE * torch.finfo(torch.float32).eps, 8 * torch.finfo(dtype).eps)
    return noise if math.isfinite(noise) and noise > share * largest else 0.0


def computes_in(model: nn.Module) -> torch.dtype:
    """The dtype of a model's arithmetic."""
    dtype: torch.dtype | None = getattr(model, "autocast_dtype", None)
    return next(model.parameters()).dtype if dtype is None else dtype


def allowance(alone: Measurement, padded: Measurement) -> tuple[float, float]:
    """What a right layout may differ by: units of the numbers, and share of the gradient's norm.

    Some times what padding changes, and not less than a few units in the last place of float32, in which models normalise and
    sometimes attend whatever their own dtype is. A padded batch that is not finite (some attentions make NaN of padding on
    the left) says nothing.
    """
    unit = max(torch.finfo(torch.float32).eps, torch.finfo(alone.numbers.dtype).eps)
    distance, gradient = 4 * unit * float(alone.numbers.abs().max()), 4 * unit
    noise = float((alone.numbers - padded.numbers.view_as(alone.numbers)).abs().max())
    if math.isfinite(noise):
        distance = max(distance, noise)
        if alone.gradient is not None and padded.gradient is not None:
            gradient = max(gradient, float((alone.gradient - padded.gradient).norm() / alone.gradient.norm()))
    return SLACK * distance, SLACK * gradient


def plain_logprobs(model: nn.Module, groups: Sequence[GroupTokens]) -> Tensor:
    """The path of ``p3o.models.language``, which everything is compared with."""
    prompts, responses = collate_groups(groups, 0, time=LONGEST_RESPONSE)
    device = device_of(model)
    return response_logprobs(model, prompts.to(device), responses.to(device), temperature=PROBE_TEMPERATURE)


LONGEST_RESPONSE = 7


def random_groups(
    model: nn.Module, responses: int, window: int | None, ending: Sequence[int] = ()
) -> list[GroupTokens]:
    """Two groups of random tokens, prompts and responses of unequal length, one response of a single token, the first one with
    this ending. A prompt is longer than a short window of attention, so that the probe notices it."""
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(0, config.vocab_size, (count,), generator=generator).tolist()

    prompt = 9 if window is None or window > 64 else window + 3
    lengths = [[LONGEST_RESPONSE, 1, *[4] * (responses - 2)], [2, 5, *[3] * (responses - 2)]]
    groups = [
        GroupTokens(some(size), [some(length) for length in row[:responses]], [True] * responses)
        for size, row in zip((prompt, 4), lengths, strict=True)
    ]
    if ending:
        groups[0].responses[0][-len(ending) :] = ending
    return groups


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
        numbers = run()
        weights = torch.rand(numbers.numel(), generator=torch.Generator().manual_seed(1)).to(numbers)
        gradients = torch.autograd.grad((numbers.flatten() * weights).sum(), [output for _, output in records])
    ids = torch.tensor(sorted({i for group in groups for row in (group.prompt, *group.responses) for i in row}))
    total = gradients[0].new_zeros(len(ids), gradients[0].shape[-1])
    for (tokens, _), gradient in zip(records, gradients, strict=True):
        known = torch.isin(tokens, ids.to(tokens))
        total.index_add_(0, torch.searchsorted(ids.to(tokens), tokens[known]), gradient[known])
    return Measurement(numbers.detach(), total)


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
