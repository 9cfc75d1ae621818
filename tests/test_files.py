"""A full disk leaves nothing half-written, and every refusal of the system is told in plain words."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from p3o.errors import P3OError
from p3o.files import (
    append_jsonl,
    atomic_directory,
    clear_leftovers,
    plain_os_errors,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond this many bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused_before_anything_is_written(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(P3OError, match=r"metrics\.jsonl: 'losses\[1\]\.rl' is (nan|-?inf); nothing was written"):
        append_jsonl(path, {"step": 1, "losses": [0.5, {"rl": value}]})
    with pytest.raises(P3OError, match="'loss' is"):
        write_json(path, {"loss": value})
    assert names(tmp_path) == []


def test_floats_keep_every_digit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    values = [0.1 + 0.2, 1e-300, 2.0**-1074, 1e22, 123456789.123456789]
    append_jsonl(path, {"values": values})
    assert read_jsonl(path) == [{"values": values}]


def test_a_full_disk_leaves_whole_lines_and_the_old_file(tmp_path: Path) -> None:
    lines, text = tmp_path / "lines.jsonl", tmp_path / "report.html"
    append_jsonl(lines, {"step": 0})
    write_text(text, "old")
    with files_of_at_most(64):
        with pytest.raises(P3OError, match=r"lines\.jsonl: cannot be written: the file would be larger"):
            append_jsonl(lines, {"step": 1, "text": "x" * 100})
        with pytest.raises(P3OError, match=r"report\.html: cannot be written: the file would be larger"):
            write_text(text, "x" * 100)
        with pytest.raises(P3OError, match="cannot be written"):
            write_jsonl(tmp_path / "new.jsonl", [{"text": "x" * 100}])
    assert lines.read_text() == '{"step": 0}\n'
    assert text.read_text() == "old"
    assert names(tmp_path) == ["lines.jsonl", "report.html"]


def test_a_device_that_is_full_is_told_in_plain_words() -> None:
    path = Path("/dev/full")
    with pytest.raises(P3OError, match="/dev/full: cannot be written: the disk is full; free some space"):
        append_jsonl(path, {"step": 0})


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_system_errors_in_plain_words(number: int, told: str) -> None:
    with (
        pytest.raises(P3OError, match=f"^runs/x: cannot be written: {told}"),
        plain_os_errors(Path("runs/x"), "written"),
    ):
        raise OSError(number, os.strerror(number))


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match="mine"), plain_os_errors(Path("x"), "written"):
        raise ValueError("mine")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(P3OError, match="permission denied"):
        write_text(tmp_path / "report.html", "")


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "models" / "sft"
    with atomic_directory(target) as folder:
        (folder / "config.json").write_text("{}")
        assert not target.exists()
    assert names(target) == ["config.json"]
    assert names(tmp_path / "models") == ["sft"]
    with pytest.raises(P3OError, match="already exists"), atomic_directory(target):
        pass


def test_a_directory_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "sft"
    with suppress(ValueError), atomic_directory(target) as folder:
        (folder / "half").write_text("")
        raise ValueError("no")
    assert names(tmp_path) == []
    with atomic_directory(target) as folder:
        (folder / "old").write_text("")
    with suppress(KeyboardInterrupt), atomic_directory(target, replace=True) as folder:
        (folder / "new").write_text("")
        raise KeyboardInterrupt
    assert names(target) == ["old"]
    with atomic_directory(target, replace=True) as folder:
        (folder / "new").write_text("")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["sft"]


def test_weights_on_a_full_disk_leave_nothing(tmp_path: Path) -> None:
    """safetensors is written in Rust and tells the system's error in its message only."""
    with (
        files_of_at_most(1000),
        pytest.raises(P3OError, match="sft: cannot be written: the file would be larger"),
        atomic_directory(tmp_path / "sft") as folder,
    ):
        save_file({"weight": torch.zeros(1000)}, folder / "model.safetensors")
    assert names(tmp_path) == []


def test_what_a_killed_write_left_is_put_right(tmp_path: Path) -> None:
    for name in (".new.12.tmp", ".aside.12.old", ".replaced.12.old", "replaced", "inner/.deep.3.tmp", ".own"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text(name)
    clear_leftovers(tmp_path)
    found = {str(path.parent.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("file")}
    assert found == {"aside": ".aside.12.old", "replaced": "replaced", ".own": ".own"}


def test_half_of_a_surrogate_pair_comes_back_as_it_was(tmp_path: Path) -> None:
    append_jsonl(tmp_path / "rows.jsonl", {"text": "a\ud800ü"})
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"text": "a\ud800ü"}]
