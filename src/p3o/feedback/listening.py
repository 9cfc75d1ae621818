"""A server of ours on a socket: where it listens, what its address is, and how it says that it is there."""

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

from p3o.errors import P3OError
from p3o.files import plain_reason


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
        raise P3OError(f"{host}:{port}: cannot listen on this address: {reason}") from error
    return server


def address_of(server: socket.socket) -> str:
    """The URL that a client on this machine finds the server at."""
    host, port = server.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(server: socket.socket) -> bool:
    """Whether only this machine can reach the server."""
    return ipaddress.ip_address(server.getsockname()[0]).is_loopback


def serve_app(app: Any, server: socket.socket, *, ready: Callable[[], None] = lambda: None) -> None:
    """Serve an ASGI application until the process is told to stop (Ctrl-C, SIGTERM).

    Args:
        ready: called when the server listens.
    """
    import uvicorn

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    # No access log: links and what is sent are nobody else's business.
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    Announcing(config).run(sockets=[server])
