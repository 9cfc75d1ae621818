"""The pages that a reader sees, and the blocks of code on them, by a CommonMark parser."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]

COMMANDS = ("p3o", "python", "pip", "make", "torchrun", "ray", "vllm", "cd", "export", "git", "hf", "grep")
"""What a line of a shell block begins with, after assignments of variables."""

_MARK = re.compile(r"<!--\s*not run:\s*(.+?)\s*-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: its page, from the root.
        line: where its text begins, counted from 1.
        language: what follows the fence; without that, ``sh`` or ``text`` by its first line.
        text: without the fences.
        not_run: why it is parsed only, from the comment ``<!-- not run: … -->`` in front of it; else "".
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(name: str) -> list[Block]:
    """The fenced blocks of a page, in order.

    Raises:
        ValueError: for commands in an indented block, which has no language. Formulas and trees may stand in one.
    """
    found: list[Block] = []
    mark = ""
    for token in MarkdownIt().parse((ROOT / name).read_text(encoding="utf-8")):
        if token.type == "html_block":
            matched = _MARK.search(token.content)
            mark = matched.group(1) if matched else ""
            continue
        place = token.map[0] + 2 if token.map else 0
        if token.type == "code_block" and _language(token.content) == "sh":
            raise ValueError(f"{name}:{place - 1}: commands in an indented block; give them fences")
        if token.type == "fence":
            language = token.info.split()[0] if token.info.strip() else _language(token.content)
            found.append(Block(name, place, language, token.content, mark))
        mark = ""
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell block; a line that ends with a backslash goes on."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words:
            yield words


def inline_commands(name: str) -> list[str]:
    """What stands between single backticks and begins with ``p3o`` and a command's name."""
    found = []
    for token in MarkdownIt().enable("table").parse((ROOT / name).read_text(encoding="utf-8")):
        spans = [child.content for child in token.children or () if child.type == "code_inline"]
        found += [" ".join(span.split()) for span in spans if re.match(r"p3o [a-z]", span)]
    return found


def _language(text: str) -> str:
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    words = [word for word in first.split() if "=" not in word]
    return "sh" if words and words[0] in COMMANDS else "text"
