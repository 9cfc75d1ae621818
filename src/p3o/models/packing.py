"""Groups as rows for a model: one row per prompt with all its responses, or one row per response.

A shared row is [prompt | y1 | … | yK]. Position ids start again after the prompt for every response, and a mask lets a
response see the prompt and itself. The last token of a response predicts nothing and is no input; its first token is predicted
from the last position of the prompt, which therefore predicts K tokens. Padding is on the right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from p3o.functional.devices import onto
from p3o.models.tokens import GroupTokens, pad_left, pad_right

UNREAD = 0
"""Stands at the end of a continuation; any id would do."""

PADDING = -1
"""Segment of a padded position; 0 is the prompt, 1 … K are the responses."""


@dataclass(frozen=True)
class Predictions:
    """Which logits predict which response tokens.

    Logits are numbered as the model's selected positions come: row by row, in the order of time.

    Attributes:
        rows: the number of the logits that predict each response token, rising.
        tokens: the response tokens, in the same order.
        places: where each token stands in [group, response, time], flattened.
        shape: (group, response, time).
        here: ``rows`` on the CPU, where these are on another device, which need not be asked then where a chunk ends.
    """

    rows: Int[Tensor, " token"]
    tokens: Int[Tensor, " token"]
    places: Int[Tensor, " token"]
    shape: tuple[int, int, int]
    here: Int[Tensor, " token"] | None = None

    def scattered(self, values: Float[Tensor, " token"]) -> Float[Tensor, "group response time"]:
        """One value per token as [group, response, time], 0 on padding."""
        flat = values.new_zeros(self.shape[0] * self.shape[1] * self.shape[2])
        return flat.index_put((self.places,), values).view(self.shape)

    def to(self, device: torch.device) -> "Predictions":
        """The same on another device."""
        rows, tokens, places = (onto(tensor, device) for tensor in (self.rows, self.tokens, self.places))
        return type(self)(rows, tokens, places, self.shape, self.rows if self.here is None else self.here)


@dataclass(frozen=True)
class Rows:
    """Input of a model.

    Attributes:
        tokens: ids; padding holds the fill.
        positions: position ids; 0 on padding.
        segments: 0 on the prompt, k on the k-th response of the row, −1 on padding.
        selected: the positions whose logits are wanted.
    """

    tokens: Int[Tensor, "row length"]
    positions: Int[Tensor, "row length"]
    segments: Int[Tensor, "row length"]
    selected: Bool[Tensor, "row length"]

    def to(self, device: torch.device) -> "Rows":
        """The same on another device."""
        return type(self)(*(onto(tensor, device) for tensor in vars(self).values()))

    @property
    def mask(self) -> Bool[Tensor, "row length"]:
        """True on everything but padding."""
        return self.segments != PADDING

    @property
    def visible(self) -> Bool[Tensor, "row 1 length length"]:
        """Whether a position (third axis) may attend to another (fourth axis).

        Padding sees the prompt and earlier padding: never nothing, which would make a softmax of no numbers, and it is seen
        by padding only.
        """
        length = self.tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.tokens.device).tril()
        query, key = self.segments.unsqueeze(-1), self.segments.unsqueeze(-2)
        return (causal & ((key == 0) | (key == query))).unsqueeze(1)


def shared_rows(groups: Sequence[GroupTokens], *, time: int, fill: int) -> tuple[Rows, Predictions]:
    """One row per group: [prompt | y1 | … | yK] without each response's last token."""
    tokens, positions, segments = [], [], []
    predicted = _Predicted(len(groups), time)
    for g, group in enumerate(groups):
        start = len(group.prompt)
        row, at, segment = list(group.prompt), list(range(start)), [0] * start
        predictor = predicted.take(1)
        firsts = [(k, response) for k, response in enumerate(group.responses) if response]
        for k, response in firsts:
            predicted.add(g, k, len(group.responses), response[:1], predictor)
        for k, response in firsts:
            inputs = response[:-1]
            predicted.add(g, k, len(group.responses), response[1:], predicted.take(len(inputs)), first=1)
            row += inputs
            at += range(start, start + len(inputs))
            segment += [k + 1] * len(inputs)
        tokens.append(row)
        positions.append(at)
        segments.append(segment)
    rows = _padded(tokens, positions, segments, fill, prompts=[len(group.prompt) for group in groups])
    return rows, predicted.result(groups)


def separate_rows(groups: Sequence[GroupTokens], *, time: int, fill: int) -> tuple[Rows, Predictions]:
    """One row per response: [prompt | y] without its last token."""
    tokens, positions, segments, prompts = [], [], [], []
    predicted = _Predicted(len(groups), time)
    for g, group in enumerate(groups):
        for k, response in enumerate(group.responses):
            predictors = predicted.take(max(len(response), 1))
            predicted.add(g, k, len(group.responses), response, predictors)
            row = group.prompt + response[:-1]
            tokens.append(row)
            positions.append(list(range(len(row))))
            segments.append([0] * len(group.prompt) + [1] * (len(row) - len(group.prompt)))
            prompts.append(len(group.prompt))
    return _padded(tokens, positions, segments, fill, prompts=prompts), predicted.result(groups)


