"""Asks an OpenAI-compatible endpoint: so many requests at a time, each sent again a bounded number of times.

``p3o.feedback.http`` says what is sent again. A request that is refused for what it asks fails at once and alone; a refusal of
the key or the model ends the run, as every other question would be refused too. So do ``give_up_after`` questions in a row
that fail, so that a dead server does not hold a run for hours.
"""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p3o.errors import P3OError, shorten
from p3o.feedback.http import (
    REFUSED,
    check_address,
    is_sent_again,
    pause_before_next,
    read_key,
    retry_after,
    run_to_the_end,
    told,
    without_key,
)
from p3o.feedback.judge.config import JudgeConfig
from p3o.feedback.judge.prompts import THOUGHT, read_choice
from p3o.feedback.judge.sidebyside import Keep
from p3o.feedback.judge.verdicts import Answer

if TYPE_CHECKING:
    from openai import AsyncOpenAI

SURE = 50.0
"""Log-odds of a letter beyond which nothing changes; a server may call the other letter impossible."""

CANDIDATES = 20
"""Likeliest tokens that are asked for at each place: as many as OpenAI and vLLM give."""


class EndpointAsker:
    """An asker of ``p3o.feedback.judge.sidebyside``.

    Raises:
        P3OError: if openai is not installed, the key is missing, or the address carries a secret.
    """

    def __init__(self, config: JudgeConfig) -> None:
        try:
            import openai  # noqa: F401
        except ImportError as error:
            raise P3OError("kind openai needs the openai client; install it with: pip install 'p3o[judge]'") from error
        self.config = config
        if config.base_url is not None:
            check_address(config.base_url, key="base_url", example="http://localhost:8000/v1")
        self._key = _key(config)
        self.identity = f"{config.model} at {config.base_url or 'api.openai.com'}"
        self.parameters: Mapping[str, Any] = {
            "temperature": config.temperature,
            "max_tokens": config.answer_tokens,
            "seed": config.seed,
            "extra_body": config.extra_body,
        } | ({"answer": "letter"} if config.answer == "letter" else {})

    def ask(self, questions: Sequence[str], keep: Keep) -> None:
        """As ``Asker.ask``."""
        run_to_the_end(self._ask_all(questions, keep))

    async def _ask_all(self, questions: Sequence[str], keep: Keep) -> None:
        from openai import AsyncOpenAI

        run = _Run(iter(enumerate(questions)), keep)
        # The attempts are ours to count, so the client makes one each. Without a key a local server still wants a header.
        client = AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self.config.base_url or "https://api.openai.com/v1",
            timeout=self.config.timeout,
            max_retries=0,
        )
        async with client:
            workers = min(self.config.concurrency, len(questions))
            await asyncio.gather(*(self._work(client, run) for _ in range(workers)))
        if run.stop is not None:
            raise run.stop

    async def _work(self, client: "AsyncOpenAI", run: "_Run") -> None:
        """Take the next question until there is none or the run has to stop; what is in flight is always kept."""
        for index, question in run.pending:
            try:
                answer = await self._answer(client, question)
                run.in_a_row = run.in_a_row + 1 if answer.error else 0
                run.keep(index, answer)
                if run.in_a_row >= self.config.give_up_after:
                    raise P3OError(
                        f"{self.identity}: {run.in_a_row} questions in a row failed, the last with: {answer.error}. "
                        "The answers so far are saved: fix the endpoint, then run again to continue"
                    )
            except P3OError as error:
                run.stop = run.stop or error
            if run.stop is not None:
                return

    async def _answer(self, client: "AsyncOpenAI", question: str) -> Answer:
        """One question, sent until it is answered or its attempts are used up.

        Raises:
            P3OError: if every other question would be refused as well.
        """
        error = ""
        for attempt in range(self.config.attempts):
            answer, wish = await self._attempt(client, question)
            if not answer.error or wish is None:
                return answer
            error = answer.error
            if attempt + 1 < self.config.attempts:
                await asyncio.sleep(pause_before_next(attempt, backoff=self.config.backoff, wish=wish))
        return Answer(None, error=f"{error}, {self.config.attempts} times")

    async def _attempt(self, client: "AsyncOpenAI", question: str) -> tuple[Answer, float | None]:
        """An answer; beside a failed one, the seconds that the server wants us to wait, or None if to ask again is useless."""
        from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

        config = self.config
        optional = {"temperature": config.temperature, "seed": config.seed}
        # OpenAI's own models know only the newer name of the limit, many servers only the older one.
        limit = "max_completion_tokens" if config.base_url is None else "max_tokens"
        body = {limit: config.answer_tokens} | {name: value for name, value in optional.items() if value is not None}
        if config.answer == "letter":
            body |= {"logprobs": True, "top_logprobs": CANDIDATES}
        try:
            completion = await client.chat.completions.create(
                model=config.model or "",
                messages=[{"role": "user", "content": question}],
                extra_body=body | config.extra_body,
            )
            return self._read(completion), None
        except APITimeoutError:
            return Answer(None, error=f"no answer within {config.timeout:g} s"), 0.0
        except APIConnectionError as error:
            return Answer(None, error=told("connection failed", error.__cause__ or error, self._key)), 0.0
        except APIStatusError as error:
            status = error.status_code
            message = told(f"HTTP {status}", error, self._key)
            if status in REFUSED:
                # The client's exception holds the request with its key, so it is not passed on.
                raise P3OError(
                    f"{self.identity}: {REFUSED[status]} ({message}); check model, base_url and the key in {_named(config)}"
                ) from None
            wish = retry_after(error.response.headers) if is_sent_again(status) else None
            return Answer(None, error=message), wish
        except (APIError, ValueError, AttributeError, TypeError, LookupError, OverflowError, RecursionError) as error:
            # A body that is no chat completion: a proxy's error page, a cut-off JSON.
            return Answer(None, error=told("not a chat completion", error, self._key)), 0.0

    def _read(self, completion: Any) -> Answer:
        """The answer in a completion, whatever its server left out.

        Raises:
            AttributeError, TypeError, LookupError, ValueError, OverflowError: if it is none.
        """
        text = without_key(str(completion.choices[0].message.content or ""), self._key)
        choice, lean = read_choice(text), None
        # A model that thinks first has not come to its letter: what its thoughts could have begun with is no vote.
        if self.config.answer == "letter" and THOUGHT not in text:
            lean = letter_log_odds(getattr(completion.choices[0], "logprobs", None))
            # A server that sends no log-probs has at least written a letter, or not.
            choice = choice if lean is None else "first" if lean >= 0 else "second"
        usage = getattr(completion, "usage", None)
        return Answer(
            choice,
            text,
            lean=lean,
            input_tokens=_count(getattr(usage, "prompt_tokens", 0)),
            output_tokens=_count(getattr(usage, "completion_tokens", 0)),
            served_by=without_key(str(getattr(completion, "model", "") or ""), self._key),
        )


