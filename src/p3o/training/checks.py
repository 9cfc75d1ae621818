"""What a trainer is told at its start and not in the middle: rows that the model cannot read, a policy with dropout.

The commands check the rows of their files before (``p3o.inputs``), with file and line; these hold for whoever calls a trainer.
"""

from collections.abc import Sequence

from torch import nn

from p3o.errors import P3OError, shorten
from p3o.models.language import context_limit

_NO_FIRST = "nothing predicts the first token of a response; start it with a token such as the tokenizer's BOS"


def check_mode(policy: nn.Module) -> None:
    """
    Raises:
        P3OError: if the policy is in training mode; with dropout its ratio to itself is not 1.
    """
    if policy.training:
        raise P3OError(
            "the policy is in training mode, where dropout changes the log-probs in every pass, so the importance "
            "ratio is never 1; call policy.eval() first (it still learns)"
        )


def check_prompts(
    policy: nn.Module, prompts: Sequence[str], encoded: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    """
    Raises:
        P3OError: at the first prompt that leaves no room for a response within what the model can read, or has no tokens to
            predict its first from.
    """
    limit = context_limit(policy)
    for number, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True), start=1):
        if not ids:
            raise P3OError(f"prompt {number}: it has no tokens, and {_NO_FIRST}")
        if limit is not None and len(ids) + max_new_tokens > limit:
            raise P3OError(
                f"prompt {number} ({shorten(prompt)}): {len(ids)} tokens and max_new_tokens {max_new_tokens} "
                f"exceed the model's limit of {limit}; shorten such prompts, leave them out, or lower max_new_tokens"
            )


def check_demonstrations(model: nn.Module, rows: Sequence[tuple[list[int], list[int]]]) -> None:
    """
    Raises:
        P3OError: at the first row of prompt and completion that is longer than the model can read, or has no prompt to
            predict the completion's first token from.
    """
    limit = context_limit(model)
    for number, (prompt, completion) in enumerate(rows, start=1):
        if not prompt:
            raise P3OError(f"demonstration {number}: its prompt has no tokens, and {_NO_FIRST}")
        if limit is not None and len(prompt) + len(completion) > limit:
            raise P3OError(
                f"demonstration {number}: {len(prompt)} + {len(completion)} tokens are more than the model can "
                f"read ({limit}); shorten it or leave it out"
            )
