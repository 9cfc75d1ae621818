"""Malformed rows of every file format: each row is used, or counted as dropped, or the file is refused with its place."""

import csv
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.chat_model import chat_tokenizer
from tests.torture.cases import FUZZ, any_number, any_text, damaged, read_or_told, values

from p3o.data.adapters import ADAPTERS
from p3o.data.formats import KINDS
from p3o.data.reading import read_examples, render_rows, richest_kind
from p3o.data.sources import SourceConfig

COLUMNS = ["prompt", "completion", "chosen", "rejected", "messages"]
NAMES = [*COLUMNS, "role", "content", "user", "assistant", "system"]
ROWS = [
    {"prompt": "Who?", "completion": "I.", "chosen": "I am.", "rejected": "You."},
    {
        "prompt": [{"role": "user", "content": "Who? é"}],
        "chosen": "a",
        "rejected": [{"role": "assistant", "content": "b"}],
    },
    {"messages": [{"role": "user", "content": "שלום"}, {"role": "assistant", "content": "👋"}]},
]
WHOLE = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
TOKENIZER = chat_tokenizer()

kinds = st.sampled_from(KINDS)
adapters = st.none() | st.sampled_from(sorted(ADAPTERS))


def check(what: str, path: Path, kind: Any, adapter: str | None = None) -> None:
    """Nothing is lost without a count: what was read is kept or dropped, and with "stop" nothing is dropped."""
    source = SourceConfig(path=str(path), adapter=adapter)
    read_or_told(what, lambda: richest_kind(source))
    for policy in ("skip", "stop"):
        found = read_or_told(what, partial(read_examples, source, kind, policy))
        if found is None:
            continue
        examples, report = found
        assert len(examples) == report.kept == report.read - sum(report.dropped.values())
        rows = read_or_told(what, partial(render_rows, examples, TOKENIZER, report))
        if rows is not None:
            assert len(rows) == report.kept
            for row in rows:
                assert row.prompt.strip()
                for text in (row.prompt, *row.answers):
                    text.encode()


@FUZZ
@given(damaged(WHOLE), kinds, adapters)
@example(b'{"prompt": "' + b"x" * 3_000_000 + b'"}\n', "prompts", None)
@example(b"[" * 100_000, "prompts", None)
@example(b'{"prompt": "a", "prompt": "b"}', "prompts", None)
@example(b'{"prompt": 1' + b"0" * 10_000 + b"}", "prompts", None)
def test_damaged_jsonl(tmp_path: Path, content: bytes, kind: Any, adapter: str | None) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    check("JSONL rows", path, kind, adapter)


@FUZZ
@given(
    st.lists(st.dictionaries(st.sampled_from(NAMES) | any_text, values(NAMES), max_size=5), max_size=4), kinds, adapters
)
def test_any_json_object(tmp_path: Path, rows: list[dict[str, Any]], kind: Any, adapter: str | None) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    check("JSONL rows", path, kind, adapter)


def as_csv(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


CSV = as_csv([COLUMNS[:4], ["Who?", "I, myself", 'a "b"', "line\nbreak"], ["שלום", "é", "x", "y"]])


@FUZZ
@given(
    damaged(CSV) | st.lists(st.lists(any_text | any_number.map(str), max_size=5), max_size=5).map(as_csv),
    kinds,
    adapters,
)
@example(b"prompt\n" + b"x" * 200_000 + b"\n", "prompts", None)
@example(b'prompt\n"never closed', "prompts", None)
@example(b"prompt\rone\rtwo\r", "prompts", None)
def test_damaged_csv(tmp_path: Path, content: bytes, kind: Any, adapter: str | None) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    check("CSV rows", path, kind, adapter)


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


PARQUET = as_parquet([{"prompt": "Who?", "completion": "I."}, {"prompt": "What?", "completion": None}])


@FUZZ
@given(damaged(PARQUET) | st.binary(max_size=200), kinds)
@example(b"PAR1", "prompts")
@example(PARQUET.replace(b"completion", b"\xffompletion"), "prompts")
@example(b"", "prompts")
def test_damaged_parquet(tmp_path: Path, content: bytes, kind: Any) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(content)
    check("parquet rows", path, kind)


cells = st.one_of(
    st.lists(st.none() | st.text(max_size=5), min_size=1, max_size=3),
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3),
    st.lists(st.none() | st.floats(), min_size=1, max_size=3),
    st.lists(st.none() | st.binary(max_size=5), min_size=1, max_size=3),
    st.lists(st.none() | st.lists(st.text(max_size=3), max_size=2), min_size=1, max_size=3),
    st.lists(
        st.none() | st.fixed_dictionaries({"role": st.text(max_size=4), "content": st.text(max_size=3)}),
        min_size=1,
        max_size=3,
    ),
    st.lists(st.none() | st.dates() | st.none(), min_size=1, max_size=3),
    st.lists(
        st.none() | st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-99, max_value=99),
        min_size=1,
        max_size=3,
    ),
)


@FUZZ
@given(st.dictionaries(st.sampled_from(NAMES), cells, min_size=1, max_size=4), kinds, adapters)
def test_any_parquet_column(tmp_path: Path, columns: dict[str, list[Any]], kind: Any, adapter: str | None) -> None:
    length = min(map(len, columns.values()))
    rows = [{name: cells[i] for name, cells in columns.items()} for i in range(length)]
    path = tmp_path / "rows.parquet"
    path.write_bytes(as_parquet(rows))
    check("parquet rows", path, kind, adapter)


@FUZZ
@given(any_text)
def test_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    if not name or name.startswith("hub:"):
        return
    try:
        source = SourceConfig(path=name)
    except ValidationError:  # which reading a configuration turns into words
        return
    read_or_told("paths", lambda: read_examples(source, "prompts"))
