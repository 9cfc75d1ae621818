"""Who computes what: whole groups dealt to the ranks, balanced by tokens, the same way on every rank without a word."""

from collections.abc import Sequence


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
