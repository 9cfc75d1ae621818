"""What someone says about a pair, and how pairs are handed out."""

from dataclasses import dataclass

from p3o.data.formats import half_surrogate
from p3o.errors import P3OError, shorten
from p3o.labeling.tables import CHOICES

STRENGTHS = {1: "slightly", 2: "clearly", 3: "much"}
LONGEST_COMMENT = 2000


@dataclass(frozen=True)
class Settings:
    """How pairs are handed out; kept in the store.

    Attributes:
        overlap: how many people answer each pair (k).
        lease_seconds: for how long a pair that someone has open is given to nobody else.
        gold_every: each annotator's every so-manieth pair is a gold one, while there are any left.
    """

    overlap: int = 1
    lease_seconds: int = 1800
    gold_every: int = 10

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise P3OError(f"{name.replace('_', ' ')}: {value} is less than 1; use 1 or more")


@dataclass(frozen=True)
class Answer:
    """What someone says about a pair.

    Attributes:
        choice: one of ``CHOICES``, in terms of the item: "a" is its response a, wherever it was shown.
        strength: 1, 2 or 3, or None; kept for "a" and "b" only.
        preference: a judge's own number.
    """

    choice: str
    strength: int | None = None
    comment: str = ""
    preference: float | None = None

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise P3OError(f"choice {shorten(self.choice)}: not one of {', '.join(CHOICES)}")
        if self.strength is not None and self.strength not in STRENGTHS:
            raise P3OError(f"strength {shorten(self.strength)}: not 1, 2 or 3")
        if len(self.comment) > LONGEST_COMMENT:
            raise P3OError(f"comment: {len(self.comment)} characters; shorten it to at most {LONGEST_COMMENT}")
        if "\0" in self.comment:
            raise P3OError("comment: holds a null character; remove it")
        if half_surrogate(self.comment):
            raise P3OError("comment: holds half of a surrogate pair; remove it")
        if self.strength is not None and self.choice not in ("a", "b"):
            object.__setattr__(self, "strength", None)


class NotYoursError(P3OError):
    """The assignment does not exist, or is somebody else's; which of the two is not told."""
