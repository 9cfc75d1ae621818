"""A run's folder: nothing is overwritten without being asked, and its files say how far the run came."""

import json
from contextlib import suppress
from pathlib import Path

import pytest

from p3o.errors import P3OError
from p3o.files import read_jsonl
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
    with pytest.raises(P3OError, match="exists already and is not empty; choose another --name or pass --overwrite"):
        create(tmp_path)
    (tmp_path / "first" / "old.txt").write_text("old")
    create(tmp_path, overwrite=True)
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


def test_opening_cuts_nothing_off_and_only_our_own_files_are_mended(tmp_path: Path) -> None:
    path = earlier_run(tmp_path)
    (path / "mine.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}')
    (path / "samples.jsonl").write_text('{"step": 0}\n')
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "rl", "st')
    before = contents(path)
    folder = RunFolder.open(tmp_path, "first")
    assert contents(path) == before
    [told] = folder.drop_torn_lines(["metrics.jsonl", "samples.jsonl", "not_there.jsonl"])
    assert told.startswith(f"{path}/metrics.jsonl: its last line had no end")
    assert told.endswith("; 19 bytes cut off")
    assert read_jsonl(path / "metrics.jsonl") == [{"stage": "sft", "step": 0}]
    assert [name for name, file in contents(path).items() if file != before[name]] == ["metrics.jsonl"]


def test_overwrite_removes_only_runs(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("x")
    with pytest.raises(P3OError, match="not the folder of a run"):
        create(tmp_path, "photos", overwrite=True)
    assert names(tmp_path / "photos") == ["one.jpg"]


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "/tmp/x", ".hidden", "a\0b", "a\nb", "ä b", "-x"])
def test_a_name_is_one_plain_word(tmp_path: Path, name: str) -> None:
    with pytest.raises(P3OError, match="not a run's name"):
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
        pytest.raises(P3OError, match="stage 'reward' is done already"),
        RunFolder.open(tmp_path, "first").stage("reward"),
    ):
        pass
    with RunFolder.open(tmp_path, "first", overwrite=True).stage("reward"):
        pass
    assert [row["stage"] for row in read_jsonl(folder.path / "metrics.jsonl")] == ["sft", "rl"]


def test_open_tells_the_nearest_run(tmp_path: Path) -> None:
    create(tmp_path, "smollm2")
    with pytest.raises(P3OError, match=r"no run there .* did you mean 'smollm2'"):
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
