"""What Ray Train calls when workers fail; imports Ray, so only those who have it import this."""

from typing import Any

from ray.train import UserCallback

from p3o.scale.ray_post import in_words


class TellFailures(UserCallback):  # type: ignore[misc]  # Ray is not looked into
    """Tells the user which workers were lost, and that it goes on.

    Args:
        post: the actor that takes lines for the user.
        allowed: how many failures there may be.
    """

    def __init__(self, post: Any, allowed: int) -> None:
        self._post, self._allowed, self._seen = post, allowed, 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """One or more workers of an attempt have failed."""
        self._seen += 1
        error = worker_exceptions[min(worker_exceptions)]
        follows = "starting again" if self._seen <= self._allowed else "giving up"
        ranks = ", ".join(str(rank) for rank in sorted(worker_exceptions))
        self._post.say.remote(
            f"engine: failure {self._seen} (of {self._allowed} allowed), workers {ranks}: {in_words(error)}; {follows}"
        )
