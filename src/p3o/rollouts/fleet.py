"""The servers of a run with one version of the policy: given to them, checked, sampled from. Of several processes that learn
together the first one has the fleet, and nothing here asks the others for anything.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p3o.errors import P3OError
from p3o.rollouts.config import RolloutConfig
from p3o.rollouts.http import ServerError
from p3o.rollouts.pool import Limits, Pool
from p3o.rollouts.probe import check_weights
from p3o.rollouts.publishing import Publisher, Push, each
from p3o.rollouts.server import Completion, SamplingSettings, VLLMServer


@dataclass(frozen=True)
class Edition:
    """A version of the policy for the servers.

    Attributes:
        name: used once in the world: what an earlier run left on a server is never taken for ours.
        push: gives it to servers.
        logprobs: of the fixed text by the learner.
        seconds: that it took to make.
    """

    name: str
    push: Push
    logprobs: list[float]
    seconds: float


class Fleet:
    """All servers, from one batch to the next.

    Args:
        config: servers, limits, tolerance.
        publisher: how weights reach them.
        probe: ids of the fixed text whose log-probs are compared after every push.
        key: sent as bearer token.
        warn: told in words which servers are lost and back.
    """

    def __init__(
        self,
        config: RolloutConfig,
        publisher: Publisher,
        probe: Sequence[int],
        *,
        key: str | None,
        warn: Callable[[str], None],
    ) -> None:
        self.publisher, self.probe, self.tolerance = publisher, list(probe), config.probe_tolerance
        servers = [VLLMServer(url, timeout=config.timeout, key=key) for url in config.urls]
        limits = Limits(config.in_flight, config.attempts, config.check_every, config.patience, config.timeout)
        self.pool = Pool(servers, limits, rejoin=self._rejoin, lost=publisher.forget, warn=warn)
        self.edition: Edition | None = None
        self.begun = False
        self.served: dict[str, str] = {}
        self.told: dict[str, float] = {}
        # A batch is of one version: weights change between batches only, whoever asks from whichever thread.
        self.lock = threading.RLock()

    def issue(self, edition: Edition) -> None:
        """Give it to all servers that are well, and check that they have it.

        Raises:
            P3OError: if a server's log-probs of the fixed text are not the learner's, or at the first time no server can be
                reached.
        """
        with self.lock:
            started, first = time.monotonic(), not self.begun
            self.edition, self.begun = edition, True
            failed: dict[str, str] = {}
            well = each(self.pool.servers, self._greet, failed)
            failed |= edition.push(well)
            checked = each(
                [server for server in well if server.url not in failed], lambda s: self._check(s, edition), failed
            )
            for server in self.pool.servers:
                if server.url in failed:
                    self.pool.dismiss(server, failed[server.url])
            for server in checked:
                self.pool.admit(server)
            self.told["push_seconds"] = edition.seconds + time.monotonic() - started
            if first and not checked:
                raise P3OError(self.pool.none_left())

    def withdraw(self) -> None:
        """Make room for a new edition, when the batch under way is done."""
        with self.lock:
            self.edition = None

    def write(
        self, edition: Edition, prompts: Sequence[Sequence[int]], seeds: Sequence[int], settings: SamplingSettings
    ) -> list[list[Completion]]:
        """The responses to each prompt by this edition.

        Raises:
            P3OError: as ``Pool.run`` and ``issue``.
        """
        with self.lock:
            if self.edition is not edition:
                self.issue(edition)
            started = time.monotonic()

            def ask(server: VLLMServer, group: int) -> list[Completion]:
                model = self.publisher.model(self.served[server.url], edition.name)
                completions = server.complete(model, prompts[group], settings, seeds[group])
                self._confirm(server, edition, "it was started again")
                return completions

            groups = self.pool.run(len(prompts), ask)
            self.told["rollout_seconds"] = time.monotonic() - started
            return groups

    def _greet(self, server: VLLMServer) -> None:
        server.health()
        names = server.models()
        if not names:
            raise ServerError("broken", "it serves no model")
        self.served[server.url] = names[0]

    def _check(self, server: VLLMServer, edition: Edition) -> None:
        """The server's version, and the numbers that it gives with it."""
        self._confirm(server, edition, "it has just been given them")
        difference = check_weights(
            server,
            self.publisher.model(self.served[server.url], edition.name),
            self.probe,
            edition.logprobs,
            version=edition.name,
            tolerance=self.tolerance,
        )
        self.told["probe_difference"] = max(difference, self.told.get("probe_difference", 0.0))

    def _confirm(self, server: VLLMServer, edition: Edition, history: str) -> None:
        found = self.publisher.version(server, edition.name)
        if found != edition.name:
            raise ServerError("stale", f"its weights are {found!r} and not {edition.name!r}; {history}")

    def _rejoin(self, server: VLLMServer) -> bool:
        """Bring a server that answers again to the edition of the batch."""
        edition = self.edition
        if edition is None:
            return False
        failed: dict[str, str] = {}
        if each([server], self._greet, failed):
            failed |= edition.push([server])
        if not failed:
            each([server], lambda s: self._check(s, edition), failed)
        if failed:
            self.pool.dismiss(server, failed[server.url])
            return False
        self.pool.admit(server)
        return True

    def take_metrics(self) -> dict[str, int | float]:
        """What happened since this was last asked."""
        told, counts = self.told, self.pool.counts
        self.told, self.pool.counts = {}, type(counts)()
        names = ("asked_again", "servers_lost", "servers_rejoined", "wrong_version", "busy", "broken")
        return {**told, "servers": len(self.pool.ready), **{name: counts[name] for name in names if counts[name]}}

    def close(self) -> None:
        """End what is under way. The servers go on."""
        for server in self.pool.servers:
            server.cut()
        self.pool.close()
