"""Who answered what: responses of several policies to the same prompts, from a run folder or from files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from p3o.errors import P3OError, did_you_mean
from p3o.files import read_jsonl

BASELINE = "sft"
"""The policy that the others are held against first, where it is there."""


@dataclass(frozen=True)
class Entry:
    """A response. ``length`` is in tokens if the file says so, else in words."""

    response: str
    length: float


@dataclass(frozen=True)
class Contest:
    """Prompts by a number of their own, and each policy's responses to them.

    Attributes:
        prompts: number -> text; pairs of equal texts have different numbers.
        entries: policy -> number -> response.
    """

    prompts: Mapping[int, str]
    entries: Mapping[str, Mapping[int, Entry]]

    def shared(self, a: str, b: str) -> list[int]:
        """The prompts that both have answered, in order."""
        return [number for number in self.prompts if number in self.entries[a] and number in self.entries[b]]

    def alone(self, a: str, b: str) -> int:
        """How many prompts only one of the two has answered."""
        return len(set(self.entries[a]) ^ set(self.entries[b]))

    def first(self, count: int | None) -> "Contest":
        """The same with this many of its prompts, the first ones."""
        if count is None:
            return self
        return Contest({number: self.prompts[number] for number in list(self.prompts)[:count]}, self.entries)


def read_run_contest(path: Path, *, decoding: str = "sample") -> Contest:
    """The responses of a run folder's responses.jsonl that were drawn in this way.

    Raises:
        P3OError: if the file is missing, a row is bad (with its line), or fewer than two policies have responses.
    """
    prompts: dict[int, str] = {}
    entries: dict[str, dict[int, Entry]] = {}
    for place, row in _rows(path, ("policy", "prompt", "response")):
        number = row.get("prompt_index")
        if not isinstance(number, int):
            raise P3OError(f"{place}: 'prompt_index' must be a whole number; was this file written by p3o evaluate?")
        if row.get("decoding", "sample") != decoding:
            continue
        if prompts.setdefault(number, row["prompt"]) != row["prompt"]:
            raise P3OError(f"{place}: prompt {number} has another text than before; the file mixes two sets of prompts")
        answered = entries.setdefault(row["policy"], {})
        if number in answered:
            raise P3OError(f"{place}: a second response of {row['policy']!r} to prompt {number}; remove one")
        answered[number] = _entry(row)
    if len(entries) < 2:
        raise P3OError(f"{path}: holds responses of {len(entries)} policies ({decoding}); a comparison needs two")
    return Contest(dict(sorted(prompts.items())), entries)


def read_file_contest(a: Path, b: Path) -> Contest:
    """Two files of {"prompt", "response"} a line, matched by the text of the prompt, whatever their order.

    A prompt that stands several times in both is matched one by one. Policies are named after the files.

    Raises:
        P3OError: if a file is missing, a row is bad (with its line), or no prompt is in both files.
    """
    names = (a.stem, b.stem) if a.stem != b.stem else (str(a), str(b))
    numbers: dict[tuple[str, int], int] = {}
    entries: dict[str, dict[int, Entry]] = {}
    for name, path in zip(names, (a, b), strict=True):
        seen: dict[str, int] = {}
        answered = entries.setdefault(name, {})
        for _, row in _rows(path, ("prompt", "response")):
            occurrence = seen[row["prompt"]] = seen.get(row["prompt"], -1) + 1
            answered[numbers.setdefault((row["prompt"], occurrence), len(numbers))] = _entry(row)
    contest = Contest({number: prompt for (prompt, _), number in numbers.items()}, entries)
    if len(entries) < 2 or not contest.shared(*names):
        raise P3OError(f"{a} and {b}: no prompt is in both; the two files must answer the same prompts")
    return contest


def choose_pairs(contest: Contest, wanted: Sequence[str], against: str | None) -> list[tuple[str, str]]:
    """The pairs to judge: those asked for as "A:B", all policies against one, or every two; SFT always second.

    Raises:
        P3OError: if a name is unknown, or a pair is not of two policies.
    """
    names = list(contest.entries)
    if wanted:
        pairs = [tuple(text.split(":")) for text in wanted]
        for text, pair in zip(wanted, pairs, strict=True):
            if len(pair) != 2 or pair[0] == pair[1]:
                raise P3OError(f"--pair {text}: not of the form A:B with two policies")
        chosen = [(pair[0], pair[1]) for pair in pairs]
    elif against is not None:
        chosen = [(name, against) for name in names if name != against]
    else:
        ordered = sorted(names, key=lambda name: name == BASELINE)
        chosen = list(combinations(ordered, 2))
    for name in {name for pair in chosen for name in pair} - set(names):
        raise P3OError(f"no responses of {name!r}; {did_you_mean(name, names) or 'known are ' + ', '.join(names)}")
    return chosen


def _rows(path: Path, texts: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """("FILE:LINE", row) of every row, with these keys checked to be texts."""
    for line, row in enumerate(read_jsonl(path), start=1):
        for key in texts:
            if not isinstance(row.get(key), str):
                raise P3OError(f"{path}:{line}: '{key}' must be a text; every line needs {', '.join(texts)}")
        yield f"{path}:{line}", row


def _entry(row: Mapping[str, Any]) -> Entry:
    length = row.get("length")
    words = len(str(row["response"]).split())
    return Entry(row["response"], float(length) if isinstance(length, int | float) else float(words))
