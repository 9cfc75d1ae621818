"""JSON over HTTP with a limit on the whole exchange, and one exception for all that can go wrong.

By the standard library: a learner needs no client package, and a time limit that holds for a server which sends one byte a
minute, too.
"""

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from typing import Any, Literal
from urllib.parse import urlsplit

from p3o.errors import first_line, shorten

MOST_BYTES = 1 << 30
"""Of a reply; a thousand times what K responses take."""

LONGEST_PAUSE = 60.0
"""Seconds: a longer Retry-After is cut."""


class ServerError(Exception):
    """What a server did in the place of answering.

    Attributes:
        kind: ``lost`` (no connection, or none in time), ``busy`` (429, 503), ``broken`` (another 5xx, or a reply that is not
            what it should be), ``refused`` (another 4xx: the same request would be refused again), ``missing`` (404),
            ``stale`` (it has other weights than it should).
        pause: seconds that a busy server asked for.
    """

    def __init__(
        self,
        kind: Literal["lost", "busy", "broken", "refused", "missing", "stale"],
        message: str,
        *,
        pause: float = 1.0,
    ) -> None:
        super().__init__(message)
        self.kind, self.pause = kind, pause


def call(
    method: Literal["GET", "POST"],
    url: str,
    body: dict[str, Any] | None,
    *,
    timeout: int | float,
    key: str | None = None,
    lines: set[socket.socket] | None = None,
) -> Any:
    """The parsed JSON of the reply; None for an empty or plain-text one. The connection stands in ``lines`` while it is open,
    so that another thread can cut it.

    Raises:
        ServerError: for everything but a 2xx reply that can be read, within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    try:
        status, headers, data = _exchange(method, url, body, deadline, key, set() if lines is None else lines)
    except (OSError, http.client.HTTPException) as error:  # a time-out is an OSError
        reason = f"no reply in {timeout:g} s" if isinstance(error, TimeoutError) else first_line(error)
        raise ServerError("lost", f"{method} {_path(url)}: {reason}") from error
    if not 200 <= status < 300:
        raise _refusal(f"{method} {_path(url)}", status, headers.get("Retry-After"), data)
    if not data or "json" not in (headers.get("Content-Type") or ""):
        return None
    try:
        return json.loads(data)
    except ValueError as error:
        raise ServerError("broken", f"{method} {_path(url)}: the reply is no JSON ({shorten(data[:40])})") from error


def _exchange(
    method: str,
    url: str,
    body: dict[str, Any] | None,
    deadline: float,
    key: str | None,
    lines: set[socket.socket],
) -> tuple[int, http.client.HTTPMessage, bytes]:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    timeout = _left(deadline)
    connection = (
        http.client.HTTPSConnection(host, port, timeout=timeout, context=ssl.create_default_context())
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=timeout)
    )
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    line = alarm = reply = None
    try:
        connection.connect()
        line = connection.sock
        lines.add(line)
        # A limit of the socket holds for each wait by itself, and a reply's head may come a byte at a time.
        alarm = threading.Timer(_left(deadline), _shut, [line])
        alarm.daemon = True
        alarm.start()
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, None if body is None else json.dumps(body), headers)
        line.settimeout(_left(deadline))
        reply = connection.getresponse()
        chunks, size = list[bytes](), 0
        while True:
            line.settimeout(_left(deadline))
            chunk = reply.read1(1 << 16)
            if not chunk:
                if reply.length:  # fewer bytes than announced
                    raise http.client.IncompleteRead(b"", reply.length)
                return reply.status, reply.headers, b"".join(chunks)
            chunks.append(chunk)
            size += len(chunk)
            if size > MOST_BYTES:
                raise http.client.HTTPException("the reply does not end")
    except (OSError, http.client.HTTPException):
        _left(deadline)  # what the alarm made of a line is told as what it is
        raise
    finally:
        if alarm is not None:
            alarm.cancel()
        if reply is not None:
            reply.close()
        if line is not None:
            lines.discard(line)
        connection.close()


def _shut(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _path(url: str) -> str:
    return urlsplit(url).path


def _refusal(what: str, status: int, retry_after: str | None, data: bytes) -> ServerError:
    message = f"{what}: {status} {shorten(_told(data), 300)}"
    if status in (429, 503):
        try:
            pause = min(max(float(retry_after or 1.0), 0.0), LONGEST_PAUSE)
        except ValueError:  # a date
            pause = 1.0
        return ServerError("busy", message, pause=pause)
    if status == 404:
        return ServerError("missing", message)
    return ServerError("refused" if 400 <= status < 500 else "broken", message)


def _told(data: bytes) -> str:
    """What the reply says about the error, in OpenAI's form, FastAPI's or as text."""
    try:
        body = json.loads(data)
        told = body.get("error", body.get("detail", body))
        return str(told["message"] if isinstance(told, dict) and "message" in told else told)
    except (ValueError, AttributeError):
        return data[:300].decode(errors="replace")
