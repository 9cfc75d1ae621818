"""The learner's weights to the servers: what every way has in common, and the way by broadcast; ``folders`` has the others.

In two steps. All processes *take* a version of the weights together, and where the policy is sharded that gathers it. Then the
first process *pushes* it to servers, as often as need be (a server that was lost and is back gets it again), and no other
process is asked for anything: nobody waits in a collective while a server answers or does not.

A push is all or nothing for each server by itself: the servers that failed are named with their reason, and have no work
until a later push to them succeeds. While weights change a server is paused with ``mode=wait``: what it works on is finished
with the old weights, and nothing begins before the new ones are whole.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from p3o.distributed.sharding import is_sharded
from p3o.errors import first_line
from p3o.rollouts.http import ServerError
from p3o.rollouts.links import Link
from p3o.rollouts.server import VLLMServer
from p3o.rollouts.weights import HeldWeights, Weights, for_first, on_the_cpu

TRIES = 3
"""Times that a version is sent to several servers together, before each that has missed it gets it by itself."""

Push = Callable[[Sequence[VLLMServer]], dict[str, str]]
"""Gives servers a version of the weights. Returns why it failed, by address of the server. For one thread at a time."""


@runtime_checkable
class Publisher(Protocol):
    """One way to give weights to servers."""

    def take(self, model: nn.Module, version: str) -> Push:
        """The model's weights under the name of ``version``, ready for the servers; all processes call it.

        A whole model is read when it is pushed, and must stay as it is until a later version was pushed; a sharded one is
        gathered now, and may change at once.

        Raises:
            P3OError: on all processes, if there is no room for files.
        """

    def version(self, server: VLLMServer, expected: str) -> str:
        """Of the weights that the server has.

        Raises:
            ServerError: if it cannot be asked.
        """

    def model(self, served: str, version: str) -> str:
        """The model to name in a request: ``served`` is the server's own."""

    def forget(self, server: VLLMServer) -> None:
        """It is lost: whatever connects us is worth nothing now."""

    def close(self) -> None:
        """Give back connections and files."""


def each(
    servers: Sequence[VLLMServer], action: Callable[[VLLMServer], Any], failed: dict[str, str]
) -> list[VLLMServer]:
    """Do something with all servers at once; those that it failed with go to ``failed``, the others are returned."""
    if not servers:
        return []
    with ThreadPoolExecutor(len(servers)) as executor:
        futures = [executor.submit(action, server) for server in servers]
    for server, future in zip(servers, futures, strict=True):
        error = future.exception()
        if isinstance(error, (ServerError, RuntimeError)):
            failed[server.url] = str(error)
        elif error is not None:
            raise error
    return [server for server in servers if server.url not in failed]


def pause(server: VLLMServer) -> None:
    """Let it finish what it works on, and begin nothing."""
    server.post("/pause", mode="wait")


def resume(server: VLLMServer) -> None:
    """Let it go on, with nothing left in its caches of what earlier weights made."""
    server.post("/reset_prefix_cache")
    server.post("/resume")


def begin(server: VLLMServer) -> None:
    """Let it expect new weights."""
    try:
        server.post("/start_weight_update")
    except ServerError as error:
        if error.kind != "broken":
            raise
        # vLLM refuses while an update is open, as one is that a learner began and did not live to end.
        try:
            server.post("/finish_weight_update")
        except ServerError:
            raise error from None
        server.post("/start_weight_update")


