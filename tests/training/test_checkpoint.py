"""Checkpoints: what comes back is what was saved, and damage is seen, named and passed over."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p3o.errors import P3OError
from p3o.training.checkpoint import (
    MANIFEST,
    TENSORS,
    VALUES,
    Checkpoints,
    DamagedCheckpointError,
    load_state,
    restore_trainable,
    save_state,
    trainable_state,
)

STATE: dict[str, Any] = {
    "step": 7,
    "weights": {"layer.0/weight": torch.randn(3, 2, dtype=torch.float64), "scalar": torch.tensor(1.5)},
    "buffer": [{"mask": torch.tensor([[True, False]]), "ended": [True], "text": "ü\u2028"}, None],
    "generator": torch.Generator().manual_seed(3).get_state(),
    "rate": 0.1 + 0.2,
    "half": torch.randn(4).to(torch.bfloat16),
    "empty": torch.empty(0, dtype=torch.long),
}


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(equal, left, right))
    return type(left) is type(right) and left == right


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    save_state(tmp_path, STATE)
    assert equal(load_state(tmp_path), STATE)
    assert sorted(file.name for file in tmp_path.iterdir()) == [MANIFEST, VALUES, TENSORS]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(state=st.dictionaries(st.text(), plain, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_plain_state_comes_back(state: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("state")
    save_state(folder, state)
    assert equal(load_state(folder), state)


def test_views_of_one_storage_are_saved_apart(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    save_state(tmp_path, {"a": whole[:3], "b": whole[3:]})
    loaded = load_state(tmp_path)
    assert loaded["a"].tolist() == [0, 1, 2]
    assert loaded["b"].tolist() == [3, 4, 5]
    assert (tmp_path / TENSORS).stat().st_size < 300


def test_what_cannot_be_saved_is_told(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a checkpoint or message cannot hold a set"):
        save_state(tmp_path, {"a": {1, 2}})


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (flip, "content has changed|not complete JSON|does not list|instead of"),
    (cut, "instead of|not complete JSON"),
    (Path.unlink, "is missing"),
    (lambda path: path.write_bytes(b""), "instead of|not complete JSON"),
]


@pytest.mark.parametrize("name", [TENSORS, VALUES, MANIFEST])
@pytest.mark.parametrize(("damage", "told"), DAMAGES)
def test_damage_is_named_and_the_checkpoint_before_it_is_used(
    name: str, damage: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    warnings: list[str] = []
    checkpoints = Checkpoints(tmp_path / "sft", keep=3, warn=warnings.append)
    for step in (10, 20):
        checkpoints.save(step, {"step": step, "weights": torch.full((50,), float(step))})
    damage(tmp_path / "sft" / "00000020" / name)
    with pytest.raises(DamagedCheckpointError, match=told):
        load_state(tmp_path / "sft" / "00000020")
    state = checkpoints.latest()
    assert state is not None
    assert state["step"] == 10
    assert len(warnings) == 1
    assert name in warnings[0]
    assert "continuing from 10" in warnings[0]


def test_when_all_are_damaged_nothing_starts_anew_in_silence(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, {"step": 5})
    cut(tmp_path / "00000005" / VALUES)
    with pytest.raises(P3OError, match="no intact checkpoint"):
        checkpoints.latest()


def test_the_newest_are_kept_and_temporary_names_are_no_checkpoints(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (1, 2, 3, 3):
        checkpoints.save(step, {"step": step})
    (tmp_path / ".00000009.123.tmp").mkdir()
    assert [path.name for path in checkpoints.saved()] == ["00000003", "00000002"]
    checkpoints.remove()
    assert checkpoints.latest() is None


def test_only_what_is_trained_is_saved_and_another_model_is_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    model[0].requires_grad_(False)
    saved = {name: tensor.clone() for name, tensor in trainable_state(model).items()}
    assert sorted(saved) == ["1.bias", "1.weight"]
    torch.nn.init.zeros_(model[1].weight)
    restore_trainable(model, saved)
    assert torch.equal(model[1].weight, saved["1.weight"])
    with pytest.raises(P3OError, match=r"belongs to another model: 1\.weight differs"):
        restore_trainable(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(4, 1)), saved)
