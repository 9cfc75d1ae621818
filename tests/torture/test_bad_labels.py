"""Malformed pairs and label files: imported whole, or refused with the row and nothing imported."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.torture.cases import FUZZ, damaged, read_or_told, values

from p3o.labeling.exchange import export_labels, import_labels, write_rows
from p3o.labeling.foreign import read_labels
from p3o.labeling.pairs import Pair, read_pairs
from p3o.labeling.store import Store

PAIRS = [
    {"prompt": "Who?", "response_a": "I", "response_b": "You", "id": "x", "gold": "a", "policy_a": "p"},
    {"prompt": [{"role": "user", "content": "מי?"}], "response_a": "é", "response_b": "👋", "id": 3},
]
OWN = [
    {
        "prompt": "p",
        "chosen": "c",
        "rejected": "r",
        "annotator": "ann",
        "strength": 2,
        "time": "2026-01-31T12:00:00+00:00",
    },
    {"prompt": "p", "response_a": "x", "response_b": "y", "label": "tie", "comment": "é", "preference": 0.5},
]
ARGILLA = [
    {
        "fields": {"instruction": "p", "response_a": "x", "response_b": "y"},
        "responses": {"preferred": [{"value": "a", "user_id": "u"}, {"value": None, "user_id": "v"}]},
    },
    {
        "fields": {"instruction": "p", "response_a": "x", "response_b": "z"},
        "responses": {"preferred": [{"value": [{"value": "a", "rank": 1}, {"value": "b", "rank": 2}], "user_id": "u"}]},
    },
]
LABEL_STUDIO = [
    {
        "data": {"prompt": "p", "a": "x", "b": "y"},
        "annotations": [
            {
                "result": [{"type": "pairwise", "from_name": "q", "value": {"selected": "left"}}],
                "completed_by": {"email": "e"},
            },
            {
                "result": [{"type": "choices", "value": {"choices": ["tie"]}}],
                "completed_by": 2,
                "created_at": "2026-01-31T12:00:00Z",
            },
        ],
    }
]
NAMES = sorted(
    {name for row in (*PAIRS, *OWN, *ARGILLA, *LABEL_STUDIO) for name in row}
    | {"value", "rank", "result", "selected", "choices"}
)


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def changed(rows: list[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    """The rows with a value somewhere in them replaced by any other."""
    places = list(_places(rows))

    def replace(at: int, value: Any) -> bytes:
        copy = json.loads(json.dumps(rows))
        *path, last = places[at % len(places)]
        inner = copy
        for key in path:
            inner = inner[key]
        inner[last] = value
        return json.dumps(copy).encode()

    return st.builds(replace, st.integers(0, len(places) - 1), values(NAMES))


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


@FUZZ
@given(
    damaged(lines(PAIRS))
    | st.lists(values(NAMES), max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
)
@example(b'{"prompt": "p", "response_a": "\\ud800", "response_b": "b"}')
@example(b"[" * 100_000)
def test_pairs(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    pairs = read_or_told("pairs to label", lambda: read_pairs(path))
    if pairs is not None:
        for pair in pairs:
            json.dumps(vars(pair), ensure_ascii=False).encode()


@FUZZ
@given(
    damaged(lines(OWN))
    | st.sampled_from([OWN, ARGILLA, LABEL_STUDIO]).flatmap(changed)
    | damaged(json.dumps(ARGILLA).encode())
)
@example(lines([{"prompt": "p", "response_a": "x", "response_b": "y", "label": "a", "strength": 1.5}]))
@example(lines([{"prompt": "p", "response_a": "x", "response_b": "y", "label": "a", "comment": 5}]))
@example(lines([{"prompt": "p", "response_a": "x", "response_b": "y", "label": "a", "preference": "much"}]))
@example(
    lines([{"prompt": "p", "response_a": "x", "response_b": "y", "label": "a", "time": "9999-12-31T23:59:59-23:59"}])
)
@example(
    lines(
        [
            {
                "prompt": "p",
                "response_a": "x",
                "response_b": "y",
                "label": "a",
                "annotator": "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
            }
        ]
    )
)
@example(lines([{"prompt": "p", "chosen": [None], "rejected": "r"}]))
def test_imports(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.json"
    path.write_bytes(content)
    found = read_or_told("label imports", lambda: read_labels(path))
    if found is None:
        return
    store = Store.open(tmp_path / "labels.db")
    try:
        before = export_labels(store)
        imported = read_or_told("label imports", lambda: import_labels(store, found[0]))
        after = export_labels(store)
        rows = [*after.preferences, *after.ties]
        if imported is None:
            assert after == before, "all or none"
        else:
            grown = (
                len(rows)
                + after.skipped
                + after.gold
                - len(before.preferences)
                - len(before.ties)
                - before.skipped
                - before.gold
            )
            assert grown == imported.labels
        write_rows(tmp_path / "out.jsonl", rows)
    finally:
        store.close()
        for file in tmp_path.glob("labels.db*"):
            file.unlink()


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(84), bytes(100_000)])
def test_a_file_that_is_no_store(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.db"
    path.write_bytes(content)
    store = read_or_told("label stores", lambda: Store.open(path))
    if store is not None:
        store.close()
        assert content == b"", "an empty file is an empty store"
    else:
        assert path.read_bytes() == content, "what is no store is left as it is"


def test_a_damaged_store(tmp_path: Path) -> None:
    path = tmp_path / "whole.db"
    store = Store.open(path)
    store.add_items([Pair(str(i), "p", f"a{i}", f"b{i}", None, None, None) for i in range(20)])
    store.close()
    whole = path.read_bytes()

    @FUZZ
    @given(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=30),
        st.none() | st.integers(0, len(whole)),
    )
    def check(changes: list[tuple[int, int]], end: int | None) -> None:
        content = bytearray(whole)
        for at, byte in changes:
            content[at] = byte
        damaged = tmp_path / "damaged.db"
        damaged.write_bytes(content[:end])
        try:
            store = read_or_told("label stores", lambda: Store.open(damaged))
            if store is not None:
                read_or_told("label stores", lambda: export_labels(store))
                store.close()
        finally:
            for file in tmp_path.glob("damaged.db*"):
                file.unlink()

    check()
