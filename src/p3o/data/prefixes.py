"""What two texts share at their beginning."""


def common_prefix(a: str, b: str) -> str:
    """The longest text that both begin with, found by halving: transcripts are long and there are many of them."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return a[:low]
