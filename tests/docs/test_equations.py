"""docs/equations.md and the docstrings name the same function for every equation, and for each one function only."""

import ast
import re
from collections import Counter
from pathlib import Path

from tests.docs.pages import ROOT

LABEL = re.compile(
    r"(?:arXiv:\d{4}\.\d{5}|Schulman 2020), "
    r"(?:Eq\. \d+|Theorem \d+|Lemma \d+|Definition \d+|Algorithm \d+|Section \d+(?:\.\d+)*(?:, P3O-V\d)?|RLOO|k\d)"
)
"""How a docstring says which equation it implements."""

SOURCE = ROOT / "src"


def claims() -> list[tuple[str, str]]:
    """Labels in the docstrings of public functions, with the functions' dotted names."""
    found = []
    for path in sorted((SOURCE / "p3o").rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                for label in LABEL.findall(" ".join((ast.get_docstring(node) or "").split())):
                    found.append((label, f"{module}.{node.name}"))
    return found


def rows() -> list[tuple[str, str]]:
    """The same from the page."""
    page = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    return re.findall(r"^\| (.+?) \| .+ \| `(p3o[\w.]+)` \|$", page, re.MULTILINE)


def test_each_equation_has_one_function() -> None:
    counted = Counter(label for label, _ in claims())
    assert {label: count for label, count in counted.items() if count > 1} == {}


def test_no_function_of_these_is_private() -> None:
    assert [name for _, name in claims() if name.split(".")[-1].startswith("_")] == []


def test_the_page_lists_what_the_docstrings_claim() -> None:
    assert sorted(rows()) == sorted(claims())


def test_a_search_for_a_label_finds_one_place() -> None:
    """None would be found that a line end cuts in two."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in Path(SOURCE / "p3o").rglob("*.py"))
    for label, _ in rows():
        assert LABEL.fullmatch(label), label
        assert len(re.findall(re.escape(label) + r"(?!\d)", source)) == 1, label
