"""A run's folder: nothing is overwritten without being asked, and its files say how far the run came."""

import errno
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from p3o.errors import P3OError
from p3o.files import read_jsonl
from p3o.training import replacing, tracking
from p3o.training.growing import drop_torn_lines
from p3o.training.tracking import RunFolder, free_name


def create(output: Path, name: str = "first", *, overwrite: bool = False) -> RunFolder:
    return RunFolder.create(output, name, config="seed: 3\n", seed=3, threads=1, overwrite=overwrite)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_records_what_it_is_and_how_it_ended(tmp_path: Path) -> None:
    with create(tmp_path / "runs") as folder:
        assert json.loads((folder.path / "run.json").read_text())["status"] == "running"
        with folder.stage("sft"):
            folder.metrics({"stage": "sft", "step": 0, "loss": 0.1 + 0.2})
        assert folder.done("sft")
    record = json.loads((folder.path / "run.json").read_text())
    assert (record["name"], record["status"], record["seed"], record["threads"]) == ("first", "complete", 3, 1)
    assert record["versions"]["torch"]
    assert record["machine"]["processors"] >= 1
    assert record["seconds"]["sft"] >= 0
    assert (folder.path / "config.yaml").read_text() == "seed: 3\n"
    assert (folder.path / "metrics.jsonl").read_text() == '{"stage": "sft", "step": 0, "loss": 0.30000000000000004}\n'
    assert names(folder.path) == ["config.yaml", "metrics.jsonl", "run.json"]


