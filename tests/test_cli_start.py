"""`p3o init` and `p3o doctor`."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from p3o.cli import doctor, main, template
from p3o.cli.template import FILL_IN, configuration_text, tasks
from p3o.config import RunConfig
from p3o.config_keys import schema_keys
from p3o.config_loading import load_config, load_packaged_config
from p3o.errors import P3OError
from p3o.stages.context import choose_device

SETTING = re.compile(r"#( *[a-z0-9_]+:.*)")


def load(text: str, tmp_path: Path) -> RunConfig:
    path = tmp_path / "written.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, [], RunConfig)


def filled(text: str) -> str:
    """What a person does: a value in every marked line."""
    lines = [line.replace(": ", ": x.jsonl ", 1) if f"# {FILL_IN}:" in line else line for line in text.splitlines()]
    return "\n".join(lines)


def test_the_file_loads_when_the_marked_fields_are_filled(tmp_path: Path) -> None:
    text = configuration_text("own")
    assert text.count(f"# {FILL_IN}:") == 4
    config = load(filled(text), tmp_path)
    config.require_inputs(["sft", "sample", "reward", "rl", "evaluate", "report"])
    assert (config.model, str(config.data.prompts), str(config.data.preferences)) == ("x.jsonl",) * 3
    assert config.rl.runs["p3o_v2"].settings == {"epsilon": 0.2, "beta": 0.1}


def test_it_loads_unfilled_too_and_the_run_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    assert "fill in the lines marked FILL IN, then try: p3o run --config p3o.yaml --dry-run" in capsys.readouterr().out
    assert main(["run", "--config", "p3o.yaml", "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith("error: model: name a folder or hub model")


@pytest.mark.parametrize("task", [name for name in tasks() if name != "own"])
def test_a_packaged_task_means_the_same_when_it_is_written_out(task: str, tmp_path: Path) -> None:
    assert load(configuration_text(task), tmp_path) == load_packaged_config(task, [], RunConfig)


def test_a_task_may_be_named_without_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "_USUAL_MODEL", "quick")
    monkeypatch.setattr(template, "tasks", lambda: ["own", "demo_quick"])
    assert "`p3o init --task demo_quick`" in configuration_text("demo")


def test_every_key_is_there_with_its_description() -> None:
    text = " ".join(re.sub(r"\s*\n *#", "", configuration_text("own")).split())
    keys = list(schema_keys(RunConfig))
    for key in keys:
        section = next((other for other in keys if other.path == key.path[:-1]), None)
        needs = section is not None and any(other.required for other in keys if other.path[:-1] == section.path)
        if section is not None and section.default is None and needs:
            continue  # a section that may be absent but needs something has one line, which says what
        assert f"{key.path[-1]}:" in text, key.dotted
        assert " ".join(key.description.split()) in text, key.dotted


def test_what_is_commented_out_is_the_default(tmp_path: Path) -> None:
    """With every # of a setting removed, the file says in full what its active lines said alone."""
    text = filled(configuration_text("own"))
    # Sections that are there or not, such as lora: with their # removed they are.
    for name in ("embedded", "lora", "sampling"):
        text = re.sub(rf"#{name}:(.|\n)*?\n\n", "", text)
    opened = "\n".join(match[1] if (match := SETTING.fullmatch(line)) else line for line in text.splitlines())
    assert opened.count("#") < text.count("#") - 40
    assert load(opened, tmp_path) == load(text, tmp_path)


def test_init_never_overwrites_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("precious")
    assert main(["init", str(path)]) == 2
    assert f"{path}: already exists; choose another name or pass --overwrite" in capsys.readouterr().err
    assert path.read_text() == "precious"
    assert main(["init", str(path), "--overwrite"]) == 0
    assert "seed" in path.read_text()


def test_an_unknown_task_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "x.yaml"), "--task", "dmeo"]) == 2
    assert "--task dmeo: no such task; did you mean 'demo'?" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_this_machine_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "doctor.json"
    assert main(["doctor", "--json", str(path)]) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    assert found["works"] is True
    assert found["problems"] == []
    import torch

    assert found["facts"]["torch"] == torch.__version__
    assert found["facts"]["number format"] == "float32"
    assert found["facts"]["offline"] == "HF_HUB_OFFLINE=1"
    shown = capsys.readouterr().out
    assert shown.endswith("the core works\n")
    assert all(str(value) in shown for value in found["facts"].values())


def test_a_device_without_float64_is_passed_over_and_doctor_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sampling is in float64, which MPS lacks: auto would fail at the first token of every run on a Mac."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    for name in ("mps", "mps:0"):
        with pytest.raises(P3OError, match=f"device: '{name}' has no float64"):
            choose_device(name)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^mps +found but not used: it has no float64", shown, re.MULTILINE)
    assert re.search(r"^device +cpu \(device: auto\)", shown, re.MULTILINE)


def test_doctor_tells_what_is_missing_for_what(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["torch>=2.6", 'p3o-no-such<2,>=1; extra == "lora"', "peft ; extra == 'lora'", 'ruff; extra == "dev"']
    monkeypatch.setattr(doctor, "requires", lambda name: lines)
    assert doctor.optional_packages() == [("p3o-no-such", "lora"), ("peft", "lora")]
    monkeypatch.setitem(doctor.USES, "p3o-no-such", "LoRA adapters")
    assert main(["doctor"]) == 0
    assert "not installed: p3o-no-such: LoRA adapters (pip install 'p3o[lora]')" in capsys.readouterr().out


def test_doctor_fails_when_the_core_does_not_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "CORE", ("torch", "p3o-no-such"))
    monkeypatch.setattr(doctor, "NEEDED_PYTHON", (99, 1))
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert "problem: p3o-no-such is not installed; run: pip install p3o" in shown
    assert any(line.startswith("problem: Python 3") and "99.1 or later" in line for line in shown)
    assert shown[-1] == "2 problem(s)"


def test_a_gpu_that_is_named_is_the_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.device] = []
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cuda") == torch.device("cuda"), "the one that the launcher has chosen"
    assert used == [torch.device("cuda:1")]
