"""Asks an OpenAI-compatible endpoint: so many requests at a time, each sent again a bounded number of times.

Sent again, after a pause that doubles: time-outs, cut connections, 408, 409, 429, 5xx, and bodies that are no chat completion.
A pause that the server asks for (Retry-After) is kept, up to a minute. A request that is refused for what it asks (400, 413,
422) fails at once and alone; a refusal of the key or the model (401, 403, 404) ends the run, as every other question would
be refused too. So do ``give_up_after`` questions in a row that fail, so that a dead server does not hold a run for hours.

The key is read from the environment and goes into the request's header and nowhere else: whatever a server writes back is
searched for it before it is shown or kept.
"""

import asyncio
import math
import os
import random
import re
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from p3o.errors import P3OError, shorten
from p3o.feedback.judge.config import JudgeConfig
from p3o.feedback.judge.prompts import read_choice
from p3o.feedback.judge.sidebyside import Keep
from p3o.feedback.judge.verdicts import Answer

if TYPE_CHECKING:
    from openai import AsyncOpenAI

LONGEST_PAUSE = 60.0
"""Seconds."""

SURE = 50.0
"""Log-odds of a letter beyond which nothing changes; a server may call the other letter impossible."""

CANDIDATES = 20
"""Likeliest tokens that are asked for at each place: as many as OpenAI and vLLM give."""

_REFUSED = {401: "the key was refused", 403: "access was refused", 404: "there is no such model or path"}
_SENT_AGAIN = {408, 409, 425, 429}


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
        _check_address(config.base_url)
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
        _run(self._ask_all(questions, keep))

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
                        "The answers so far are kept: mend the endpoint and run again to go on"
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
                pause = self.config.backoff * 2**attempt * (0.75 + random.random() / 2)
                await asyncio.sleep(min(max(pause, wish), LONGEST_PAUSE))
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
            return Answer(None, error=self._told("connection failed", error.__cause__ or error)), 0.0
        except APIStatusError as error:
            status = error.status_code
            told = self._told(f"HTTP {status}", error)
            if status in _REFUSED:
                # The client's exception holds the request with its key, so it is not passed on.
                raise P3OError(
                    f"{self.identity}: {_REFUSED[status]} ({told}); check model, base_url and the key in {_named(config)}"
                ) from None
            retried = status in _SENT_AGAIN or status >= 500
            return Answer(None, error=told), _retry_after(error.response.headers) if retried else None
        except (APIError, ValueError, AttributeError, TypeError, LookupError, OverflowError, RecursionError) as error:
            # A body that is no chat completion: a proxy's error page, a cut-off JSON.
            return Answer(None, error=self._told("not a chat completion", error)), 0.0

    def _read(self, completion: Any) -> Answer:
        """The answer in a completion, whatever its server left out.

        Raises:
            AttributeError, TypeError, LookupError, ValueError, OverflowError: if it is none.
        """
        text = self._without_key(str(completion.choices[0].message.content or ""))
        choice, lean = read_choice(text), None
        if self.config.answer == "letter":
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
            served_by=self._without_key(str(getattr(completion, "model", "") or "")),
        )

    def _told(self, what: str, error: BaseException) -> str:
        message = " ".join(str(error).split()) or type(error).__name__
        return f"{what}: {shorten(self._without_key(message), 200)}"

    def _without_key(self, text: str) -> str:
        """Also without halves of surrogate pairs, which no file can hold."""
        text = text.encode(errors="backslashreplace").decode()
        return text.replace(self._key, "***") if self._key else text


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


def _check_address(base_url: str | None) -> None:
    """Addresses are written to files, so they may hold no user name, password or query."""
    if base_url is None:
        return
    try:
        parts = urlsplit(base_url)
    except ValueError as error:
        raise P3OError("base_url: not an address; write for example http://localhost:8000/v1") from error
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise P3OError(f"base_url: {shorten(base_url)} is no address; write for example http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query:
        raise P3OError(
            "base_url: holds a password or a query; give the key by the environment and the plain address here"
        )


def _key(config: JudgeConfig) -> str:
    """The key, "" if a server of one's own needs none."""
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", config.api_key_env):
        # It may be the key itself, so it is not repeated here.
        raise P3OError("api_key_env: not the name of an environment variable; write the variable's name, never the key")
    key = os.environ.get(config.api_key_env, "").strip()
    if not key and config.base_url is None:
        raise P3OError(f"the environment variable {config.api_key_env} is not set; put the key there, or give base_url")
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


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds; 0 if the server names none (or a date, which needs its clock to be ours)."""
    try:
        seconds = float(headers.get("retry-after", "0"))
        return seconds if seconds > 0 else 0.0  # also for NaN
    except ValueError:
        return 0.0


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, also under a loop that is running already, as in a notebook or a server."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()
