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

from torch import Tensor, nn

from p3o.distributed.sharding import is_sharded
from p3o.rollouts.http import ServerError
from p3o.rollouts.links import Link
from p3o.rollouts.server import VLLMServer
from p3o.rollouts.weights import HeldWeights, Weights, for_first, on_the_cpu

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


class Broadcast:
    """Tensor by tensor over a link to each server. Of a sharded model the first process holds the whole on its CPU, as long as
    servers may ask for it.

    Args:
        connect: opens a link to a server.
    """

    def __init__(self, connect: Callable[[VLLMServer], Link]) -> None:
        self.connect = connect
        self.links: dict[str, Link] = {}

    def take(self, model: nn.Module, version: str) -> Push:
        """As ``Publisher.take``."""
        held = for_first(Weights(model), on_the_cpu) if is_sharded(model) else Weights(model)
        return partial(self._push, held or HeldWeights({}), version)

    def _push(self, weights: Weights | HeldWeights, version: str, servers: Sequence[VLLMServer]) -> dict[str, str]:
        failed: dict[str, str] = {}
        left = each(servers, self._prepare, failed)
        shapes = weights.shapes()
        announcement = {
            "names": [shape.name for shape in shapes],
            "dtype_names": [str(shape.dtype).removeprefix("torch.") for shape in shapes],
            "shapes": [list(shape.size) for shape in shapes],
        }
        with ThreadPoolExecutor(max(len(left), 1)) as executor:
            received = {
                server.url: executor.submit(server.post, "/update_weights", {"update_info": announcement})
                for server in left
            }
            for name, tensor in weights:
                for server in left:
                    if server.url not in failed:
                        self._send(server, received[server.url], name, tensor, failed)
        left = each([server for server in left if server.url not in failed], lambda s: received[s.url].result(), failed)
        left = each(left, lambda s: s.post("/finish_weight_update", {"weight_version": version}), failed)
        each(left, resume, failed)
        for url in failed:
            self._cut(url)
        return failed

    def _prepare(self, server: VLLMServer) -> None:
        pause(server)
        if server.url not in self.links:
            self.links[server.url] = self.connect(server)
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

    def _send(
        self, server: VLLMServer, received: "Future[Any]", name: str, tensor: Tensor, failed: dict[str, str]
    ) -> None:
        if received.done() and (error := received.exception()) is not None:
            failed[server.url] = str(error)  # it will not listen any more
            return
        try:
            self.links[server.url].send(tensor)
        except RuntimeError as error:
            failed[server.url] = f"{name}: {error}"
            self._cut(server.url)

    def version(self, server: VLLMServer, expected: str) -> str:  # noqa: ARG002 - as Publisher
        """As the server says."""
        return server.weight_version()

    def model(self, served: str, version: str) -> str:  # noqa: ARG002 - as Publisher
        """The server's own model."""
        return served

    def forget(self, server: VLLMServer) -> None:
        """Close the link; a new one is opened with the next push."""
        self._cut(server.url)

    def _cut(self, url: str) -> None:
        link = self.links.pop(url, None)
        if link is not None:
            link.close()

    def close(self) -> None:
        """Close all links."""
        for url in list(self.links):
            self._cut(url)
