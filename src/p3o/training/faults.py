"""Numbers that are none, and policies that have gone wrong: recognised, named, and handled as the configuration says."""

from collections.abc import Mapping
from typing import Literal

from p3o.errors import P3OError

FaultAction = Literal["stop", "skip", "rollback"]
"""What to do about a NaN or infinite loss, gradient, log-prob or reward: end with an error; leave the update or the group out
and count it; go back to the last checkpoint and on with other random numbers."""

MAX_SKIPPED_STEPS = 10
"""So many steps in a row without a single update end a training that skips: it is not learning any more."""

MAX_ROLLBACKS = 3
"""So many times a training may go back; a fault that comes again and again is not chance."""


class NumericalError(P3OError):
    """A number that is NaN or infinite, with the step and, where it is known, the prompt."""


class Watch:
    """Tells when a training begins to look unhealthy: once when a sign appears, again only after it had gone.

    The signs: responses that are all alike, to all prompts or to each, no pair that the feedback tells apart, none that ends,
    updates skipped, log-ratios that had to be clamped.
    """

    def __init__(self) -> None:
        self._present: set[str] = set()

    def notice(self, metrics: Mapping[str, int | float]) -> list[str]:
        """What is new about these metrics of a step, in words."""
        signs = {
            "collapsed": (
                metrics.get("distinct", 1.0) <= COLLAPSED,
                f"only {metrics.get('distinct', 1.0):.0%} of the responses differ from each other: the policy may have "
                "collapsed; a larger beta or a lower learning rate keeps it closer to the reference",
            ),
            "repeating": (
                metrics.get("repeated_groups", 0.0) == 1.0,
                "all responses to each prompt are identical, so there is nothing to compare: the policy may have "
                "collapsed; try a larger beta, a lower learning rate or a higher temperature",
            ),
            "undecided": (
                metrics.get("tie_fraction", 0.0) == 1.0 and metrics.get("repeated_groups", 0.0) < 1.0,
                "the feedback rates all responses to each prompt as equal: nothing can be learned from such a step",
            ),
            "endless": (
                metrics.get("ended", 1.0) == 0.0,
                "no response ended within max_new_tokens: raise it, or set missing_eos_penalty",
            ),
            "clamped": (
                metrics.get("log_ratio_clamped", 0.0) > 0,
                "importance ratios beyond e^20 were clamped: the policy has moved too far in one step; lower the "
                "learning rate or kl_stop",
            ),
            "skipped": (
                metrics.get("skipped_updates", 0) > 0,
                "skipping updates with gradients that are not finite",
            ),
        }
        present = {name for name, (holds, _) in signs.items() if holds}
        new = [text for name, (_, text) in signs.items() if name in present - self._present]
        self._present = present
        return new


COLLAPSED = 0.1
"""At most this share of distinct texts among a step's responses counts as collapsed."""
