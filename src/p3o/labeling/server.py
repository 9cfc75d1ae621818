"""Serve the page, and say where."""

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p3o.errors import P3OError
from p3o.files import plain_reason
from p3o.labeling.app import make_app
from p3o.labeling.store import Store

ADMIN = "admin"


@dataclass(frozen=True)
class Link:
    """How someone logs in; ``token`` is None for one whose link was shown before."""

    name: str
    token: str | None


def links_for(store: Store, names: Sequence[str], *, renew: bool = False) -> list[Link]:
    """The admin's link and those of the annotators: new ones for names that are new, or for all with ``renew``.

    A link that was shown before cannot be shown again: the store holds only the token's hash.
    """
    known = {annotator.name for annotator in store.annotators()}
    everyone = [ADMIN, *[name for name in dict.fromkeys(map(str.strip, names)) if name != ADMIN]]
    links = []
    for name in everyone:
        if name not in known:
            links.append(Link(name, store.add_annotator(name, "admin" if name == ADMIN else "annotator")))
        else:
            links.append(Link(name, store.renew_token(name) if renew else None))
    return links


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one.

    Raises:
        P3OError: if the address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        server = socket.socket(family, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
    except OSError as error:
        reason = plain_reason(error) or f"{error.strerror}; choose another --port or --host"
        raise P3OError(f"{host}:{port}: cannot be listened on: {reason}") from error
    return server


def address_of(server: socket.socket) -> str:
    """The URL that a browser on this machine finds the server at."""
    host, port = server.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(server: socket.socket) -> bool:
    """Whether only this machine can reach the server."""
    return ipaddress.ip_address(server.getsockname()[0]).is_loopback


def serve(store: Store, server: socket.socket, *, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until the process is told to stop (Ctrl-C, SIGTERM). ``ready`` is called when the server listens."""
    import uvicorn

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    # No access log: the links in it are secrets.
    config = uvicorn.Config(make_app(store), log_level="warning", access_log=False, server_header=False)
    Announcing(config).run(sockets=[server])
