"""RUN on the command line: a folder, or a run's name, by the same rule for every command that takes one."""

from pathlib import Path

import pytest

from p3o import cli
from p3o.cli.app import run_folder
from p3o.errors import P3OError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/mine", "elsewhere/theirs", "mine", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("runs/mine", "elsewhere/theirs"):
        (tmp_path / folder / "run.json").write_text("{}")
    return tmp_path


def test_a_run_is_named_by_its_folder_or_its_name(place: Path) -> None:
    assert run_folder(Path("runs/mine")) == Path("runs/mine")
    assert run_folder(Path("elsewhere/theirs")) == Path("elsewhere/theirs")
    assert run_folder(Path("theirs"), Path("elsewhere")) == Path("elsewhere/theirs")
    assert run_folder(Path("mine")) == Path("runs/mine"), "the folder 'mine' beside it is no run's"
    assert run_folder(Path("docs")) == Path("docs"), "the only one there is; what it lacks is told by who reads it"
    with pytest.raises(P3OError, match=r"^theirs: no such run folder, and no run of this name in runs; check"):
        run_folder(Path("theirs"))


@pytest.mark.parametrize("given", ["mine", "runs/mine"])
@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["samples"], "runs/mine: no samples yet"),
        (["judge", "--judge", "openai"], "runs/mine: there are no responses to judge yet"),
        (["report"], "runs/mine"),
    ],
)
def test_every_command_takes_both(
    place: Path, capsys: pytest.CaptureFixture[str], command: list[str], told: str, given: str
) -> None:
    assert cli.main([command[0], given, *command[1:]]) == 2
    assert f"error: {told}" in capsys.readouterr().err
