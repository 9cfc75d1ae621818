"""Prepares the pages of the site: docs/ and what it links to, with links, equations and tables as the site needs them.

    python docs/site/build.py build/pages && zensical build --strict

The pages in docs/ are made to be read on GitHub. On the site

- ``$`…`$`` and blocks of ``math`` become MathML, which browsers draw without a script or a font from elsewhere;
- a comment ``<!-- settings: NAME -->`` becomes the table of an algorithm's settings, from its schema, and one of
  ``<!-- metrics: NAME -->`` that of the metrics which it logs, explained as in metrics.md; ``<!-- curves: NAME -->`` numbers of
  its healthy and its sick run;
- dotted names of the package lead to the reference, which is made of the docstrings;
- what a page links to outside docs/ comes along: pictures and data as they are, programs as pages.
"""

import html
import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

import latex2mathml.converter
from reference import api_pages
from tables import curves_table, metrics_table, settings_table

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
_COMMENT = re.compile(r"<!-- (settings|metrics|curves): (\w+) -->")
TABLES = {"settings": settings_table, "metrics": metrics_table, "curves": curves_table}
_DOTTED = re.compile(r"(?<!\[)`(p3o(?:\.\w+)+)`(?!\])")
_INLINE = re.compile(r"\$`([^`]+)`\$")
_DISPLAY = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FENCE = re.compile(r"^(```\w*\n.*?^```)$", re.DOTALL | re.MULTILINE)


def mathml(latex: str, *, display: bool) -> str:
    """An equation as MathML in one line. Its characters are written as references, so that Markdown leaves them alone."""
    tree = latex2mathml.converter.convert(latex.strip(), display="block" if display else "inline")
    pieces = re.split(r"(<[^>]+>)", tree)
    inert = (
        piece if piece.startswith("<") else "".join(f"&#{ord(char)};" for char in html.unescape(piece))
        for piece in pieces
    )
    return "".join(inert)


def place_of(path: Path) -> Path:
    """Where a file of the repository stands on the site: docs/ is its root, a program is a page."""
    inside = path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT)
    return inside.with_suffix(".md") if inside.suffix == ".py" else inside


class Site:
    """The pages as they come to stand in one folder."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.references = {name: page for page, (_, names) in api_pages(ROOT / "src").items() for name in names}
        self.written: set[Path] = set()

    def build(self) -> None:
        """Write everything anew."""
        shutil.rmtree(self.target, ignore_errors=True)
        for page, (text, _) in api_pages(ROOT / "src").items():
            self.write(Path(page), text)
        for path in sorted(DOCS.rglob("*.md")):
            self.add(path)
        self.write(Path("site.css"), (DOCS / "site" / "site.css").read_text(encoding="utf-8"))

    def add(self, path: Path) -> None:
        """A file of the repository, and what it links to.

        Raises:
            FileNotFoundError: for a link to nothing.
        """
        place = place_of(path)
        if place in self.written:
            return
        self.written.add(place)
        if path.suffix == ".md":
            self.write(place, self.page(path))
        elif path.suffix == ".py":
            code = path.read_text(encoding="utf-8")
            self.write(place, f"# {path.name}\n\n```python\n{code}```\n")
        else:
            (self.target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, self.target / place)

    def write(self, place: Path, text: str) -> None:
        """A page of the site."""
        self.written.add(place)
        (self.target / place).parent.mkdir(parents=True, exist_ok=True)
        (self.target / place).write_text(text, encoding="utf-8")

    def page(self, path: Path) -> str:
        """A page as the site needs it; what it links to is added."""
        text = path.read_text(encoding="utf-8")
        text = _DISPLAY.sub(lambda found: f'<div class="equation">{mathml(found.group(1), display=True)}</div>', text)
        parts = _FENCE.split(text)
        return "".join(part if part.startswith("```") else self.prose(part, path) for part in parts)

    def prose(self, text: str, path: Path) -> str:
        """What stands outside blocks of code."""
        text = _LINK.sub(lambda found: self.link(found.group(1), path), text)
        text = _COMMENT.sub(lambda found: TABLES[found[1]](found[2]), text)
        text = _DOTTED.sub(lambda found: self.reference(found.group(1), path), text)
        return _INLINE.sub(lambda found: mathml(found.group(1), display=False), text)

    def link(self, target: str, path: Path) -> str:
        """The target of a link from one page, from that page's place on the site."""
        parts = urlsplit(target)
        if parts.scheme or not parts.path:
            return target
        file = (path.parent / parts.path).resolve()
        if file.is_dir():
            file = file / "README.md"
        if not file.exists():
            raise FileNotFoundError(
                f"{path.relative_to(ROOT)}: links to {target}, which is not there or has no README.md"
            )
        if file == ROOT / "README.md":
            file = DOCS / "index.md"
        self.add(file)
        moved = os.path.relpath(place_of(file), place_of(path).parent)
        return moved + (f"#{parts.fragment}" if parts.fragment else "")

    def reference(self, name: str, path: Path) -> str:
        """A dotted name as a link to its docstring, where the reference has it."""
        if name not in self.references:
            return f"`{name}`"
        page = os.path.relpath(self.references[name], place_of(path).parent)
        return f"[`{name}`]({page}#{name})"


if __name__ == "__main__":
    try:
        Site(Path(sys.argv[1])).build()
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