class Broadcast:
    """Tensor by tensor over one link to all servers at once, which lasts as long as they stay the same and nothing fails.

    One that goes away in the middle ends the transfer for all. Those that are left meet anew and get all of it again; where
    that fails as well, though all say that they are well, each gets it by itself: nobody is lost for what another one does. A
    server that fails by itself is given nothing together with others until it has taken a version by itself.

    Of a sharded model the first process holds the whole on its CPU, as long as servers may ask for it.

    Args:
        connect: opens a link to servers.
        dtype: of what is sent; None: as the weights rest.
    """

    def __init__(self, connect: Callable[[Sequence[VLLMServer]], Link], dtype: torch.dtype | None = None) -> None:
        self.connect, self.dtype = connect, dtype
        self.link: Link | None = None
        self.linked: list[str] = []
        self.apart: set[str] = set()

    def take(self, model: nn.Module, version: str) -> Push:
        """As ``Publisher.take``."""
        weights = Weights(model, self.dtype)
        held = for_first(weights, on_the_cpu) if is_sharded(model) else weights
        return partial(self._push, held or HeldWeights({}), version)

    def _push(self, weights: Weights | HeldWeights, version: str, servers: Sequence[VLLMServer]) -> dict[str, str]:
        failed: dict[str, str] = {}
        together = [server for server in servers if server.url not in self.apart]
        for _ in range(TRIES):
            if len(together) < 2:
                break
            missed = self._give(weights, version, together, failed)
            together = each([server for server in together if server.url in missed], VLLMServer.health, failed)
        for server in (*together, *(server for server in servers if server.url in self.apart)):
            failed |= self._give(weights, version, [server], failed)
            if server.url in failed:
                self.apart.add(server.url)
            else:
                self.apart.discard(server.url)
        return failed

    def _give(
        self, weights: Weights | HeldWeights, version: str, servers: Sequence[VLLMServer], failed: dict[str, str]
    ) -> dict[str, str]:
        """Send a version to these. Those that fail by themselves go to ``failed``; returned is why others missed it, by
        address: what ends a meeting or a transfer for one ends it for all."""
        ready = each(servers, pause, failed)
        if not ready:
            return {}
        try:
            link = self._link_to(ready)
        except (ServerError, RuntimeError) as error:
            return {server.url: str(error) for server in ready}
        begun = each(ready, begin, failed)
        if begun != ready:
            self._cut()  # a broadcast is for all that met
            return {server.url: "another server could not begin" for server in begun}
        missed = self._send(link, weights, begun)
        received = [server for server in begun if server.url not in missed]
        finished = each(
            received, lambda server: server.post("/finish_weight_update", {"weight_version": version}), failed
        )
        each(finished, resume, failed)
        return missed

    def _link_to(self, servers: Sequence[VLLMServer]) -> Link:
        urls = [server.url for server in servers]
        if self.link is None or urls != self.linked:
            self._cut()
            self.link, self.linked = self.connect(servers), urls
        return self.link

    def _send(self, link: Link, weights: Weights | HeldWeights, servers: Sequence[VLLMServer]) -> dict[str, str]:
        """Everything, once, to all; returned is why some have not got it whole, by address. Then the link is closed."""
        shapes = weights.shapes()
        announcement = {
            "names": [shape.name for shape in shapes],
            "dtype_names": [str(shape.dtype).removeprefix("torch.") for shape in shapes],
            "shapes": [list(shape.size) for shape in shapes],
        }
        with ThreadPoolExecutor(len(servers)) as executor:
            replies = {
                server.url: executor.submit(server.post, "/update_weights", {"update_info": announcement})
                for server in servers
            }
            broken = "broken off"
            try:
                broken = _broadcast(link, weights, list(replies.values()))
            finally:
                if broken:
                    self._cut()  # or they wait for what will not come
        missed: dict[str, str] = {}
        each(servers, lambda server: replies[server.url].result(), missed)
        if missed:
            self._cut()
        return {url: f"{reason} ({broken})" if broken else reason for url, reason in missed.items()}

    def version(self, server: VLLMServer, expected: str) -> str:  # noqa: ARG002 - as Publisher
        """As the server says."""
        return server.weight_version()

    def model(self, served: str, version: str) -> str:  # noqa: ARG002 - as Publisher
        """The server's own model."""
        return served

    def forget(self, server: VLLMServer) -> None:
        """Close the link if it is one of those at the other end: they meet anew for the next push."""
        if server.url in self.linked:
            self._cut()

    def _cut(self) -> None:
        link, self.link, self.linked = self.link, None, []
        if link is not None:
            link.close()

    def close(self) -> None:
        """Close the link."""
        self._cut()


def _broadcast(link: Link, weights: Weights | HeldWeights, replies: "Sequence[Future[Any]]") -> str:
    """Send every tensor while the servers' replies are not there yet. What went wrong, or nothing."""
    for name, tensor in weights:
        if any(reply.done() for reply in replies):
            return "one of the servers did not wait for the end"
        try:
            link.send(tensor)
        except RuntimeError as error:
            return f"{name}: {first_line(error)}"
    return ""