def letter_log_odds(logprobs: Any) -> float | None:
    """log p(A) − log p(B) at the first token whose likeliest candidates include one of the letters, None if there is none.

    A candidate counts for a letter whatever space or mark is around it ("A", " A", "**A"). A letter that is not among the
    candidates is given the probability of the least likely of them: it has no more.

    Raises:
        AttributeError, TypeError, ValueError: if the log-probs are not of the chat completions' form.
    """
    for position in getattr(logprobs, "content", None) or []:
        found: dict[str, list[float]] = {"A": [], "B": []}
        candidates = [(str(one.token), float(one.logprob)) for one in position.top_logprobs]
        for token, logprob in candidates:
            if (letter := token.strip(" \t\n*\"'`([{.:)]}▁Ġ")) in found:
                found[letter].append(logprob)
        if found["A"] or found["B"]:
            least = min(logprob for _, logprob in candidates)
            a, b = (_log_sum(found[letter]) if found[letter] else least for letter in "AB")
            if math.isnan(a - b):
                raise ValueError(f"log-probs {a} and {b}")
            return min(max(a - b, -SURE), SURE)
    return None


def _log_sum(logprobs: Sequence[float]) -> float:
    highest = max(logprobs)
    if highest == -math.inf:
        return highest
    return highest + math.log(sum(math.exp(one - highest) for one in logprobs))


@dataclass
class _Run:
    """What the workers of one run share; they take turns, so nothing needs a lock."""

    pending: Iterator[tuple[int, str]]
    keep: Keep
    in_a_row: int = 0
    stop: P3OError | None = None


def _key(config: JudgeConfig) -> str:
    """The key, "" if a server of one's own needs none."""
    key = read_key(config.api_key_env)
    if not key and config.base_url is None:
        raise P3OError(f"the environment variable {config.api_key_env} is not set; put the key there, or set base_url")
    return key


def _named(config: JudgeConfig) -> str:
    return f"the environment variable {config.api_key_env}"


def _count(tokens: Any) -> int:
    """A number of tokens that a server reports; 0 if it reports none.

    Raises:
        ValueError, TypeError, OverflowError: if that cannot be one.
    """
    count = int(tokens or 0)
    if not 0 <= count < 2**53:
        raise ValueError(f"{shorten(tokens)} tokens")
    return count
