"""Damaged checkpoints and run folders: never a wrong state, never a traceback."""

import json
from pathlib import Path
from typing import Any

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.torture.cases import FUZZ, any_text, damaged, read_or_told, values

from p3o.files import write_json
from p3o.training.checkpoint import MANIFEST, TENSORS, VALUES, Checkpoints, save_state
from p3o.training.tracking import RunFolder

OLD, NEW = {"step": 1, "weights": torch.zeros(9)}, {"step": 2, "weights": torch.ones(9), "text": "é"}


def saved(folder: Path) -> dict[str, bytes]:
    save_state(folder, NEW)
    return {name: (folder / name).read_bytes() for name in (TENSORS, VALUES, MANIFEST)}


def test_any_damage_falls_back_to_the_one_before(tmp_path: Path) -> None:
    warnings: list[str] = []
    checkpoints = Checkpoints(tmp_path / "sft", warn=warnings.append)
    checkpoints.save(1, OLD)
    checkpoints.save(2, NEW)
    newest = tmp_path / "sft" / "00000002"
    whole = {name: (newest / name).read_bytes() for name in (TENSORS, VALUES, MANIFEST)}
    changes = st.sampled_from(sorted(whole)).flatmap(lambda name: st.tuples(st.just(name), damaged(whole[name])))

    @FUZZ
    @given(changes)
    @example((MANIFEST, b'{"tensors.safetensors": {}, "state.json": {}}'))
    @example((VALUES, b"[]"))
    def check(change: tuple[str, bytes]) -> None:
        name, content = change
        warnings.clear()
        (newest / name).write_bytes(content)
        try:
            state = read_or_told("checkpoints", checkpoints.latest)
            assert state is not None
            if state["step"] == 2:  # white space in the manifest, at most
                assert torch.equal(state["weights"], NEW["weights"])
                assert content == whole[name] or json.loads(content) == json.loads(whole[MANIFEST])
            else:
                assert torch.equal(state["weights"], OLD["weights"])
                assert len(warnings) == 1
                assert str(newest) in warnings[0]
        finally:
            (newest / name).write_bytes(whole[name])

    check()


@FUZZ
@given(values(["bytes", "sha256", TENSORS, VALUES]))
def test_any_manifest(tmp_path: Path, manifest: Any) -> None:
    checkpoints = Checkpoints(tmp_path / "sft")
    checkpoints.save(1, OLD)
    (tmp_path / "sft" / "00000001" / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    assert read_or_told("checkpoints", checkpoints.latest) is None


RECORD = json.dumps({"name": "x", "status": "failed", "seed": 0, "seconds": {"sft": 1.0}, "warnings": []}).encode()


@FUZZ
@given(damaged(RECORD) | values(["seconds", "status", "warnings", "sft"]).map(lambda value: json.dumps(value).encode()))
def test_any_run_record(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "runs" / "x"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_bytes(content)
    opened = read_or_told("run folders", lambda: RunFolder.open(tmp_path / "runs", "x"))
    if opened is not None:
        read_or_told("run folders", lambda: opened.done("sft"))
        read_or_told("run folders", lambda: opened.warn("careful"))


@FUZZ
@given(any_text)
@example("..")
@example("a/../../b")
@example("/etc")
@example("CON\n")
def test_no_name_leaves_its_folder(tmp_path: Path, name: str) -> None:
    output = tmp_path / "runs"
    found = read_or_told(
        "names", lambda: RunFolder.create(output, name, config="a: 1\n", seed=0, threads=1, overwrite=True)
    )
    if found is not None:
        assert found.path.parent == output
        assert found.path.resolve().parent == output.resolve()
    assert {path.name for path in tmp_path.iterdir()} <= {"runs"}


@FUZZ
@given(values(["a"]))
def test_what_is_no_number_is_never_half_written(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "value.json"
    path.unlink(missing_ok=True)
    read_or_told("values to be written", lambda: write_json(path, value))
    if path.exists():
        json.loads(path.read_bytes())
    assert {file.name for file in tmp_path.iterdir()} <= {path.name}
