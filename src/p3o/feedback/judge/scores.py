"""Judges that are functions on this machine: rewards of each response by itself, or a Python function of two responses."""

import math
from collections.abc import Callable, Sequence

from p3o.feedback.judge.verdicts import Advance, Answer, Choice, Verdict, check_lengths, unwatched
from p3o.feedback.orders import ComparisonFunction, Contradictions, ask_both_orders, together

Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]

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
    """A Python function that compares; it is asked in both orders as any judge is.

    Args:
        function: preferences in [−1, 1] of (prompts, responses_a, responses_b), 1 where A is better.
        name: for tables, files and errors.
        contradictions: what two answers make that name different responses.
    """

    def __init__(self, function: ComparisonFunction, *, name: str, contradictions: Contradictions = "tie") -> None:
        self.function, self.name, self.contradictions = function, name, contradictions

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
            P3OError: as of ``p3o.feedback.orders.ask_both_orders``.
        """
        check_lengths(prompts, responses_a, responses_b)
        verdicts: list[Verdict] = []
        for start in range(0, len(prompts), PORTION):
            columns = (column[start : start + PORTION] for column in (prompts, responses_a, responses_b))
            for forward, backward in ask_both_orders(self.function, *columns, kind="judge", name=self.name):
                answers = [Answer(_choice(value), f"{value:+.4g}") for value in (forward, backward)]
                preference = together(forward, backward, self.contradictions)
                verdicts.append(Verdict(preference, tuple(answer.text for answer in answers), *answers))
            advance(2 * (len(verdicts) - start))
        return verdicts


def _choice(preference: float) -> Choice | None:
    return "first" if preference > 0 else "second" if preference < 0 else None
