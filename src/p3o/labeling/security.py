"""What stands between the page and everybody else: tokens, CSRF, rate limits, size limits, headers.

A session is the annotator's token in a cookie that scripts cannot read, and the CSRF token is an HMAC keyed with it. The store
holds only the token's hash: who reads the store can neither log in nor forge a form, and a restarted server knows its
sessions.
"""

import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_FORM = 64 * 1024
"""Bytes of a request's body; a comment of the longest length in four-byte characters, percent-encoded, fits."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


def csrf_token(session_token: str) -> str:
    """What a form of this session must carry."""
    return hmac.new(session_token.encode("utf-8", "surrogatepass"), b"form", hashlib.sha256).hexdigest()


def csrf_matches(session_token: str, given: str) -> bool:
    """Whether a form came from a page of this session."""
    return hmac.compare_digest(csrf_token(session_token).encode(), given.encode("utf-8", "surrogatepass"))


@dataclass
class _Bucket:
    tokens: int | float
    at: int | float


class RateLimit:
    """A bucket of tokens per key: ``burst`` at once, refilled at ``per_second``.

    Args:
        clock: seconds that only grow; tests put their own here.
    """

    _MOST_KEYS = 10_000

    def __init__(self, per_second: int | float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def allows(self, key: str) -> bool:
        """Whether one more is allowed now; if so it is counted."""
        bucket = self._bucket(key)
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def exhausted(self, key: str) -> bool:
        """Whether none is allowed now; counts nothing."""
        return self._bucket(key).tokens < 1

    def _bucket(self, key: str) -> _Bucket:
        now = self._clock()
        if len(self._buckets) > self._MOST_KEYS:
            full = now - self._burst / self._per_second
            self._buckets = {name: bucket for name, bucket in self._buckets.items() if bucket.at > full}
        bucket = self._buckets.setdefault(key, _Bucket(self._burst, now))
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._per_second)
        bucket.at = now
        return bucket


class Guard:
    """ASGI middleware: security headers on every answer, and no body over ``LARGEST_FORM``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message.get("headers", [])}
                message["headers"] = [*message.get("headers", []), *(pair for pair in _HEADERS if pair[0] not in own)]
            await send(message)

        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has left
            body += message.get("body", b"")
            if len(body) > LARGEST_FORM:
                await send_with_headers(
                    {"type": "http.response.start", "status": 413, "headers": [(b"content-type", b"text/plain")]}
                )
                await send_with_headers({"type": "http.response.body", "body": b"This form is too large.\n"})
                return
            if not message.get("more_body", False):
                break

        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_whole() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, receive_whole, send_with_headers)
