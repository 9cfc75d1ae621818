"""docs/cli.md names every command, and every option that is not a key of the configuration."""

import re
from collections.abc import Iterator

import pytest
import typer
from tests.docs.pages import ROOT

from p3o.cli.app import app

PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
OPTIONS = set(re.findall(r"--[a-z-]+", " ".join(re.findall(r"`[^`\n]+`", PAGE))))


def commands(found: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Every command below this one with the words that call it."""
    if not hasattr(found, "commands"):
        yield name, found
        return
    for word, command in found.commands.items():
        yield from commands(command, f"{name} {word}".strip())


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_names_every_command(name: str) -> None:
    assert re.search(rf"`{name}[ `]", PAGE)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_names_every_option(name: str) -> None:
    """But for settings, which ``--help-all`` lists from the schema."""
    parameters = [one for one in COMMANDS[name].params if getattr(one, "rich_help_panel", None) is None]
    options = {word for one in parameters for word in one.opts if word.startswith("--")}
    assert options <= OPTIONS | {"--help", "--help-all"}
