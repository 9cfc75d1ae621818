"""Scores of a sequence classifier on group rows: what rows of a group have in common is read once.

A classifier of transformers reads all positions and keeps the score of one: of the last token that is not its padding id. On
the rows of a layout that is one position of every response; a hook on the head takes these scores out of the classifier's own
forward, so adapters, sharded weights and arithmetic in another dtype stay the model's own.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from p3o.models.adapters import plain_model
from p3o.models.heads import HEADS
from p3o.models.layouts import Layout
from p3o.models.packing import continuations
from p3o.models.selection import Call, full_precision
from p3o.models.tokens import GroupTokens


def score_head(model: nn.Module) -> nn.Module | None:
    """The head of a sequence classifier, adapted or not; None if it has none by the names that transformers uses."""
    inner = plain_model(model)
    return next((getattr(inner, name) for name in HEADS if hasattr(inner, name)), None)


def numbered_positions(model: nn.Module) -> int | None:
    """How many tokens a model of RoBERTa's kind can read, which numbers them from behind its padding id on; None for others."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    return None


def part_read(row: Sequence[int], *, fill: int) -> Sequence[int]:
    """A row of ids up to where the classifier reads it: the last token that is not its padding id."""
    return row[: max((t for t, token in enumerate(row) if token != fill), default=0) + 1]


def shared_part(rows: Sequence[Sequence[int]], *, fill: int) -> GroupTokens | None:
    """Rows of ids as one group, each up to where the classifier reads it; None if nothing can be read once for all.

    Args:
        rows: whole rows, beginning and end of sequence included.
        fill: the classifier's padding id, which may be the end of sequence, too.
    """
    return continuations([part_read(row, fill=fill) for row in rows])


def group_scores(
    model: nn.Module, layout: Layout, groups: Sequence[GroupTokens], *, fill: int
) -> Float[Tensor, "group response"]:
    """The score at the end of every response of :func:`shared_part`, with its graph.

    Args:
        model: a sequence classifier with a head that :func:`score_head` finds.
        layout: of the rows.
        groups: with the same number of responses each.
        fill: the classifier's padding id.
    """
    head = score_head(model)
    assert head is not None
    lengths = torch.tensor([[len(response) for response in group.responses] for group in groups])
    scores = layout.scalars(
        model, lambda call: _selected_scores(head, call), groups, time=int(lengths.max()), fill=fill
    )
    # The state in which a response's last token is chosen, which is no input, is that after the row.
    return scores.gather(-1, (lengths - 1).unsqueeze(-1).to(scores.device)).squeeze(-1)


def _selected_scores(head: nn.Module, call: Call) -> Float[Tensor, " selected"]:
    """What the head says at the selected positions of a pass."""
    seen: list[Tensor] = []
    handle = head.register_forward_hook(lambda _module, _arguments, scores: seen.append(scores[call.selected]))
    try:
        call.run()
    finally:
        handle.remove()
    return full_precision(seen[0].squeeze(-1))
