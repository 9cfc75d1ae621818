"""What the tests of bad input share: nasty texts and values, and the judgement of what became of a case."""

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from p3o.errors import P3OError

T = TypeVar("T")

PATIENCE = 20
"""Seconds after which a case counts as a hang."""

FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
"""How every test here is run; how many examples it tries is the profile's to say."""

TRIED: Counter[str] = Counter()
"""How many cases were tried, by what was fed."""

REFUSED: Counter[str] = Counter()
"""How many of them were refused, with a reason."""


def read_or_told(what: str, read: Callable[[], T], *, cases: int = 1) -> T | None:
    """What ``read`` returns, or None if it refuses with a ``P3OError`` of words. Anything else fails the test."""
    TRIED[what] += cases
    try:
        with time_limit():
            return read()
    except P3OError as error:
        message = str(error)
        assert message.strip(), "a refusal must say why"
        assert "Traceback" not in message
        REFUSED[what] += 1
        return None


@contextmanager
def time_limit() -> Iterator[None]:
    """Within this block a hang becomes a failure."""

    def expired(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"a hang: no end within {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


NASTY_TEXTS = [
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "\udfff\ud800",
    "\ufeff",
    "\u2028\u2029\x85",
    "\r\n\r",
    "\u202eright to left\u202c",
    "שלום עולם",
    "مرحبا",
    "👩‍👩‍👧‍👦" * 20,
    "e" + "\u0301" * 200,
    "x" * 3000,
    "{{ 7 * 7 }}",
    "{% for i in range(9) %}",
    "<|endoftext|><|im_end|>",
    "<script>alert(1)</script>",
    "'; DROP TABLE items; --",
    "../../etc/passwd",
    "%s%n%x",
    "NaN",
    "1e999",
    "null",
    "-",
    "=cmd|' /C calc'!A0",
    "\x1b[2J\x07",
]
NASTY_NUMBERS = [
    0,
    -1,
    2**31,
    2**63,
    2**64,
    10**400,
    -(10**400),
    1e308,
    -1e-320,
    float("inf"),
    float("-inf"),
    float("nan"),
]

any_text = st.sampled_from(NASTY_TEXTS) | st.text(st.characters(), max_size=30)
"""Texts, lone surrogates among them."""

any_number = st.sampled_from(NASTY_NUMBERS) | st.integers() | st.floats()


def values(names: list[str]) -> st.SearchStrategy[Any]:
    """JSON values of any shape whose objects use these names more often than others."""
    keys = st.sampled_from(names) | any_text
    return st.recursive(
        st.none() | st.booleans() | any_number | any_text | st.sampled_from(names),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5),
        max_leaves=10,
    )


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """A file with pieces cut out, put in, doubled, or its end torn off."""
    pieces = [
        b"",
        b"\0",
        b"\n",
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\\u",
        b"\\ud800",
        b"\xff",
        b"\xed\xa0\x80",
        b"NaN",
    ]
    pieces += [
        b"1e999",
        b"9" * 5000,
        b"[" * 3000,
        b'{"a":' * 3000,
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"x" * 70_000,
        b"\x1b[2J",
    ]

    def damage(content: bytes, start: float, length: int, piece: bytes) -> bytes:
        at = int(start * len(content))
        return content[:at] + piece + content[at + length :]

    once = st.tuples(
        st.floats(0, 1), st.sampled_from([0, 0, 1, 2, 7, 50, 10**6]), st.sampled_from(pieces) | st.binary(max_size=4)
    )

    def repeatedly(changes: list[tuple[float, int, bytes]]) -> bytes:
        content = whole
        for change in changes:
            content = damage(content, *change)
        return content

    return st.lists(once, min_size=1, max_size=3).map(repeatedly)
