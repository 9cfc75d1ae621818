"""Who computes what: every group once, balanced, the same on every rank."""

from hypothesis import given
from hypothesis import strategies as st

from p3o.distributed import shares
from p3o.distributed.shares import passes

SIZES = st.lists(st.integers(1, 4000), max_size=40)
PARTS = st.integers(1, 9)


@given(SIZES, PARTS, st.booleans())
def test_every_piece_goes_to_one_rank(sizes: list[int], parts: int, equal_counts: bool) -> None:
    dealt = shares(sizes, parts, equal_counts=equal_counts)
    assert len(dealt) == parts
    assert sorted(i for part in dealt for i in part) == list(range(len(sizes)))
    assert all(part == sorted(part) for part in dealt)


@given(SIZES, PARTS)
def test_no_rank_has_more_than_four_thirds_of_the_best(sizes: list[int], parts: int) -> None:
    """Graham's bound, against what no division can beat: the mean, the largest, and two of the parts + 1 largest."""
    loads = [sum(sizes[i] for i in part) for part in shares(sizes, parts)]
    largest = sorted(sizes, reverse=True)
    pair = largest[parts - 1] + largest[parts] if len(sizes) > parts else 0
    least = max(sum(sizes) / parts, largest[0] if sizes else 0, pair)
    # The bound is on the optimum, which is at least this and may be more; one piece of slack covers the difference.
    assert max(loads) <= least * 4 / 3 + (largest[parts] if len(sizes) > parts else 0)


@given(SIZES, PARTS)
def test_equal_counts_differ_by_one_at_most(sizes: list[int], parts: int) -> None:
    counts = [len(part) for part in shares(sizes, parts, equal_counts=True)]
    assert max(counts) - min(counts) <= 1


def test_by_hand() -> None:
    assert shares([5, 3, 3, 2, 2, 1], 2) == [[0, 3, 5], [1, 2, 4]]
    assert shares([7, 7], 1) == [[0, 1]]
    assert shares([9, 1, 1, 1], 2, equal_counts=True) == [[0, 3], [1, 2]]
    assert shares([], 3) == [[], [], []]


@given(SIZES, PARTS, st.integers(1, 5), st.booleans(), st.booleans())
def test_passes_make_every_piece_count_once(
    sizes: list[int], parts: int, most: int, in_step: bool, mixed: bool
) -> None:
    kinds = [size % 2 for size in sizes] if mixed else None
    ranks = [passes(sizes, rank=rank, parts=parts, most=most, in_step=in_step, kinds=kinds) for rank in range(parts)]
    assert sorted(i for rank in ranks for batch, counts in rank if counts for i in batch) == list(range(len(sizes)))
    assert [sorted(i for batch, counts in rank if counts for i in batch) for rank in ranks] == shares(sizes, parts)
    batches = [batch for rank in ranks for batch, _ in rank]
    assert all(1 <= len(batch) <= most and batch == sorted(batch) for batch in batches)
    if in_step:
        assert len({len(rank) for rank in ranks}) == 1
    else:
        assert all(counts for rank in ranks for _, counts in rank)
    if kinds is not None:
        assert all(len({kinds[i] for i in batch}) == 1 for batch in batches)


def test_passes_by_hand() -> None:
    sizes = [9, 2, 2, 2, 1]
    assert passes(sizes, rank=0, parts=1, most=2) == [([0, 1], True), ([2, 3], True), ([4], True)]
    assert passes(sizes, rank=0, parts=2, most=2, in_step=True) == [([0], True), ([4], False)]
    assert passes(sizes, rank=1, parts=2, most=2, in_step=True) == [([1, 2], True), ([3, 4], True)]
    assert passes(sizes, rank=1, parts=2, most=2, kinds="xxyxy") == [([1, 3], True), ([2, 4], True)]
    assert passes([], rank=0, parts=2, most=2, in_step=True) == []
