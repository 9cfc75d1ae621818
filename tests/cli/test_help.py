"""What --help shows: every command in a panel, and a type only where an option takes a value."""

import re

import pytest
from tests.docs.test_cli_page import COMMANDS

from p3o.cli import main
from p3o.cli.app import PANELS


def test_every_command_has_a_panel() -> None:
    listed = [name for names in PANELS.values() for name in names]
    assert sorted(listed) == sorted({name.split()[0] for name in COMMANDS})


def test_a_newcomer_is_told_where_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(f" {panel} ") for panel in PANELS]
    assert places == sorted(places)
    assert "p3o demo --quick" in shown
    assert "p3o init" in shown


@pytest.mark.parametrize("group", ["data", "bench"])
def test_a_group_without_a_command_shows_its_help(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([group]) == 0
    shown = capsys.readouterr()
    assert f"p3o {group} [OPTIONS] COMMAND" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_and_arguments_have_no_type(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert not re.search(r"<(bool|str|path|list)\b", shown)
    assert re.search(r"--help +Show", shown)
