"""Serve the page, and say where."""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p3o.feedback.listening import address_of, is_loopback, listen, serve_app
from p3o.labeling.app import make_app
from p3o.labeling.store import Store
from p3o.labeling.tables import ADMIN, LOG_IN

__all__ = ["ADMIN", "Link", "address_of", "is_loopback", "links_for", "listen", "serve"]


@dataclass(frozen=True)
class Link:
    """How someone logs in; ``token`` is None for one whose link was shown before."""

    name: str
    token: str | None


def links_for(store: Store, names: Sequence[str], *, renew: bool = False) -> list[Link]:
    """The admin's link and those of the annotators: new ones for names that are new, or for all with ``renew``.

    A link that was shown before cannot be shown again: the store holds only the token's hash.

    Raises:
        P3OError: if a name is none, or a judge's. Nobody has a new link then.
    """
    known = {annotator.name for annotator in store.annotators() if annotator.role in LOG_IN}
    everyone = dict.fromkeys([ADMIN, *map(str.strip, names)])
    new = store.add_annotators(
        {name: "admin" if name == ADMIN else "annotator" for name in everyone if name not in known}
    )
    renewed = {name: store.renew_token(name) for name in everyone if renew and name in known}
    return [Link(name, (new | renewed).get(name)) for name in everyone]


def serve(store: Store, server: socket.socket, *, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until the process is told to stop (Ctrl-C, SIGTERM). ``ready`` is called when the server listens."""
    serve_app(make_app(store), server, ready=ready)
