"""Who answered what: responses of several policies to the same prompts, from a run folder or from files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from p3o.errors import P3OError, did_you_mean
from p3o.files import read_jsonl

BASELINE = "sft"
"""The policy that the others are held against first, where it is there."""


LengthUnit = Literal["tokens", "words"]

_Answer = tuple[str, float | None]
"""A response and its number of tokens, where the row says it."""


@dataclass(frozen=True)
class Entry:
    """A response and its length, in the unit of its contest."""

    response: str
    length: float


@dataclass(frozen=True)
class Contest:
    """Prompts by a number of their own, and each policy's responses to them.

    Attributes:
        prompts: number -> text; pairs of equal texts have different numbers.
        entries: policy -> number -> response.
        unit: of all lengths: tokens where every row says how many, else words. Differences of lengths need one unit.
    """

    prompts: Mapping[int, str]
    entries: Mapping[str, Mapping[int, Entry]]
    unit: LengthUnit

    def shared(self, a: str, b: str) -> list[int]:
        """The prompts that both have answered, in order."""
        return [number for number in self.prompts if number in self.entries[a] and number in self.entries[b]]

    def alone(self, a: str, b: str) -> int:
        """How many of the prompts only one of the two has answered."""
        return len((self.entries[a].keys() ^ self.entries[b].keys()) & self.prompts.keys())

    def first(self, count: int | None) -> "Contest":
        """The same with this many of its prompts, the first ones."""
        if count is None:
            return self
        return replace(self, prompts={number: self.prompts[number] for number in list(self.prompts)[:count]})


def read_run_contest(path: Path, *, decoding: str = "sample") -> Contest:
    """The responses of a run folder's responses.jsonl that were drawn in this way.

    Raises:
        P3OError: if the file is missing, a row is bad (with its line), or fewer than two policies have responses.
    """
    prompts: dict[int, str] = {}
    answers: dict[str, dict[int, _Answer]] = {}
    for place, row in _rows(path, ("policy", "prompt", "response")):
        number = row.get("prompt_index")
        if not isinstance(number, int):
            raise P3OError(f"{place}: 'prompt_index' must be an integer; use a file written by p3o evaluate")
        if row.get("decoding", "sample") != decoding:
            continue
        # A conversation has its messages there in plain words; its prompt is full of a chat template's marks.
        asked = row.get("question")
        prompt = asked if isinstance(asked, str) else row["prompt"]
        if prompts.setdefault(number, prompt) != prompt:
            raise P3OError(
                f"{place}: prompt {number} has a different text than before; the file mixes two sets of prompts"
            )
        answered = answers.setdefault(row["policy"], {})
        if number in answered:
            raise P3OError(f"{place}: a second response of {row['policy']!r} to prompt {number}; remove one")
        answered[number] = row["response"], _tokens(row)
    if len(answers) < 2:
        raise P3OError(f"{path}: has responses of {len(answers)} policies ({decoding}); a comparison needs two")
    return _contest(dict(sorted(prompts.items())), answers)


def read_file_contest(a: Path, b: Path) -> Contest:
    """Two files of {"prompt", "response"} a line, matched by the text of the prompt, whatever their order.

    A prompt that stands several times in both is matched one by one. Policies are named after the files.

    Raises:
        P3OError: if a file is missing, a row is bad (with its line), or no prompt is in both files.
    """
    names = (a.stem, b.stem) if a.stem != b.stem else (str(a), str(b))
    numbers: dict[tuple[str, int], int] = {}
    answers: dict[str, dict[int, _Answer]] = {}
    for name, path in zip(names, (a, b), strict=True):
        seen: dict[str, int] = {}
        answered = answers.setdefault(name, {})
        for _, row in _rows(path, ("prompt", "response")):
            occurrence = seen[row["prompt"]] = seen.get(row["prompt"], -1) + 1
            answered[numbers.setdefault((row["prompt"], occurrence), len(numbers))] = row["response"], _tokens(row)
    contest = _contest({number: prompt for (prompt, _), number in numbers.items()}, answers)
    if len(answers) < 2 or not contest.shared(*names):
        raise P3OError(f"{a} and {b}: have no prompt in common; the two files must answer the same prompts")
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
                raise P3OError(f"--pair {text}: must have the form A:B with two policies")
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


def _tokens(row: Mapping[str, Any]) -> float | None:
    """The length that a row gives; None if it gives none that can be one."""
    length = row.get("length")
    if isinstance(length, bool) or not isinstance(length, int | float) or not 0 <= length < 2**53:
        return None
    return float(length)


def _contest(prompts: Mapping[int, str], answers: Mapping[str, Mapping[int, _Answer]]) -> Contest:
    """The lengths of all responses in one unit, whichever file they come from."""
    known = all(tokens is not None for rows in answers.values() for _, tokens in rows.values())
    entries = {
        policy: {
            number: Entry(text, tokens if known and tokens is not None else float(len(text.split())))
            for number, (text, tokens) in rows.items()
        }
        for policy, rows in answers.items()
    }
    return Contest(prompts, entries, "tokens" if known else "words")
