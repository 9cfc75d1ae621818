"""Malformed configurations: read, or refused with the file and the key."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from tests.torture.cases import FUZZ, any_number, any_text, damaged, read_or_told, values

from p3o.config import RunConfig
from p3o.config import RunConfig as Config
from p3o.config_keys import schema_keys
from p3o.config_loading import dump_config, load_config

KEYS = [key.dotted.replace("NAME", "p3o_v2") for key in schema_keys(RunConfig)]
NAMES = sorted({part for key in KEYS for part in key.split(".")})
WHOLE = dump_config(Config(embedded={}, sft={})).encode()  # type: ignore[arg-type]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def load(file: Path, content: bytes, *overrides: str) -> RunConfig | None:
    file.write_bytes(content)
    return read_or_told("configurations", lambda: load_config(file, overrides, RunConfig))


def nested(dotted: str, value: Any) -> dict[str, Any]:
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value


@FUZZ
@given(damaged(WHOLE))
@example(b"")
@example(b"\0")
@example(b"a: &x [*x]\n")
@example(b"a: !!python/object/apply:os.system ['true']\n")
@example(b"{" * 100_000)
@example(b"name: " + b"x" * 1_000_000)
@example(b"seed: " + b"9" * 100_000)
@example(b"seed: 0x" + b"f" * 10_000)
@example(b"sft: {}\nsft: {}\n")
@example("name: \u202eabc\n".encode())
@example("name: a".encode("utf-16"))
def test_damaged_yaml(file: Path, content: bytes) -> None:
    load(file, content)


@FUZZ
@given(st.sampled_from(KEYS), values(NAMES))
@example("seed", 10**5000)
@example("rl.runs", {"../../escape": {"algorithm": "p3o_v2"}})
def test_any_value_under_any_key(file: Path, key: str, value: Any) -> None:
    try:
        text = yaml.safe_dump(nested(key, value), allow_unicode=True)
    except (yaml.YAMLError, ValueError):  # what no YAML can say
        return
    loaded = load(file, text.encode("utf-8", "surrogatepass"))
    if loaded is not None:  # nothing is dropped on the way: what was taken can be written and read again
        assert load(file, dump_config(loaded).encode()) == loaded


@FUZZ
@given(st.sampled_from(KEYS) | any_text, any_text | any_number.map(str))
@example("seed", "9" * 5000)
def test_any_override(file: Path, key: str, value: str) -> None:
    load(file, WHOLE, f"{key}={value}")


@FUZZ
@given(st.dictionaries(st.sampled_from(NAMES) | any_text, values(NAMES), max_size=6))
def test_any_mapping(file: Path, mapping: dict[str, Any]) -> None:
    try:
        text = yaml.safe_dump(mapping, allow_unicode=True)
    except (yaml.YAMLError, ValueError):
        return
    load(file, text.encode("utf-8", "surrogatepass"))
