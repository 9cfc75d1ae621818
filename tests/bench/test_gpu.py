"""The script for a GPU, on the processor: every part runs, what is wrong is seen, a part that fails costs no other."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import gpu
from torch import Tensor

from p3o.models.layouts import Padded


def run(tmp_path: Path, *parts: str) -> tuple[int, dict[str, Any]]:
    """Exit code and results of a quick run of these parts."""
    file = tmp_path / "gpu.json"
    code = gpu.main(["--device", "cpu", "--quick", "--json", str(file), "--only", *parts])
    return code, json.loads(file.read_text())


def test_log_probs_gradients_and_tokens_are_held_to_the_processors(tmp_path: Path) -> None:
    code, results = run(tmp_path, "right")
    assert (code, results["device"], results["quick"]) == (0, "cpu", True)
    part = results["parts"]["right"]
    assert part["greedy_tokens_agree"] == 1.0
    assert part["float32, chosen"] == part["bfloat16, chosen"]
    assert part["float32, chosen"].startswith("layout shared")
    compared = {name: row for name, row in part.items() if isinstance(row, dict)}
    assert len(compared) == 12
    for name, row in compared.items():
        limit = 1e-4 if name.startswith("float32") else 0.1
        assert row["logprobs_off"] < limit, name
        assert row["gradient_off"] < limit, name
        assert row["repeats_exactly"], name
    assert compared["bfloat16, padded, whole"]["logprobs_off"] > 1e-4


def test_a_layout_that_is_wrong_is_seen_and_a_part_that_fails_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Padded.logprobs

    def off(self: Padded, model: torch.nn.Module, *arguments: Any, **settings: Any) -> Tensor:
        found = plain(self, model, *arguments, **settings)
        return found * 1.01 if self.budget is not None else found

    monkeypatch.setattr(Padded, "logprobs", off)
    monkeypatch.setitem(gpu.PARTS, "sampling", lambda _: {}["missing"])
    code, results = run(tmp_path, "sampling", "right")
    assert code == 1
    assert results["parts"]["sampling"]["error"] == "KeyError: 'missing'"
    assert "KeyError" in capsys.readouterr().err
    assert results["parts"]["right"]["float32, padded, chunked"]["logprobs_off"] > 1e-3
    assert results["parts"]["right"]["float32, padded, whole"]["logprobs_off"] < 1e-4


@pytest.mark.slow
def test_every_other_part_runs(tmp_path: Path) -> None:
    code, results = run(tmp_path, *(name for name in gpu.PARTS if name not in ("right", "compiled")))
    parts = results["parts"]
    assert code == 0, parts
    assert parts["products"]["float32"]["operations_per_second"] > 0
    assert parts["sampling"]["cast, 4 rows"]["tokens_per_second"] > 0
    assert parts["layouts"]["shared (2, 2, 16, 8)"]["positions"] < parts["layouts"]["padded (2, 2, 16, 8)"]["positions"]
    assert "sampling" in parts["steps"]["ppo"]["phases"]
    assert parts["learning"]["first losses, float32"] == parts["learning"]["first losses, processor"]
    assert len(parts["learning"]["p3o_v2, bfloat16"]["reward"]) == 1
    assert parts["brevity"]["skipped"] == "no --model"
