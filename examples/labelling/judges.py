"""Who labels in the example: a function in the place of a person, who prefers the answer that says more about the task."""

from collections.abc import Sequence


def informed(prompts: Sequence[str], responses_a: Sequence[str], responses_b: Sequence[str]) -> list[float]:
    """1 where response a has more different words of the prompt and of its own than b, −1 where fewer, 0 where as many."""
    preferences = []
    for prompt, a, b in zip(prompts, responses_a, responses_b, strict=True):
        asked = set(prompt.lower().split())
        scores = [len(words & asked) + len(words) / 100 for words in (set(a.lower().split()), set(b.lower().split()))]
        preferences.append(float(scores[0] > scores[1]) - float(scores[0] < scores[1]))
    return preferences
