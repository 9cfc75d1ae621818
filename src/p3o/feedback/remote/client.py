"""The reward function whose rewards are computed elsewhere: so many requests at a time, each sent a bounded number of times.

``p3o.feedback.http`` says what is sent again. Where a reward may be missing (``p3o.feedback.missing``), a response whose
request failed for good gets NaN, and the reason is told; a request that is refused for what it holds is cut in halves until
the response that the server will not have is alone. Otherwise the first failure is an error.
"""

import asyncio
import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from p3o.errors import P3OError, shorten
from p3o.feedback.conversations import Conversations
from p3o.feedback.http import REFUSED, is_sent_again, pause_before_next, read_key, retry_after, run_to_the_end, told
from p3o.feedback.missing import may_be_missing
from p3o.feedback.remote.config import RewardServiceConfig
from p3o.feedback.remote.interfaces import INTERFACES, Row

if TYPE_CHECKING:
    import httpx

Encode = Callable[[Sequence[str], Sequence[str]], list[list[int]]]
"""(prompts, responses) -> the ids that the reward model reads."""


class RemoteReward:
    """The reward function ``(prompts, responses) -> list[float]`` of a reward service.

    Args:
        config: where it is and how it is asked.
        conversations: the messages behind the policy's rendered prompts.
        encode: what the reward model reads, to send token ids; None sends texts.
        tell: told, in a line, why rewards are missing.

    Raises:
        P3OError: if httpx is not installed, or ``api_key_env`` is no name.
    """

    def __init__(
        self,
        config: RewardServiceConfig,
        *,
        conversations: Conversations | None = None,
        encode: Encode | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        try:
            import httpx  # noqa: F401
        except ImportError as error:
            raise P3OError("reward.service needs httpx; install it with: pip install 'p3o[serve]'") from error
        self.config = config
        self.interface = INTERFACES[config.interface]
        self.conversations: Conversations = conversations or {}
        self.encode, self.tell = encode, tell
        self.url = config.url + self.interface.path
        self._key = read_key(config.api_key_env)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """One reward per response, in order; NaN for those that could not be had, where that is allowed.

        Raises:
            P3OError: if a reward could not be had, is not finite, or the server refuses every request.
        """
        work = _Work(self.url, self._rows(prompts, responses), lenient=may_be_missing())
        work.pending.extend(self._batches(work.rows))
        if work.pending:
            run_to_the_end(self._work_off(work))
        if work.stop is not None:
            raise work.stop
        if work.reasons:
            missing = sum(not math.isfinite(reward) for reward in work.rewards)
            self.tell(f"{self.url}: {missing} of {len(work.rows)} rewards are missing; {work.reasons[0]}")
        return work.rewards

    def _rows(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Row]:
        ids = self.encode(prompts, responses) if self.encode is not None else [None] * len(prompts)
        return [
            Row(prompt, response, self.conversations.get(prompt), None if row is None else tuple(row))
            for prompt, response, row in zip(prompts, responses, ids, strict=True)
        ]

    def _batches(self, rows: Sequence[Row]) -> list[list[int]]:
        alone = [[i] for i, row in enumerate(rows) if self.interface.alone(row)]
        others = [i for i, row in enumerate(rows) if not self.interface.alone(row)]
        size = self.config.batch
        return [*(others[start : start + size] for start in range(0, len(others), size)), *alone]

    async def _work_off(self, work: "_Work") -> None:
        import httpx

        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        workers = min(self.config.concurrency, len(work.rows))
        limits = httpx.Limits(max_connections=workers)
        # The time of a whole request is limited by ``_attempt``: httpx only limits the time between two of its bytes.
        async with httpx.AsyncClient(headers=headers, timeout=None, limits=limits) as client:
            await asyncio.gather(*(self._worker(client, work) for _ in range(workers)))

    async def _worker(self, client: "httpx.AsyncClient", work: "_Work") -> None:
        while work.pending and work.stop is None:
            chosen = work.pending.popleft()
            try:
                await self._batch(client, work, chosen)
            except P3OError as error:
                work.stop = work.stop or error

    async def _batch(self, client: "httpx.AsyncClient", work: "_Work", chosen: list[int]) -> None:
        """Write the rewards of these rows.

        Raises:
            P3OError: if they could not be had and have to be, or nothing could be had of this server.
        """
        config = self.config
        body = self.interface.body([work.rows[i] for i in chosen], config.end)
        if config.model is not None:
            body["model"] = config.model
        # Escaped: what a model wrote may hold halves of surrogate pairs, and these have no UTF-8.
        content = json.dumps(body | config.extra_body).encode()
        reply = _Reply("nothing was asked")
        for attempt in range(config.attempts):
            reply = await self._attempt(client, content, len(chosen))
            if not reply.again or work.stop is not None:
                break
            if attempt + 1 < config.attempts:
                await asyncio.sleep(pause_before_next(attempt, backoff=config.backoff, wish=reply.wish))
        if reply.rewards is not None:
            for i, reward in zip(chosen, reply.rewards, strict=True):
                work.rewards[i] = reward
                if not math.isfinite(reward):
                    work.fail(f"the reward of a response is {reward}", i)
        elif work.lenient and not reply.again and len(chosen) > 1:
            half = len(chosen) // 2
            work.pending.extend((chosen[:half], chosen[half:]))
        else:
            times = f", {config.attempts} times" if reply.again and config.attempts > 1 else ""
            work.fail(f"{reply.error}{times}", chosen[0])

    async def _attempt(self, client: "httpx.AsyncClient", content: bytes, count: int) -> "_Reply":
        """Send a request once.

        Raises:
            P3OError: if every other request would be refused as well.
        """
        import httpx

        try:
            async with asyncio.timeout(self.config.timeout):
                response = await client.post(self.url, content=content)
        except TimeoutError:
            return _Reply(f"no answer within {self.config.timeout:g} s", again=True)
        except (httpx.HTTPError, OSError) as error:
            return _Reply(told("connection failed", error, self._key), again=True)
        status = response.status_code
        if not response.is_success:
            message = told(f"HTTP {status}", _complaint(response.text), self._key)
            if status in REFUSED:
                raise P3OError(
                    f"{self.url}: {REFUSED[status]} ({message}); check url, interface, model and the key in the "
                    f"environment variable {self.config.api_key_env}"
                )
            return _Reply(message, again=is_sent_again(status), wish=retry_after(response.headers))
        try:
            rewards = self.interface.rewards(response.json())
            if len(rewards) != count:
                raise ValueError(f"{len(rewards)} rewards for {count} responses")
            return _Reply(rewards=rewards)
        except (ValueError, RecursionError, OverflowError) as error:
            what = f"not a reply of the interface {self.config.interface}"
            return _Reply(told(what, error, self._key), again=True)


@dataclass(frozen=True)
class _Reply:
    """What came of sending a request once.

    Attributes:
        error: why there are no rewards.
        rewards: one for each row.
        again: whether to send it again may help.
        wish: seconds that the server wants us to wait before that.
    """

    error: str = ""
    rewards: list[float] | None = None
    again: bool = False
    wish: float = 0.0


@dataclass
class _Work:
    """What the workers of one call share; they take turns, so nothing needs a lock."""

    url: str
    rows: list[Row]
    lenient: bool
    pending: deque[list[int]] = field(default_factory=deque)
    rewards: list[float] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    stop: P3OError | None = None

    def __post_init__(self) -> None:
        self.rewards = [math.nan] * len(self.rows)

    def fail(self, reason: str, row: int) -> None:
        """Note why a reward is missing.

        Raises:
            P3OError: if none may be.
        """
        if not self.lenient:
            raise P3OError(
                f"{self.url}: {reason} (prompt {shorten(self.rows[row].prompt)}); fix the server and continue "
                f"with --resume, or set on_fault: skip to drop such groups and count them"
            )
        self.reasons.append(reason)


def _complaint(text: str) -> str:
    """What an error's body says: the message that OpenAI-style servers and ours put into it, else its text."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for name in ("error", "message", "detail"):
        found = found.get(name, found) if isinstance(found, dict) else found
    return found if isinstance(found, str) else text
