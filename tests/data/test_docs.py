"""The examples of docs/data.md work as printed."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.chat_model import save_tokenizer

from p3o.cli import main
from p3o.config import DataConfig, RunConfig
from p3o.config_loading import load_config
from p3o.data.adapters import ADAPTERS
from p3o.data.formats import Example, Message, kind_of_columns, parse
from p3o.data.sources import SourceConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found.group(1)


def test_the_configuration_loads(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: m\n" + block("yaml"), encoding="utf-8")
    data = load_config(path, [], RunConfig).data
    assert list(data.sources()) == ["prompts", "heldout_prompts", "demonstrations", "preferences"]
    assert data.bad_rows == "skip"


def test_every_row_is_read_as_its_kind() -> None:
    rows = [json.loads(line) for line in block("jsonl").splitlines()]
    kinds = [kind_of_columns(row) for row in rows]
    assert kinds == ["prompts", "demonstrations", "preferences", "preferences", "preferences", "demonstrations"]
    question = "What is a skink?"
    asked = (Message("user", question),)
    assert [parse(row, kind) for row, kind in zip(rows, kinds, strict=True)] == [
        Example(question),
        Example(question, (" A lizard.",)),
        Example(question, (" A lizard.", " A bird.")),
        Example(question, (" A lizard.", " No idea.")),
        Example(asked, ("A lizard.", "A bird.")),
        Example(asked, ("A lizard.",)),
    ]


def test_the_error_and_the_commands_are_as_printed(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tokenizer(tmp_path / "path" / "to" / "model")
    pairs = [{"prompt": f"{i}?", "chosen": "a", "rejected": "b"} for i in range(60)]
    write(*pairs[:2], {"prompt": "Q", "chosen": "a", "rejected": "a"}, *pairs[2:], name="pairs.jsonl")
    Path("mine.yaml").write_text("model: path/to/model\nreward: {function: a:b}\ndata: {prompts: pairs.jsonl}\n")
    assert main(["data", "prepare", "pairs.jsonl", "--output", "stopped"]) == 2
    assert capsys.readouterr().err == block("text")
    commands = [shlex.split(line) for line in block("sh").splitlines()]
    assert len(commands) == 3
    for command in commands:
        assert main(command[1:]) == 0, capsys.readouterr().err


def test_every_key_reason_and_adapter_is_on_the_page() -> None:
    source = (ROOT / "src" / "p3o" / "data").glob("*.py")
    code = "".join(path.read_text(encoding="utf-8") for path in source)
    reasons = set(re.findall(r'(?:BadRowError|_fail)\(\s*"([^"]+)"', code))
    reasons |= set(re.findall(r'^[A-Z_]+ = "(not a .*|malformed)"', code, re.MULTILINE))
    assert {"empty", "too long", "malformed", "not a comparison"} <= reasons
    for word in [*reasons, *ADAPTERS, *SourceConfig.model_fields, *DataConfig.model_fields]:
        assert f"`{word}`" in PAGE or f"{word}:" in block("yaml"), word


def test_every_ready_configuration_is_named() -> None:
    for path in (ROOT / "src" / "p3o" / "configs").glob("*.yaml"):
        if not path.stem.startswith("demo"):
            assert f"`{path.name.removesuffix('.yaml')}`" in PAGE