@dataclass(frozen=True)
class SplitRows:
    """Prompts, then responses that continue the prompts' cache.

    Attributes:
        prompts: one row per group, padded on the left, the last position selected.
        responses: one row per response, padded on the right, without its last token; None if no response has two tokens.
        predictions: of the logits of ``prompts``, then of ``responses``.
    """

    prompts: Rows
    responses: Rows | None
    predictions: Predictions


def split_rows(groups: Sequence[GroupTokens], *, time: int, fill: int) -> SplitRows:
    """Each prompt once, each response once without its last token."""
    batch = pad_left([group.prompt for group in groups], fill)
    selected = torch.zeros_like(batch.mask)
    selected[:, -1] = True
    prompts = Rows(
        batch.tokens,
        (batch.mask.cumsum(-1) - 1).clamp(min=0),
        torch.where(batch.mask, 0, PADDING),
        selected,
    )
    predicted = _Predicted(len(groups), time)
    for g, group in enumerate(groups):
        predictor = predicted.take(1)
        for k, response in enumerate(group.responses):
            predicted.add(g, k, len(group.responses), response[:1], predictor)
    tokens, positions, segments = [], [], []
    for g, group in enumerate(groups):
        for k, response in enumerate(group.responses):
            inputs = response[:-1]
            predicted.add(g, k, len(group.responses), response[1:], predicted.take(len(inputs)), first=1)
            tokens.append(inputs)
            positions.append([len(group.prompt) + t for t in range(len(inputs))])
            segments.append([1] * len(inputs))
    responses = None
    if any(tokens):
        responses = _padded(tokens, positions, segments, fill)
    return SplitRows(prompts, responses, predicted.result(groups))


def shared_length(group: GroupTokens) -> int:
    """Positions of a group's shared row."""
    return len(group.prompt) + sum(max(len(response) - 1, 0) for response in group.responses)


def continuations(rows: Sequence[Sequence[int]]) -> GroupTokens | None:
    """Whole rows of ids as one group: the beginning that all of them share is its prompt, what follows are its responses.

    For a head that reads the state after a row's last token: every response has a token more than its row, of which no pass
    makes an input, and the state in which that token is chosen is the one after the row. Ids decide what is shared, not where
    a prompt ends in the text, so any tokenizer and template will do.

    Returns:
        None if there is one row only, or no first token that all share.
    """
    if len(rows) < 2:
        return None
    # Even of equal rows each keeps its last token to itself.
    limit = min(map(len, rows)) - 1
    shared = next((t for t in range(limit) if any(row[t] != rows[0][t] for row in rows)), max(limit, 0))
    if shared == 0:
        return None
    return GroupTokens(list(rows[0][:shared]), [[*row[shared:], UNREAD] for row in rows], [True] * len(rows))


def length_buckets(lengths: Sequence[int], budget: int, *, most: int | None = None) -> list[list[int]]:
    """Indices in batches of like length: rows · longest ≤ budget, padding counted, and no more than ``most`` rows.

    Longest first, so that a run that does not fit into memory says so at once. One that is longer than the budget is a batch
    of its own: with lengths of groups, groups are never split.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # The first of a batch is its longest.
        size = len(batches[-1]) + 1 if batches else 0
        if batches and size * lengths[batches[-1][0]] <= budget and (most is None or size <= most):
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


class _Predicted:
    """Collects :class:`Predictions` while rows are laid out."""

    def __init__(self, groups: int, time: int) -> None:
        self.groups, self.time, self.logits = groups, time, 0
        self.rows: list[int] = []
        self.tokens: list[int] = []
        self.places: list[int] = []

    def take(self, count: int) -> list[int]:
        """Number the next ``count`` selected positions."""
        self.logits += count
        return list(range(self.logits - count, self.logits))

    def add(
        self,
        group: int,
        response: int,
        responses: int,
        tokens: Sequence[int],
        predictors: Sequence[int],
        first: int = 0,
    ) -> None:
        """These tokens, from time ``first`` on, are predicted by these logits."""
        start = (group * responses + response) * self.time + first
        self.rows += predictors[: len(tokens)]
        self.tokens += tokens
        self.places += range(start, start + len(tokens))

    def result(self, groups: Sequence[GroupTokens]) -> Predictions:
        """All of them as tensors."""
        rows, tokens, places = (
            torch.tensor(values, dtype=torch.long) for values in (self.rows, self.tokens, self.places)
        )
        return Predictions(rows, tokens, places, (self.groups, len(groups[0].responses), self.time))


def _padded(
    tokens: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    segments: Sequence[Sequence[int]],
    fill: int,
    *,
    prompts: Sequence[int] | None = None,
) -> Rows:
    """Lists of unequal length as rows padded on the right; selected are the responses and, where there are prompts of these
    lengths, their last positions."""
    ids, _ = pad_right(tokens, fill)
    at, _ = pad_right(positions, 0)
    parts, _ = pad_right(segments, PADDING)
    selected = parts > 0
    if prompts is not None:
        selected[torch.arange(len(prompts)), torch.tensor(prompts) - 1] = True
    return Rows(ids, at, parts, selected)
