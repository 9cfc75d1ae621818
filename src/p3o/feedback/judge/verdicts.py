"""The words: an answer to one question, the verdict on one pair, and the rates that show whether a judge can be trusted."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Choice = Literal["first", "second"]
"""Which of the two responses, as they were shown."""

Advance = Callable[[int], object]
"""Called with the number of questions that were just done; a pair is two questions, one for each order."""


def unwatched(_count: int) -> None:
    """For callers that show no progress."""


@dataclass(frozen=True)
class Answer:
    """What came back for one question: one pair in one order.

    Attributes:
        choice: None if the text names neither response (invalid) or there is no text (failed).
        text: as the judge wrote it.
        error: why there is no answer; "" if there is one. A question that failed is asked again by the next run.
        input_tokens, output_tokens: as the endpoint counted them, 0 if it did not.
        served_by: the model's name as the endpoint gives it, often a dated snapshot.
        lean: log-odds of the response shown first, where the judge's own probabilities of the two letters are known.
    """

    choice: Choice | None
    text: str = ""
    error: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    served_by: str = ""
    lean: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What a judge says of responses A and B to one prompt.

    Attributes:
        preference: 1 if A is better, −1 if B is, 0 for a tie; a reward model grades in between. None if an order has no
            valid answer: such a pair is counted and takes no part in a win rate.
        reasons: what the judge wrote; one text for each order that was answered.
        forward: the answer with A shown first; None where nothing was shown side by side (scores, equal texts).
        backward: the answer with B shown first.
    """

    preference: float | None
    reasons: tuple[str, ...] = ()
    forward: Answer | None = None
    backward: Answer | None = None

    @property
    def outcome(self) -> Literal["a", "b", "tie", "invalid", "failed"]:
        """The preference as a word; "failed" if a question got no answer, "invalid" if an answer names no response."""
        if self.preference is None:
            answers = [answer for answer in (self.forward, self.backward) if answer is not None]
            return "failed" if any(answer.error for answer in answers) else "invalid"
        return "a" if self.preference > 0 else "b" if self.preference < 0 else "tie"

    @property
    def flipped(self) -> bool:
        """Both orders were answered and named different responses, that is, the same position twice."""
        if self.forward is None or self.backward is None or self.forward.choice is None:
            return False
        return self.forward.choice == self.backward.choice


@runtime_checkable
class Judge(Protocol):
    """Says which response is better."""

    name: str
    """For tables and files; holds no secret."""

    def compare(
        self,
        prompts: Sequence[str],
        responses_a: Sequence[str],
        responses_b: Sequence[str],
        *,
        advance: Advance = unwatched,
    ) -> list[Verdict]:
        """One verdict for each prompt, in order.

        Args:
            prompts: what was asked, as text.
            responses_a, responses_b: two responses to each.
            advance: told how many questions are done.

        Raises:
            P3OError: if the judge cannot be used at all, or a limit was reached. What was answered before is kept.
            ValueError: if the three lists are not equally long.
        """


@dataclass(frozen=True)
class VerdictRates:
    """Counts over pairs, and rates over what could have been otherwise. A rate is None where nothing could.

    Attributes:
        pairs: all of them: wins + ties + losses + invalid + failed.
        wins, ties, losses: of A.
        flips: pairs whose two orders contradict each other: ties, unless contradictions are averaged.
        invalid: pairs without a verdict because an answer names no response.
        failed: pairs without a verdict because a question got no answer.
        flip_rate: flips among pairs that were answered in both orders.
        first_position_rate: share of valid answers that chose the response shown first; ½ for an unbiased judge.
    """

    pairs: int
    wins: int
    ties: int
    losses: int
    flips: int
    invalid: int
    failed: int
    tie_rate: float | None
    invalid_rate: float | None
    flip_rate: float | None
    first_position_rate: float | None

    @property
    def unjudged(self) -> int:
        """Pairs without a verdict."""
        return self.invalid + self.failed


def verdict_rates(verdicts: Iterable[Verdict]) -> VerdictRates:
    """Count the verdicts."""
    verdicts = list(verdicts)
    outcomes = [verdict.outcome for verdict in verdicts]
    choices = [
        (v.forward.choice, v.backward.choice) for v in verdicts if v.forward is not None and v.backward is not None
    ]
    both = sum(None not in pair for pair in choices)
    valid = [choice for pair in choices for choice in pair if choice is not None]
    flips = sum(verdict.flipped for verdict in verdicts)
    judged = sum(outcome in ("a", "b", "tie") for outcome in outcomes)
    return VerdictRates(
        pairs=len(verdicts),
        wins=outcomes.count("a"),
        ties=outcomes.count("tie"),
        losses=outcomes.count("b"),
        flips=flips,
        invalid=outcomes.count("invalid"),
        failed=outcomes.count("failed"),
        tie_rate=_share(outcomes.count("tie"), judged),
        invalid_rate=_share(outcomes.count("invalid"), len(verdicts)),
        flip_rate=_share(flips, both),
        first_position_rate=_share(valid.count("first"), len(valid)),
    )


def check_lengths(prompts: Sequence[str], responses_a: Sequence[str], responses_b: Sequence[str]) -> None:
    """Check what ``compare`` was given.

    Raises:
        ValueError: if the lists are not equally long.
    """
    if not len(prompts) == len(responses_a) == len(responses_b):
        raise ValueError(f"{len(prompts)} prompts for {len(responses_a)} and {len(responses_b)} responses")


def _share(count: int, of: int) -> float | None:
    return count / of if of else None
