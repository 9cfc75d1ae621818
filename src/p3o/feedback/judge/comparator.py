"""A judge as the feedback of RL: its verdicts on pairs of fresh responses are what the policy learns from."""

import math
from collections.abc import Callable, Sequence

from p3o.errors import P3OError, shorten
from p3o.feedback.judge.verdicts import Judge, verdict_rates
from p3o.feedback.missing import may_be_missing


class JudgeComparator:
    """A comparator in [−1, 1]: 1 where response a is better in both orders, 0 for a tie, −1 where b is better.

    An answer that names neither response prefers none, so it counts as a tie, and it is told how many there were. A question
    that got no answer at all leaves a gap: NaN where that is allowed (``p3o.feedback.missing``), else an error.

    Args:
        judge: asks in both orders.
        tell: told, in a line, of verdicts that are none.
    """

    def __init__(self, judge: Judge, *, tell: Callable[[str], None] = lambda _: None) -> None:
        self.judge, self.tell = judge, tell

    def __call__(self, prompts: Sequence[str], responses_a: Sequence[str], responses_b: Sequence[str]) -> list[float]:
        """One preference per pair.

        Raises:
            P3OError: if a question got no answer and has to have one; and as the judge does.
        """
        verdicts = self.judge.compare(prompts, responses_a, responses_b)
        rates = verdict_rates(verdicts)
        if rates.unjudged:
            self.tell(
                f"judge {self.judge.name}: of {rates.pairs} pairs, {rates.invalid} got no choice and count as "
                f"ties, {rates.failed} got no answer"
            )
        preferences = []
        for prompt, verdict in zip(prompts, verdicts, strict=True):
            if verdict.outcome == "failed" and not may_be_missing():
                reasons = [answer.error for answer in (verdict.forward, verdict.backward) if answer and answer.error]
                raise P3OError(
                    f"judge {self.judge.name}: no answer ({reasons[0]}; prompt {shorten(prompt)}); fix the "
                    f"endpoint and continue with --resume, or set on_fault: skip to drop such groups and count them"
                )
            gap = math.nan if verdict.outcome == "failed" else 0.0
            preferences.append(gap if verdict.preference is None else verdict.preference)
        return preferences
