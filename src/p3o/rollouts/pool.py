"""Several servers as one: bounded work for each, whole groups asked again elsewhere, lost servers taken back.

One thread decides (``Pool.run``); the others only wait for replies. A group is one request, hence one server; its responses
count only if the server has the expected version of the weights *after* it answered: a version's name is never used twice and a
server that starts again has none, so it had these weights all the time.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from p3o.errors import P3OError
from p3o.rollouts.http import ServerError
from p3o.rollouts.server import Completion, VLLMServer

STRIKES = 3
"""Broken replies in a row after which a server counts as lost."""

TICK = 0.05
"""Seconds between two looks when there is nothing to wait for."""

Ask = Callable[[VLLMServer, int], list[Completion]]
"""Asks a server for the group of this number. Raises ServerError."""


@dataclass
class Member:
    """A server and how it stands with it."""

    server: VLLMServer
    ready: bool = False
    reason: str = "no weights pushed yet"
    working: int = 0
    strikes: int = 0
    not_before: float = 0.0
    """Of the monotonic clock: a busy server's pause, a lost one's next check."""
    check: "Future[None] | None" = None


@dataclass
class Limits:
    """See ``RolloutConfig`` for each."""

    in_flight: int
    attempts: int
    check_every: float
    patience: float
    timeout: float


@dataclass
class Pool:
    """The servers of a run.

    Args:
        servers: all of them.
        limits: of work, attempts and waiting.
        rejoin: brings a server that answers again to the current weights; False if that failed.
        lost: told of every server that is lost.
        warn: told in words what changes.
    """

    servers: Sequence[VLLMServer]
    limits: Limits
    rejoin: Callable[[VLLMServer], bool]
    lost: Callable[[VLLMServer], None]
    warn: Callable[[str], None]
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.members = [Member(server) for server in self.servers]
        # One more for each: the check of a lost server must not wait for a request that it holds.
        self.executor = ThreadPoolExecutor(len(self.servers) * (self.limits.in_flight + 1), "rollout")

    @property
    def ready(self) -> list[VLLMServer]:
        """The servers that have the current weights, as far as is known."""
        return [member.server for member in self.members if member.ready]

    def admit(self, server: VLLMServer) -> None:
        """It has the current weights and gets work."""
        member = self._member(server)
        member.ready, member.strikes, member.not_before, member.check = True, 0, 0.0, None

    def dismiss(self, server: VLLMServer, reason: str) -> None:
        """It gets no work until it is well again and has been given the current weights."""
        member = self._member(server)
        if member.ready:
            self.warn(f"{server.url} is lost: {reason}")
            self.counts["servers_lost"] += 1
        member.ready, member.reason, member.check = False, reason, None
        member.not_before = time.monotonic() + self.limits.check_every
        server.cut()
        self.lost(server)

    def run(self, groups: int, ask: Ask) -> list[list[Completion]]:
        """Every group once, in order.

        Raises:
            P3OError: if a server refuses what is asked, a group fails too often, or no server is left for too long.
        """
        waiting, attempts = deque(range(groups)), Counter[int]()
        results: dict[int, list[Completion]] = {}
        asked: dict[Future[list[Completion]], tuple[int, Member]] = {}
        alone_since, arrived = None, time.monotonic()
        try:
            while len(results) < groups:
                self.look_after()
                self._hand_out(waiting, asked, ask)
                now = time.monotonic()
                if self.ready or asked:
                    alone_since = None
                else:
                    alone_since = alone_since or now
                    if now - alone_since > self.limits.patience:
                        raise P3OError(self.none_left())
                if now - arrived > self.limits.patience + 2 * self.limits.timeout:
                    raise P3OError(self.no_progress(now - arrived))
                if not asked:
                    time.sleep(TICK)
                    continue
                done, _ = wait(asked, timeout=TICK, return_when=FIRST_COMPLETED)
                for future in done:
                    group, member = asked.pop(future)
                    member.working -= 1
                    error = future.exception()
                    if error is None:
                        member.strikes = 0
                        results[group], arrived = future.result(), time.monotonic()
                        continue
                    attempts[group] += self._judge(member, error)
                    self.counts["asked_again"] += 1
                    if attempts[group] >= self.limits.attempts:
                        raise P3OError(
                            f"rl.rollout: a prompt was asked {attempts[group]} times in vain, the last time of "
                            f"{member.server.url}: {error}; look at the servers' logs, or raise rl.rollout.attempts"
                        )
                    waiting.appendleft(group)
        finally:
            for future, (_, member) in asked.items():  # empty unless an exception ends the run
                future.cancel()
                member.working -= 1
                member.server.cut()
        return [results[group] for group in range(groups)]

    def none_left(self) -> str:
        """Why there is no server, in one line."""
        states = "; ".join(f"{member.server.url}: {member.reason}" for member in self.members)
        return (
            f"rl.rollout.urls: no server is left after {self.limits.patience:g} s ({states}); start them again and go on with "
            "--resume"
        )

    def no_progress(self, seconds: float) -> str:
        """That nothing has come for so long, in one line."""
        return (
            f"rl.rollout: no responses for {seconds:.0f} s, though servers are there ({', '.join(s.url for s in self.ready)}); "
            "they may be overloaded: lower rl.rollout.in_flight or add servers, and go on with --resume"
        )

    def look_after(self) -> None:
        """Ask lost servers whether they are well, and take back those that are. Returns at once but for a push of weights."""
        now = time.monotonic()
        for member in self.members:
            if member.ready:
                continue
            if member.check is None:
                if now >= member.not_before and member.working == 0:
                    member.check = self.executor.submit(member.server.health)
                continue
            if not member.check.done():
                continue
            error, member.check = member.check.exception(), None
            member.not_before = now + self.limits.check_every
            if error is not None:
                member.reason = str(error)
            elif self.rejoin(member.server):
                self.counts["servers_rejoined"] += 1
                self.warn(f"{member.server.url} is back, with the current weights")

    def _hand_out(self, waiting: "deque[int]", asked: dict[Any, tuple[int, Member]], ask: Ask) -> None:
        """Groups to the servers that have the least to do, as long as there is room."""
        while waiting:
            now = time.monotonic()
            free = [
                member
                for member in self.members
                if member.ready and member.working < self.limits.in_flight and now >= member.not_before
            ]
            if not free:
                return
            member, group = min(free, key=lambda member: member.working), waiting.popleft()
            member.working += 1
            asked[self.executor.submit(ask, member.server, group)] = group, member

    def _judge(self, member: Member, error: BaseException) -> bool:
        """Draw the conclusions about the server of a failed request; whether it counts as an attempt of the group, too."""
        if not isinstance(error, ServerError):
            raise error
        if not member.ready:
            return False  # lost already for another group's request, and we cut this one
        if error.kind == "refused":
            raise P3OError(f"rl.rollout: {member.server.url} refuses what it is asked: {error}")
        if error.kind == "busy":
            self.counts["busy"] += 1
            member.not_before = time.monotonic() + error.pause
        elif error.kind in ("lost", "missing", "stale"):
            self.counts["wrong_version"] += error.kind != "lost"
            self.dismiss(member.server, str(error))
        else:
            self.counts["broken"] += 1
            member.strikes += 1
            if member.strikes >= STRIKES:
                self.dismiss(member.server, str(error))
        return error.kind != "busy"

    def _member(self, server: VLLMServer) -> Member:
        return next(member for member in self.members if member.server is server)

    def close(self) -> None:
        """Let the threads go; a request that still hangs is left to its time limit."""
        self.executor.shutdown(wait=False, cancel_futures=True)
