"""docs/traps.md names tests that exist, and one at least for every trap."""

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "traps.md").read_text(encoding="utf-8")
CLAIMED, UNCLAIMED = PAGE.split("\n## Not reached yet\n")
HEADER = ["trap", "issues", "what p3o does", "tested by"]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


LINES = [cells(line) for line in CLAIMED.splitlines() if line.startswith("|")]
ROWS = [row for row in LINES if row != HEADER and not set(row[0]) <= {"-"}]


@functools.cache
def names_of_tests(path: Path) -> frozenset[str]:
    """The test functions of a file, as pytest would collect them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def test_every_table_is_read() -> None:
    sections = re.findall(r"^## ", CLAIMED, re.MULTILINE)
    assert LINES.count(HEADER) == len(sections) > 5
    assert len(LINES) == len(ROWS) + 2 * len(sections)
    assert len({row[0] for row in ROWS}) == len(ROWS) > 30, "each trap stands there once"


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:50] for row in ROWS])
def test_every_trap_names_tests_that_exist(row: list[str]) -> None:
    assert len(row) == len(HEADER), "no cell is missing, none holds a bar"
    assert all(row)
    named = re.findall(r"`([^`]+)`", row[3])
    assert named
    assert re.sub(r"`[^`]+`", "", row[3]).strip() == "", "nothing but tests in the last column"
    for name in named:
        file, _, test = name.partition("::")
        assert (TESTS / file).is_file(), name
        assert test in names_of_tests(TESTS / file), name


def test_nothing_is_claimed_of_what_is_not_reached() -> None:
    assert "::" not in UNCLAIMED
    assert "|" not in UNCLAIMED
