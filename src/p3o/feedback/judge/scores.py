"""Judges that are functions on this machine: rewards of each response by itself, or a Python function of two responses."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from p3o.errors import P3OError, shorten
from p3o.feedback.judge.verdicts import Advance, Answer, Verdict, check_lengths, unwatched

Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
Comparer = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]
"""(prompts, responses_a, responses_b) -> preferences in [−1, 1]; 1 where A is better."""

PORTION = 256
"""Pairs between two signs of progress."""


class ScoreJudge:
    """Prefers the higher reward. Each response is scored by itself, so there is no order to ask in.

    Args:
        scorer: the reward of (prompts, responses).
        name: for tables and files.
        log_odds: whether rewards are Bradley–Terry log-odds; the preference is then 2σ(r_A − r_B) − 1, else its sign.
    """

    def __init__(self, scorer: Scorer, *, name: str, log_odds: bool) -> None:
        self.scorer, self.name, self.log_odds = scorer, name, log_odds

    def compare(
        self,
        prompts: Sequence[str],
        responses_a: Sequence[str],
        responses_b: Sequence[str],
        *,
        advance: Advance = unwatched,
    ) -> list[Verdict]:
        """As ``Judge.compare``."""
        check_lengths(prompts, responses_a, responses_b)
        verdicts: list[Verdict] = []
        for start in range(0, len(prompts), PORTION):
            part = slice(start, start + PORTION)
            scores = [list(self.scorer(prompts[part], texts[part])) for texts in (responses_a, responses_b)]
            verdicts += [self._verdict(a, b) for a, b in zip(*scores, strict=True)]
            advance(2 * (len(verdicts) - start))
        return verdicts

    def _verdict(self, a: float, b: float) -> Verdict:
        if not (math.isfinite(a) and math.isfinite(b)):
            return Verdict(None, (f"scores {a} and {b}",), Answer(None, error="a score is not finite"))
        sign = float((a > b) - (a < b))
        return Verdict(math.tanh((a - b) / 2) or sign if self.log_odds else sign, (f"scores {a:.6g} and {b:.6g}",))


class FunctionJudge:
    """A Python function that compares; it is asked in both orders as any judge is, and a contradiction is a tie."""

    def __init__(self, function: Comparer, *, name: str) -> None:
        self.function, self.name = function, name

    def compare(
        self,
        prompts: Sequence[str],
        responses_a: Sequence[str],
        responses_b: Sequence[str],
        *,
        advance: Advance = unwatched,
    ) -> list[Verdict]:
        """As ``Judge.compare``.

        Raises:
            P3OError: if the function raises, or returns anything but a number in [−1, 1] for each pair.
        """
        check_lengths(prompts, responses_a, responses_b)
        verdicts: list[Verdict] = []
        for start in range(0, len(prompts), PORTION):
            part = slice(start, start + PORTION)
            texts = list(prompts[part]), list(responses_a[part]), list(responses_b[part])
            forward, backward = self._call(*texts), self._call(texts[0], texts[2], texts[1])
            verdicts += [_combined(f, b) for f, b in zip(forward, backward, strict=True)]
            advance(2 * (len(verdicts) - start))
        return verdicts

    def _call(self, prompts: list[str], first: list[str], second: list[str]) -> list[float]:
        try:
            returned: Any = self.function(prompts, first, second)
        except (Exception, SystemExit) as error:
            raise P3OError(
                f"judge {self.name!r} raised {type(error).__name__}: {error}; mend it and run again"
            ) from error
        values = returned.tolist() if hasattr(returned, "tolist") else returned
        if not isinstance(values, Sequence) or isinstance(values, str | bytes) or len(values) != len(prompts):
            raise P3OError(f"judge {self.name!r} returned {shorten(returned)}; return a list of {len(prompts)} numbers")
        for index, value in enumerate(values):
            if isinstance(value, str) or not isinstance(value, int | float) or not -1 <= value <= 1:
                raise P3OError(
                    f"judge {self.name!r} returned {shorten(value)} for pair {index}; return numbers in [-1, 1]"
                )
        return [float(value) for value in values]


def _combined(forward: float, backward: float) -> Verdict:
    """``forward`` is in favour of A, shown first; ``backward`` in favour of B, shown first. A value of 0 is a tie."""
    answers = Answer(_choice(forward), f"{forward:+.4g}"), Answer(_choice(backward), f"{backward:+.4g}")
    agreed = forward * backward < 0 or forward == backward == 0
    return Verdict((forward - backward) / 2 if agreed else 0.0, (answers[0].text, answers[1].text), *answers)


def _choice(preference: float) -> Any:
    return "first" if preference > 0 else "second" if preference < 0 else None
