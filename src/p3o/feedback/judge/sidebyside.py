"""A judge that reads two texts side by side: both orders are asked, answers are kept, the cost is known beforehand."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol, runtime_checkable

from p3o.errors import P3OError
from p3o.feedback.conversations import Conversations, in_plain_words
from p3o.feedback.judge.cache import AnswerCache, Key, key_of
from p3o.feedback.judge.config import JudgeConfig
from p3o.feedback.judge.prompts import Question
from p3o.feedback.judge.verdicts import Advance, Answer, Verdict, check_lengths, unwatched
from p3o.feedback.orders import Contradictions, together

Keep = Callable[[int, Answer], None]
"""Called with the place of a question and its answer, once for each, in the order in which answers arrive."""


@runtime_checkable
class Asker(Protocol):
    """Answers questions: an endpoint, or a model on this machine."""

    identity: str
    """Model, and where it is served: answers of another model are other answers."""

    parameters: Mapping[str, Any]
    """What else shapes an answer. No key."""

    def ask(self, questions: Sequence[str], keep: Keep) -> None:
        """Answer every question; one that fails for good is kept with its error.

        Raises:
            P3OError: if there is no point in going on; answers that came before were kept.
        """


@dataclass(frozen=True)
class CostEstimate:
    """What a comparison will cost, from above but for retries.

    Attributes:
        questions: to be asked.
        known: questions that were answered by an earlier run.
        input_tokens: one for every three bytes of UTF-8; English has about four characters a token.
        output_tokens: the limit of an answer, for every question.
        cost: in the currency of the prices; None without prices.
        spent: on this model for all answers that the cache ever kept; None without prices.
    """

    questions: int
    known: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    spent: float | None = None


@dataclass(frozen=True)
class _Asked:
    """A question with the key of its answer."""

    key: Key
    first: str
    second: str
    prompt: str


class SideBySideJudge:
    """Asks each pair in both orders; if the answers do not name the same response, the verdict is a tie, or the average of
    the two where ``contradictions`` says so and the judge's probabilities are known.

    Two equal texts are a tie that nobody is asked about, and a question that occurs twice is asked once.
    """

    def __init__(
        self,
        asker: Asker,
        question: Question,
        cache: AnswerCache,
        config: JudgeConfig,
        conversations: Conversations | None = None,
    ) -> None:
        self.conversations: Conversations = conversations or {}
        self.asker, self.question, self.cache, self.config = asker, question, cache, config
        self.name = f"{config.model} ({question.name})"
        template = sha256(question.text.encode()).hexdigest()
        self._parameters = json.dumps({"template": template} | dict(asker.parameters), sort_keys=True)

    @property
    def spent(self) -> float | None:
        """Cost of all answers of this model that the cache ever kept, by the endpoint's own count of tokens: those of earlier
        runs and of other processes count as well. None without prices."""
        return self._price(*self.cache.tokens(self.asker.identity))

    def estimate(self, prompts: Sequence[str], responses_a: Sequence[str], responses_b: Sequence[str]) -> CostEstimate:
        """What ``compare`` of the same would ask and cost."""
        asked = self._questions(prompts, responses_a, responses_b)
        missing = self._missing(asked, self._known(asked))
        texts = [self._text(question) for question in missing]
        reading = sum(math.ceil(len(text.encode("utf-8", "replace")) / 3) for text in texts)
        writing = self.config.answer_tokens * len(texts)
        known, cost = len(asked) - len(missing), self._price(reading, writing)
        return CostEstimate(len(missing), known, reading, writing, cost, self.spent)

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
            P3OError: before the first question if what is spent already and the estimated cost exceed ``max_cost``, later if
                what is really spent does; and as the asker does.
        """
        asked = self._questions(prompts, responses_a, responses_b)
        answers = self._known(asked)
        missing = self._missing(asked, answers)
        if missing and self.config.max_cost is not None:
            self._check_cost(self.estimate(prompts, responses_a, responses_b), self.config.max_cost)
        advance(2 * len(prompts) - len(missing))

        def keep(index: int, answer: Answer) -> None:
            self.cache.keep(missing[index].key, answer)
            answers[missing[index].key] = answer
            advance(1)
            self._check_spent()

        if missing:
            self.asker.ask([self._text(question) for question in missing], keep)
        return [
            _verdict(
                a,
                b,
                *(answers.get(self._key(prompt, *pair)) for pair in ((a, b), (b, a))),
                contradictions=self.config.contradictions,
            )
            for prompt, a, b in zip(prompts, responses_a, responses_b, strict=True)
        ]

    def _questions(
        self, prompts: Sequence[str], responses_a: Sequence[str], responses_b: Sequence[str]
    ) -> dict[Key, _Asked]:
        """Every question once, in order."""
        check_lengths(prompts, responses_a, responses_b)
        questions: dict[Key, _Asked] = {}
        for prompt, a, b in zip(prompts, responses_a, responses_b, strict=True):
            for first, second in ((a, b), (b, a)) if a != b else ():
                key = self._key(prompt, first, second)
                questions.setdefault(key, _Asked(key, first, second, prompt))
        return questions

    def _key(self, prompt: str, first: str, second: str) -> Key:
        return key_of(self.asker.identity, in_plain_words(prompt, self.conversations), first, second, self._parameters)

    def _known(self, asked: Mapping[Key, _Asked]) -> dict[Key, Answer]:
        return self.cache.find(asked)

    def _missing(self, asked: Mapping[Key, _Asked], known: Mapping[Key, Answer]) -> list[_Asked]:
        again = self.config.ask_invalid_again
        return [
            question for key, question in asked.items() if key not in known or (again and known[key].choice is None)
        ]

    def _text(self, question: _Asked) -> str:
        return self.question.fill(in_plain_words(question.prompt, self.conversations), question.first, question.second)

    def _price(self, reading: int, writing: int) -> float | None:
        if self.config.price_input is None or self.config.price_output is None:
            return None
        return (reading * self.config.price_input + writing * self.config.price_output) / 1e6

    def _check_cost(self, estimate: CostEstimate, limit: float) -> None:
        if estimate.cost is None or estimate.spent is None or estimate.spent + estimate.cost <= limit:
            return
        before = f" and {estimate.spent:.4g} is already spent" if estimate.spent else ""
        raise P3OError(
            f"max_cost: {estimate.questions} questions may cost {estimate.cost:.4g}{before}, more than {limit:g}; "
            "nothing was asked. Raise max_cost or judge fewer prompts"
        )

    def _check_spent(self) -> None:
        if self.config.max_cost is None:
            return
        limit, spent = self.config.max_cost, self.spent
        if spent is not None and spent > limit:
            raise P3OError(
                f"max_cost: {spent:.4g} spent, more than {limit:g}; stopped. The answers are saved: raise "
                f"max_cost and run again to continue"
            )


def _verdict(
    a: str, b: str, forward: Answer | None, backward: Answer | None, *, contradictions: Contradictions
) -> Verdict:
    """Both orders made into one. ``forward`` showed A first, ``backward`` B."""
    if a == b:
        return Verdict(0.0, ("The two texts are equal.",))
    assert forward is not None and backward is not None  # an asker keeps an answer for every question
    reasons = tuple(answer.text for answer in (forward, backward) if answer.text)
    if forward.choice is None or backward.choice is None:
        return Verdict(None, reasons, forward, backward)
    graded = contradictions == "average"
    preference = together(_vote(forward, graded=graded), _vote(backward, graded=graded), contradictions)
    return Verdict(preference, reasons, forward, backward)


def _vote(answer: Answer, *, graded: bool) -> float:
    """In favour of the response shown first: ±1, or 2 p − 1 where its probability p is known and wanted."""
    if graded and answer.lean is not None:
        return math.tanh(answer.lean / 2)
    return 1.0 if answer.choice == "first" else -1.0
