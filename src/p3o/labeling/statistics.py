"""How labelling goes: agreement between annotators, bias towards a side, throughput. Pure functions of plain labels."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import combinations
from statistics import median

from p3o.labeling.tables import Role

Units = Sequence[Sequence[Hashable]]
"""For each item, the answers that it got, each from another annotator; skips left out."""


@dataclass(frozen=True)
class Label:
    """A label that holds, with what the statistics ask about it.

    Attributes:
        item, annotator: which pair, and the name of who answered.
        choice: "a", "b", "tie", "bad" or "skip".
        swapped: whether response b stood first.
        gold: the known answer, if there is one.
        seconds: the time that the answer took, None if it means nothing.
    """

    item: int
    annotator: str
    role: Role
    choice: str
    swapped: bool
    gold: str | None
    seconds: float | None
    at: datetime

    @property
    def chose_first(self) -> bool | None:
        """Whether the response that stood first was preferred; None if neither was."""
        return None if self.choice not in ("a", "b") else (self.choice == "b") == self.swapped


def units_of(labels: Sequence[Label]) -> list[list[str]]:
    """The answers of each item, skips left out."""
    by_item: dict[int, list[str]] = {}
    for label in labels:
        if label.choice != "skip":
            by_item.setdefault(label.item, []).append(label.choice)
    return list(by_item.values())


def raw_agreement(units: Units) -> float | None:
    """The share of pairs of answers to the same item that are equal; None if no item has two answers."""
    equal = pairs = 0
    for unit in units:
        for first, second in combinations(unit, 2):
            equal += first == second
            pairs += 1
    return equal / pairs if pairs else None


def krippendorff_alpha(units: Units) -> float | None:
    """Krippendorff's α for nominal data: α = 1 − D_o / D_e (Krippendorff, Content Analysis, ch. 11).

    With n_c the number of answers c among the n answers of items that have at least two, m_u the answers of item u and n_uc
    those of them that are c: D_o = Σ_u Σ_{c≠k} n_uc n_uk / (m_u − 1) / n and D_e = Σ_{c≠k} n_c n_k / (n (n − 1)).

    None if no item has two answers, or if all answers are the same: nothing could have disagreed.
    """
    comparable = [Counter(unit) for unit in units if len(unit) > 1]
    totals: Counter[Hashable] = sum(comparable, Counter())
    n = totals.total()
    if len(totals) < 2:
        return None
    observed = sum(_unequal(counts) / (counts.total() - 1) for counts in comparable) / n
    expected = _unequal(totals) / (n * (n - 1))
    return 1 - observed / expected


def _unequal(counts: Counter[Hashable]) -> int:
    """Σ_{c≠k} n_c n_k."""
    return int(counts.total() ** 2 - sum(count**2 for count in counts.values()))


@dataclass(frozen=True)
class Share:
    """k of n with Wilson's 95 % interval; n may be 0."""

    k: int
    n: int

    @property
    def rate(self) -> float | None:
        """k / n, None for 0 of 0."""
        return self.k / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the rate."""
        if not self.n:
            return None
        from scipy.stats import binomtest  # here: slow to import

        found = binomtest(self.k, self.n).proportion_ci(method="wilson")
        return float(found.low), float(found.high)


def first_side_share(labels: Sequence[Label]) -> Share:
    """How often the response that stood first was preferred, among labels that prefer one. Sides are drawn at random, so
    an interval without ½ is a bias."""
    firsts = [label.chose_first for label in labels if label.chose_first is not None]
    return Share(sum(firsts), len(firsts))


def gold_share(labels: Sequence[Label]) -> Share:
    """How often the known answer was given, among answers to gold items."""
    told = [label for label in labels if label.gold is not None and label.choice != "skip"]
    return Share(sum(label.choice == label.gold for label in told), len(told))


@dataclass(frozen=True)
class AnnotatorSummary:
    """One line of the admin page.

    Attributes:
        choices: how often each answer was given.
        median_seconds: per answer; None if unknown.
        last: when the newest label was given.
    """

    name: str
    choices: Mapping[str, int]
    median_seconds: float | None
    first_side: Share
    gold: Share
    last: datetime | None

    @property
    def labels(self) -> int:
        """All labels that hold, skips among them."""
        return sum(self.choices.values())


def summarise(name: str, labels: Sequence[Label]) -> AnnotatorSummary:
    """The line of one annotator, from that annotator's labels."""
    seconds = [label.seconds for label in labels if label.seconds is not None]
    return AnnotatorSummary(
        name=name,
        choices=Counter(label.choice for label in labels),
        median_seconds=median(seconds) if seconds else None,
        first_side=first_side_share(labels),
        gold=gold_share(labels),
        last=max((label.at for label in labels), default=None),
    )


def per_hour(labels: Sequence[Label], now: datetime, hours: int = 24) -> list[int]:
    """Labels in each of the last hours, the oldest first; the last hour ends now."""
    counts = [0] * hours
    for label in labels:
        age = (now - label.at) // timedelta(hours=1)
        if 0 <= age < hours:
            counts[hours - 1 - age] += 1
    return counts
