"""Agreement and bias against published and hand-computed numbers."""

from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3o.labeling.statistics import (
    Label,
    Share,
    first_side_share,
    gold_share,
    krippendorff_alpha,
    per_hour,
    raw_agreement,
    summarise,
    units_of,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def label(choice: str, *, item: int = 0, swapped: bool = False, gold: str | None = None, hours: float = 0) -> Label:
    at = NOW - timedelta(hours=hours)
    return Label(item, "ada", "annotator", choice, swapped, gold, seconds=4.0, at=at)


def test_alpha_of_krippendorffs_own_example() -> None:
    """Computing Krippendorff's Alpha-Reliability (2011), example C: four observers, twelve units, nominal α = .743."""
    observers = [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ]
    units = [
        [value for value in unit if value != "."] for unit in zip(*(row.split() for row in observers), strict=True)
    ]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_by_hand() -> None:
    """Two coders, four units: a a, b b, a b, a a. Coincidences: n_a = 5, n_b = 3; D_o = 2/8, D_e = 30/56."""
    assert krippendorff_alpha(["aa", "bb", "ab", "aa"]) == pytest.approx(1 - (2 / 8) / (30 / 56))


def test_alpha_is_1_for_agreement_and_undefined_where_nothing_could_disagree() -> None:
    assert krippendorff_alpha(["aa", "bb"]) == 1.0
    assert krippendorff_alpha(["aa", "aa"]) is None
    assert krippendorff_alpha(["a", "b"]) is None
    assert krippendorff_alpha([]) is None


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=4), max_size=6))
def test_agreement_does_not_depend_on_order_and_single_answers_do_not_count(units: list[list[str]]) -> None:
    shuffled = [list(reversed(unit)) for unit in reversed(units)]
    for measure in (krippendorff_alpha, raw_agreement):
        value = measure(units)
        assert measure(shuffled) == pytest.approx(value)
        assert measure([*units, ["a"]]) == pytest.approx(value)


def test_raw_agreement_counts_pairs_of_answers() -> None:
    assert raw_agreement(["aab", "bb"]) == pytest.approx(2 / 4)
    assert raw_agreement(["a"]) is None


def test_units_leave_skips_out() -> None:
    labels = [label("a", item=1), label("skip", item=1), label("bad", item=2), label("b", item=1)]
    assert units_of(labels) == [["a", "b"], ["bad"]]


def test_the_first_side_is_b_when_swapped() -> None:
    labels = [
        label("a"),
        label("b"),
        label("b", swapped=True),
        label("b", swapped=True),
        label("tie"),
        label("bad"),
        label("skip"),
    ]
    assert first_side_share(labels) == Share(3, 4)


def test_wilsons_interval() -> None:
    """Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263."""
    low, high = Share(81, 263).interval or (0, 0)
    assert (low, high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    assert (Share(0, 0).interval, Share(0, 0).rate) == (None, None)


def test_gold_counts_answers_and_not_skips() -> None:
    assert gold_share([label("a", gold="a"), label("tie", gold="a"), label("skip", gold="a"), label("a")]) == Share(
        1, 2
    )


def test_per_hour_puts_the_newest_last() -> None:
    hours = [0.0, 0.5, 0.99, 1.0, 23.9, 24.0, -0.1]
    counts = per_hour([label("a", hours=hour) for hour in hours], NOW)
    assert (len(counts), counts[-1], counts[-2], counts[0], sum(counts)) == (24, 3, 1, 1, 5)


def test_a_summary() -> None:
    labels = [label("a"), label("b", hours=2), label("tie", hours=1)]
    for order in permutations(labels):
        found = summarise("ada", order)
        assert (found.labels, found.choices["a"], found.choices["skip"]) == (3, 1, 0)
        assert (found.median_seconds, found.last, found.first_side) == (4.0, NOW, Share(1, 2))
    empty = summarise("bob", [])
    assert (empty.labels, empty.median_seconds, empty.last) == (0, None, None)
