"""Nothing is pinned that has not been looked at: constraints.txt against security/reviewed.txt."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAY = {"network", "native", "code"}
NOT_PINNED = {"wandb", "trackio", "psycopg", "verl", "vllm"}
"""Extras that the tests do without."""


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def reviewed() -> dict[str, tuple[str, str, str, str]]:
    """Name -> version, part, may, remark."""
    found = {}
    for line in (ROOT / "security" / "reviewed.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pinned, part, may, remark = line.split(" | ")
            name, version = pinned.split("==")
            assert name not in found, f"{name} is reviewed twice"
            found[name] = (version, part, may, remark)
    return found


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_pinned_version_was_reviewed() -> None:
    missing = {name: version for name, version in pins().items() if reviewed().get(name, ("no version",))[0] != version}
    assert not missing, f"read what changed in {missing}, then renew their lines and the date in security/reviewed.txt"


def test_nothing_is_reviewed_that_is_not_pinned() -> None:
    assert set(reviewed()) == set(pins())


def test_every_line_says_what_the_package_may_do() -> None:
    extras = {"run", *tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]}
    for name, (_, part, may, remark) in reviewed().items():
        assert part in extras, name
        assert may == "-" or set(may.split()) <= MAY, name
        assert len(remark) > 5, name


def test_what_the_package_asks_for_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    names = {plain(match.group()) for line in wanted if (match := re.match(r"[A-Za-z0-9._-]+", line))}
    assert names - {"p3o"} - NOT_PINNED <= set(map(plain, pins()))


def test_every_extra_that_a_message_names_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]:
        for names in re.findall(r"p3o\[([a-z0-9,_]+)\]", path.read_text(encoding="utf-8")):
            assert set(names.split(",")) <= set(extras), f"{path.relative_to(ROOT)}: p3o[{names}]"
