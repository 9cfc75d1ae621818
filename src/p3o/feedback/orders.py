"""A user's comparison function, asked in both orders, and what two answers make together.

Many judges favour a side, so one order alone says little. Two ways to put the answers together (``Contradictions``):

- ``average``  half the difference of the two, antisymmetric whatever the function does: a taste for a side cancels, and what
               is left may be small. Learning from comparisons wants this one.
- ``tie``      the same where both orders name the same response, else 0: a contradiction is no verdict on the response.
               Win rates want this one, as they count signs.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from p3o.errors import P3OError, shorten
from p3o.feedback.functions import call_function

Scale = Literal["preference", "log_odds"]

Contradictions = Literal["tie", "average"]

ComparisonFunction = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]
"""A user's function, in one order: one number per pair, positive where response a is better."""


def ask_both_orders(
    function: ComparisonFunction,
    prompts: Sequence[str],
    responses_a: Sequence[str],
    responses_b: Sequence[str],
    *,
    kind: str,
    name: str,
    scale: Scale = "preference",
    finite: bool = True,
) -> list[tuple[float, float]]:
    """( f(a, b), f(b, a) ) of each pair, all in one call.

    Args:
        kind, name: what to call the function in an error.
        scale: "preference" refuses numbers outside [−1, 1].
        finite: False lets NaN and infinities through, for a caller that leaves such pairs out and counts them.

    Raises:
        P3OError: if the function raises, or returns the wrong count, something else than finite numbers, or numbers out of
            the scale.
    """
    columns = ([*prompts, *prompts], [*responses_a, *responses_b], [*responses_b, *responses_a])
    numbers = call_function(
        function, columns, kind=kind, name=name, row="comparison", value="preference", finite=finite
    )
    for number, prompt in zip(numbers, columns[0], strict=True):
        if scale == "preference" and math.isfinite(number) and abs(number) > 1:
            raise P3OError(
                f"{kind} {name!r} returned {number} (prompt {shorten(prompt)}); a preference is in [-1, 1]: return 2p - 1, "
                "or declare log-odds"
            )
    pairs = len(prompts)
    return list(zip(numbers[:pairs], numbers[pairs:], strict=True))


def together(forward: float, backward: float, contradictions: Contradictions) -> float:
    """One preference for A from two answers: ``forward`` in favour of A, shown first; ``backward`` of B, shown first."""
    agreed = forward * backward < 0 or forward == backward == 0
    return (forward - backward) / 2 if agreed or contradictions == "average" else 0.0
