"""Feedback that is relative by nature: which of two responses is better, and by how much.

A comparator is any ``(prompts, responses_a, responses_b) -> numbers``, positive where response a is better. Two scales:

- ``preference``  in [−1, 1]: 2 p(a ≻ b) − 1 of a preference probability, or plain verdicts of 1, 0 and −1;
- ``log_odds``    log p(a ≻ b) / p(b ≻ a), any finite number. Under Bradley–Terry this is the reward difference r(a) − r(b).

Both orders are asked, since many judges favour a side: c(a, b) = ( f(a, b) − f(b, a) ) / 2 is antisymmetric whatever f does.
Nothing here makes preferences transitive. A reward cannot express a cycle a ≻ b ≻ c ≻ a; the matrix of all pairs can.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from p3o.feedback.functions import load_function
from p3o.feedback.orders import ComparisonFunction, Scale, ask_both_orders, together
from p3o.models.tokens import encode_prompts, encode_responses, pad_id, pad_right

_KIND = "comparison function"


@runtime_checkable
class Comparator(Protocol):
    """Antisymmetric: swapping the responses changes the sign and nothing else."""

    def __call__(
        self, prompts: Sequence[str], responses_a: Sequence[str], responses_b: Sequence[str]
    ) -> Sequence[float]:
        """One number per pair, positive where response a is better."""


def load_comparison_function(spec: str) -> ComparisonFunction:
    """Import ``module:function``, a function of ``(prompts, responses_a, responses_b)``.

    Raises:
        P3OError: as of ``p3o.feedback.functions.load_function``.
    """
    parameters = ("prompts", "responses_a", "responses_b")
    return cast(ComparisonFunction, load_function(spec, kind=_KIND, parameters=parameters))


@dataclass(frozen=True)
class FunctionComparator:
    """A user's function, asked in both orders and checked.

    Attributes:
        function: in one order.
        name: what to call it in an error.
        scale: "preference" refuses numbers outside [−1, 1].
        finite: False lets NaN and infinities through, for a caller that leaves such pairs out and counts them.
    """

    function: ComparisonFunction
    name: str
    scale: Scale = "preference"
    finite: bool = True

    def __call__(self, prompts: Sequence[str], responses_a: Sequence[str], responses_b: Sequence[str]) -> list[float]:
        """( f(a, b) − f(b, a) ) / 2 for each pair, both orders in one call.

        Raises:
            P3OError: as of ``p3o.feedback.orders.ask_both_orders``.
        """
        answers = ask_both_orders(
            self.function,
            prompts,
            responses_a,
            responses_b,
            kind=_KIND,
            name=self.name,
            scale=self.scale,
            finite=self.finite,
        )
        return [together(*both, "average") for both in answers]


class PairwisePreferenceModel:
    """A sequence classifier with one label that reads a prompt and two responses; its logit is the log-odds of the first.

    It compares what a reward model only scores, so it can hold preferences that are not transitive. It reads
    [prompt | response a, end | response b, end] in training and in use.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 64) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        # The classifier finds the last token by this id.
        model.config.pad_token_id = pad_id(tokenizer)

    def encode(self, prompts: Sequence[str], responses_a: Sequence[str], responses_b: Sequence[str]) -> list[list[int]]:
        """The ids that stand for each comparison, in this order of the responses."""
        columns = (
            encode_prompts(self.tokenizer, prompts),
            encode_responses(self.tokenizer, responses_a),
            encode_responses(self.tokenizer, responses_b),
        )
        return [prompt + a + b for prompt, a, b in zip(*columns, strict=True)]

    def forward(self, rows: Sequence[list[int]]) -> Float[Tensor, " row"]:
        """Log-odds of encoded rows in their own order, with their graph."""
        device = next(self.model.parameters()).device
        tokens, mask = pad_right(rows, pad_id(self.tokenizer))
        logits: Tensor = self.model(input_ids=tokens.to(device), attention_mask=mask.long().to(device)).logits
        return logits.squeeze(-1).float()

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], responses_a: Sequence[str], responses_b: Sequence[str]) -> list[float]:
        """Log-odds that response a is preferred, the mean of both orders."""
        rows = self.encode(prompts, responses_a, responses_b) + self.encode(prompts, responses_b, responses_a)
        logits = [self.forward(rows[i : i + self.batch_size]) for i in range(0, len(rows), self.batch_size)]
        forward, back = torch.cat(logits).double().chunk(2) if rows else torch.zeros(2, 0).double()
        return [float(number) for number in (forward - back) / 2]


def preference_matrix(
    compare: Comparator, prompts: Sequence[str], responses: Sequence[Sequence[str]]
) -> Float[Tensor, "group response response"]:
    """All comparisons of the K responses to each prompt: entry [g, i, j] says how much better response i is than j.

    Antisymmetric with a zero diagonal, in float64, in the comparator's scale. Each pair is asked once; equal texts are not
    asked and count as equal. It stands where an ``Experience`` has its ``reward_gaps``, with ``rewards`` None.

    Args:
        compare: is given all pairs of all groups at once.
        prompts: one per group.
        responses: the K responses of each group.

    Raises:
        ValueError: if the groups are not as many as the prompts, or not all of one size.
    """
    sizes = {len(group) for group in responses}
    if len(prompts) != len(responses) or len(sizes) > 1:
        raise ValueError(f"{len(prompts)} prompts for {len(responses)} groups of {sorted(sizes)} responses")
    size = sizes.pop() if sizes else 0
    asked = [
        (g, i, j) for g, group in enumerate(responses) for i, j in combinations(range(size), 2) if group[i] != group[j]
    ]
    columns = (
        [prompts[g] for g, _, _ in asked],
        [responses[g][i] for g, i, _ in asked],
        [responses[g][j] for g, _, j in asked],
    )
    matrix = torch.zeros(len(prompts), size, size, dtype=torch.float64)
    for (g, i, j), number in zip(asked, compare(*columns) if asked else (), strict=True):
        matrix[g, i, j], matrix[g, j, i] = number, -number
    return matrix