@pytest.mark.parametrize(("failure", "status"), [(ValueError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_a_failed_run_says_so(tmp_path: Path, failure: type[BaseException], status: str) -> None:
    with suppress(failure), create(tmp_path) as folder, folder.stage("rl"):
        folder.metrics({"stage": "rl", "step": 0})
        raise failure
    record = json.loads((tmp_path / "first" / "run.json").read_text())
    assert record["status"] == status
    assert record["seconds"] == {}
    assert record["unfinished_seconds"]["rl"] >= 0


def test_a_run_that_made_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(P3OError, match="bad input"), create(tmp_path):
        raise P3OError("bad input")
    assert names(tmp_path) == []


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    create(tmp_path)
    with pytest.raises(P3OError, match="already exists and is not empty; choose another --name or pass --overwrite"):
        create(tmp_path)
    (tmp_path / "first" / "old.txt").write_text("old")
    create(tmp_path, overwrite=True).begin()
    assert names(tmp_path / "first") == ["config.yaml", "run.json"]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder: its bytes, and when it was written."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def earlier_run(output: Path) -> Path:
    """The folder of a run that is complete."""
    with create(output) as folder, folder.stage("sft"):
        folder.metrics({"stage": "sft", "step": 0})
        (folder.path / "sft").mkdir()
        (folder.path / "sft" / "model.safetensors").write_text("weights")
    return folder.path


def test_an_earlier_run_stands_until_the_new_one_begins(tmp_path: Path) -> None:
    path = earlier_run(tmp_path)
    before = contents(path)
    for failure in (P3OError("nowhere.jsonl: cannot be read"), KeyboardInterrupt()):
        with suppress(type(failure)), create(tmp_path, overwrite=True) as folder:
            folder.warn("seen while the input is checked")
            assert not folder.is_ready
            raise failure
        assert contents(path) == before
    with create(tmp_path, overwrite=True) as folder:
        assert contents(path) == before
        folder.begin()
        assert names(path) == ["config.yaml", "run.json"]
        assert folder.is_ready
        with folder.stage("sft"):
            pass
    record = json.loads((path / "run.json").read_text())
    assert (record["status"], list(record["seconds"])) == ("complete", ["sft"])


def test_settings_and_status_of_a_run_stand_until_the_next_stage_begins(tmp_path: Path) -> None:
    path = earlier_run(tmp_path)
    before = contents(path)
    with suppress(P3OError), RunFolder.open(tmp_path, "first", overwrite=True, config="seed: 4\n") as folder:
        folder.warn("seen while the input is checked")
        raise P3OError("nowhere.jsonl: cannot be read")
    assert contents(path) == before
    with RunFolder.open(tmp_path, "first", config="seed: 4\n") as folder, folder.stage("rl"):
        assert (path / "config.yaml").read_text() == "seed: 4\n"
        assert json.loads((path / "run.json").read_text())["status"] == "running"


def test_a_row_is_never_appended_to_the_run_that_is_replaced(tmp_path: Path) -> None:
    path = earlier_run(tmp_path)
    create(tmp_path, overwrite=True).metrics({"stage": "rl", "step": 0})
    assert read_jsonl(path / "metrics.jsonl") == [{"stage": "rl", "step": 0}]


@pytest.mark.parametrize("refused", ["config.yaml", "run.json", "the new folder"])
def test_a_full_disk_leaves_the_earlier_run_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    path = earlier_run(tmp_path)
    before = contents(path)

    def full(file: Path, *_: object, **__: object) -> None:
        if refused in (file.name, "the new folder"):
            raise OSError(errno.ENOSPC, "No space left on device", str(file))

    folder = create(tmp_path, overwrite=True)
    with monkeypatch.context() as patch:
        if refused == "the new folder":
            patch.setattr(Path, "mkdir", full)
        else:
            for name in ("write_text", "write_json"):
                written = getattr(tracking, name)
                patch.setattr(tracking, name, lambda file, value, w=written: full(file) or w(file, value))
        with pytest.raises(P3OError, match="the disk is full"):
            folder.begin()
    assert contents(path) == before
    assert names(path) == ["config.yaml", "metrics.jsonl", "run.json", "sft"]
    assert RunFolder.open(tmp_path, "first").done("sft")


class Killed(BaseException):
    """The death of the process."""


def test_killed_at_any_moment_it_is_the_earlier_run_or_one_that_overwrite_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = 0
    while True:
        shutil.rmtree(tmp_path, ignore_errors=True)
        path = earlier_run(tmp_path)
        folder = create(tmp_path, overwrite=True)
        left = [moments]

        def dying(call: Any, left: list[int] = left) -> Any:
            def instead(*arguments: Any, **named: Any) -> Any:
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return call(*arguments, **named)

            return instead

        with monkeypatch.context() as patch:
            for name in ("mkdir", "rename", "replace", "rmdir", "unlink"):
                patch.setattr(Path, name, dying(getattr(Path, name)))
            patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
            try:
                folder.begin()
            except Killed:
                pass
            else:
                break
        if (path / "metrics.jsonl").exists() and not (path / ".replacing").exists():
            assert RunFolder.open(tmp_path, "first").done("sft")
            assert (path / "sft" / "model.safetensors").read_text() == "weights"
        elif (path / ".replacing").exists():
            with pytest.raises(P3OError, match=r"partly removed, .* p3o run --overwrite"):
                RunFolder.open(tmp_path, "first")
        create(tmp_path, overwrite=True).begin()
        assert names(path) == ["config.yaml", "run.json"]
        assert not RunFolder.open(tmp_path, "first").done("sft")
        moments += 1
    assert moments > 8


def test_the_folder_may_be_a_link_and_is_never_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "another disk"
    (tmp_path / "runs").mkdir()
    disk.mkdir()
    (tmp_path / "runs" / "first").symlink_to(disk)
    path = earlier_run(tmp_path / "runs")
    assert path.is_symlink()
    assert (disk / "sft" / "model.safetensors").exists()
    rename = Path.rename

    def refuses(self: Path, target: Path) -> Path:
        """As overlayfs renames no folder of a lower layer, and nobody a mount."""
        if self.resolve() == disk or self == path:
            raise OSError(errno.EXDEV, "Invalid cross-device link", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuses)
    create(tmp_path / "runs", overwrite=True).begin()
    assert path.is_symlink()
    assert names(disk) == ["config.yaml", "run.json"]
    assert names(tmp_path / "runs") == ["first"]


def test_a_process_that_torchrun_starts_again_knows_which_run_it_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks before it resumes: the run that stands there may still be the one to be replaced."""
    path = earlier_run(tmp_path)
    create(tmp_path, overwrite=True)
    assert names(path) == ["config.yaml", "metrics.jsonl", "run.json", "sft"], "no mark where nobody starts again"
    monkeypatch.setenv(replacing.RESTARTS, "0")
    folder = create(tmp_path, overwrite=True)
    assert replacing.still_to_replace(path)
    folder.begin()
    assert not replacing.still_to_replace(path)
    with RunFolder.open(tmp_path, "first").stage("sft"):
        pass
    folder = RunFolder.open(tmp_path, "first", overwrite=True)
    folder.begin()
    assert replacing.still_to_replace(path)
    with folder.stage("sft"):
        assert not replacing.still_to_replace(path)


def test_opening_cuts_nothing_off_and_only_our_own_files_are_mended(tmp_path: Path) -> None:
    path = earlier_run(tmp_path)
    (path / "mine.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}')
    (path / "samples.jsonl").write_text('{"step": 0}\n')
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "rl", "st')
    before = contents(path)
    folder = RunFolder.open(tmp_path, "first")
    assert contents(path) == before
    [told] = drop_torn_lines(folder.path, ["metrics.jsonl", "samples.jsonl", "not_there.jsonl"])
    assert told.startswith(f"{path}/metrics.jsonl: its last line was incomplete")
    assert told.endswith("; removed 19 bytes")
    assert read_jsonl(path / "metrics.jsonl") == [{"stage": "sft", "step": 0}]
    assert [name for name, file in contents(path).items() if file != before[name]] == ["metrics.jsonl"]


def test_overwrite_removes_only_runs(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("x")
    with pytest.raises(P3OError, match="not a run folder"):
        create(tmp_path, "photos", overwrite=True)
    assert names(tmp_path / "photos") == ["one.jpg"]


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "/tmp/x", ".hidden", "a\0b", "a\nb", "ä b", "-x"])
def test_a_name_is_one_plain_word(tmp_path: Path, name: str) -> None:
    with pytest.raises(P3OError, match="not a valid name for a run"):
        create(tmp_path, name)
    assert names(tmp_path) == []


def test_the_output_may_not_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(P3OError, match="cannot be created: a part of the path is a file"):
        create(tmp_path / "runs")


def test_open_goes_on_where_a_run_stopped(tmp_path: Path) -> None:
    with create(tmp_path) as folder:
        for stage in ("sft", "reward"):
            with folder.stage(stage):
                folder.metrics({"stage": stage, "step": 0})
        folder.metrics({"stage": "reward_test", "pairs": 2})
    with suppress(ValueError), RunFolder.open(tmp_path, "first") as folder, folder.stage("rl"):
        folder.metrics({"stage": "rl", "step": 0, "note": "a line\u2028in two"})
        raise ValueError("diverged")
    assert not folder.done("rl")
    with RunFolder.open(tmp_path, "first") as folder, folder.stage("rl"):
        folder.metrics({"stage": "rl", "step": 1})
    assert [row["stage"] for row in read_jsonl(folder.path / "metrics.jsonl")] == ["sft", "reward", "reward_test", "rl"]
    with (
        pytest.raises(P3OError, match="stage 'reward' is already done"),
        RunFolder.open(tmp_path, "first").stage("reward"),
    ):
        pass
    with RunFolder.open(tmp_path, "first", overwrite=True).stage("reward"):
        pass
    assert [row["stage"] for row in read_jsonl(folder.path / "metrics.jsonl")] == ["sft", "rl"]


def test_open_tells_the_nearest_run(tmp_path: Path) -> None:
    create(tmp_path, "smollm2")
    with pytest.raises(P3OError, match=r"there is no run .* did you mean 'smollm2'"):
        RunFolder.open(tmp_path, "smolm2")
    for content in ("", "[]", '{"seconds": 3}', "\udcff"):
        (tmp_path / "smollm2" / "run.json").write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(P3OError, match="not written by p3o"):
            RunFolder.open(tmp_path, "smollm2")


def test_free_name(tmp_path: Path) -> None:
    assert free_name(tmp_path / "nowhere", "demo") == "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert free_name(tmp_path, "demo") == "demo-3"
