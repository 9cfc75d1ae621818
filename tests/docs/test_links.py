"""Links of the pages: files are there, headings are there, addresses are addresses. Nothing is fetched."""

import re
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from markdown_it import MarkdownIt
from tests.docs.pages import NAMES, ROOT


def links(path: Path) -> list[str]:
    """Targets of the links and pictures of a page."""
    found = []
    for token in MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8")):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                found.append(str(target))
    return found


def anchors(path: Path) -> set[str]:
    """The headings of a page as GitHub and the site name them."""
    tokens = MarkdownIt().parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for opening, heading in pairwise(tokens):
        if opening.type == "heading_open":
            text = "".join(child.content for child in heading.children or ())
            names.add(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
    return names


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    for target in links(page):
        parts = urlsplit(target)
        if parts.scheme:
            assert parts.scheme == "https", f"{name}: {target}"
            assert re.fullmatch(r"[\w.-]+\.[a-z]{2,}", parts.netloc), f"{name}: {target}"
            continue
        file = page if not parts.path else page.parent / parts.path
        assert file.exists(), f"{name}: {target}"
        if parts.fragment:
            assert parts.fragment in anchors(file), f"{name}: {target}"


def test_a_page_is_linked_from_another() -> None:
    """But for the ones where a reader begins."""
    reached = {
        (ROOT / name).parent.joinpath(urlsplit(target).path).resolve()
        for name in NAMES
        for target in links(ROOT / name)
        if not urlsplit(target).scheme
    }
    begin = {"README.md", "CONTRIBUTING.md", "docs/index.md"}
    for name in set(NAMES) - begin:
        page = (ROOT / name).resolve()
        assert page in reached or page.parent in reached, name
