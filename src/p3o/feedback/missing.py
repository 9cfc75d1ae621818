"""Whether a reward that could not be had is an error or a gap.

A reward that comes over a network may fail to come. Who asks decides what that means: training with ``on_fault: skip`` drops
such groups and counts them, an evaluation of a run that goes on after faults leaves such responses out and counts them,
everybody else wants an error. A reward may lie under others (a weighted sum, an offset, a user's
function), so the wish is not handed through all of them: it holds for whatever is called inside the block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ALLOWED: ContextVar[bool] = ContextVar("rewards may be missing", default=False)


@contextmanager
def rewards_may_be_missing(allowed: bool = True) -> Iterator[None]:
    """Within this block, if ``allowed``, a reward that could not be had is NaN; otherwise it is an error."""
    token = _ALLOWED.set(allowed)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def may_be_missing() -> bool:
    """What the innermost block says; False outside of all."""
    return _ALLOWED.get()
