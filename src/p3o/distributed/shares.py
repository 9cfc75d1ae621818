"""Who computes what: whole pieces dealt to the ranks, balanced by tokens, the same way on every rank without a word."""

from collections.abc import Hashable, Sequence


def shares(sizes: Sequence[int], parts: int, *, equal_counts: bool = False) -> list[list[int]]:
    """Indices for each of ``parts`` ranks: the largest first, each to the rank that has the least so far.

    The longest-processing-time rule: no rank has more than 4/3 of the least possible maximum (Graham, 1969). Ties go to the
    lower index and the lower rank, so all ranks find the same. The indices of each part are in rising order; one part has all.

    Args:
        sizes: work of each piece, tokens as a rule.
        parts: number of ranks.
        equal_counts: whether the numbers of pieces may differ by one at most.
    """
    dealt: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for turn, i in enumerate(sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))):
        most = turn // parts + 1 if equal_counts else len(sizes)
        to = min((p for p in range(parts) if len(dealt[p]) < most), key=lambda p: (loads[p], len(dealt[p]), p))
        dealt[to].append(i)
        loads[to] += sizes[i]
    return [sorted(part) for part in dealt]


def passes(
    sizes: Sequence[int],
    *,
    rank: int,
    parts: int,
    most: int,
    in_step: bool = False,
    kinds: Sequence[Hashable] | None = None,
) -> list[tuple[list[int], bool]]:
    """What one rank does of a batch: the indices of each pass over its share, in rising order, and whether the pass counts.

    A pass through a sharded model is a collective operation. There (``in_step``) every rank makes as many passes as the busiest
    one; those that it adds are of the smallest piece and must be given no weight.

    Args:
        sizes: work of each piece of the batch, tokens as a rule.
        rank: whose share.
        parts: number of ranks.
        most: pieces in a pass.
        in_step: whether all ranks make the same number of passes.
        kinds: pieces of different kinds never share a pass; None: all are of one kind.
    """
    dealt = [_cut(share, most, kinds) for share in shares(sizes, parts)]
    own = [(batch, True) for batch in dealt[rank]]
    if in_step:
        smallest = min(range(len(sizes)), key=lambda i: sizes[i], default=0)
        own += [([smallest], False)] * (max(map(len, dealt)) - len(own))
    return own


def _cut(share: Sequence[int], most: int, kinds: Sequence[Hashable] | None) -> list[list[int]]:
    """Neighbours of one kind, so many at a time."""
    groups: dict[Hashable, list[int]] = {}
    for i in share:
        groups.setdefault(None if kinds is None else kinds[i], []).append(i)
    return [group[start : start + most] for group in groups.values() for start in range(0, len(group), most)]
