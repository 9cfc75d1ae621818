"""What annotators are told: which files are refused, which version holds for which label, how the page shows it."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.labeling.conftest import Enter, assigned, pairs
from tests.labeling.test_app import answer, tags

from p3o.errors import P3OError
from p3o.labeling.answers import Answer
from p3o.labeling.exchange import Incoming, export_labels, import_labels
from p3o.labeling.instructions import LONGEST, change_instructions, newest_instructions, read_instructions
from p3o.labeling.pairs import Pair
from p3o.labeling.records import holding_records
from p3o.labeling.store import Store


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "guide.md: cannot be read: no such file or folder"),
        (b"", "guide.md: is empty; write the instructions into it"),
        (b"\xef\xbb\xbf \r\n\t\n", "guide.md: is empty"),
        (b"First\nna\xefve", r"guide.md:2: not UTF-8; save the instructions"),
        ("Be fair.".encode("utf-16"), "guide.md:1: not UTF-8"),
        ("Be fair.".encode("utf-16-le"), "guide.md: holds a null character"),
        (b"x" * (LONGEST + 1), "guide.md: longer than 64 KiB; shorten it"),
    ],
)
def test_a_file_that_nobody_can_read_is_refused(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "guide.md"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(P3OError, match=told):
        read_instructions(path)


def test_a_file_is_kept_to_the_byte_so_that_its_checksum_is_that_of_the_file(store: Store, tmp_path: Path) -> None:
    path, raw = tmp_path / "guide.md", "\ufeff# Guide\r\n\r\nPrefer the trüe one.\r\n".encode() + b"x" * 100
    path.write_bytes(raw)
    assert change_instructions(store, read_instructions(path))
    kept = newest_instructions(store)
    assert kept is not None
    assert kept.sha256 == hashlib.sha256(raw).hexdigest()
    assert kept.shown.startswith("# Guide\r\n\r\nPrefer the trüe one.")
    path.write_bytes(b"x" * LONGEST)
    assert len(read_instructions(path)) == LONGEST


def test_every_label_leads_to_the_version_under_which_it_was_given(
    store: Store, annotator: Callable[[str], int]
) -> None:
    store.add_items(pairs(5))
    ada = annotator("ada")

    def label(key: str) -> int:
        return store.label(ada, assigned(store, ada), key, Answer("a")).id or 0

    label("0")
    assert change_instructions(store, "never read by anyone")
    assert change_instructions(store, "first")
    assert not change_instructions(store, "first"), "it is so already"
    label("1")
    undone = label("2")
    assert change_instructions(store, "second")
    store.undo(ada, undone, "u")
    label("2 again")
    assert change_instructions(store, "first")
    label("3")
    first, second = sha256("first"), sha256("second")
    assert [record.instructions for record in holding_records(store)] == [None, first, second, first]
    exported = export_labels(store)
    assert [row["instructions"] for row in exported.preferences] == [None, first, second, first]
    assert exported.instructions == [
        {"instructions": first, "text": "first"},
        {"instructions": second, "text": "second"},
    ]
    assert store.verify() == {"items": 5, "labels": 4, "undone": 1}
    assert store.settings().overlap == 1


def test_labels_that_did_not_come_from_the_page_were_given_under_none(store: Store) -> None:
    change_instructions(store, "for people at the page")
    import_labels(store, [Incoming(Pair("k", "p", "x", "y"), "eve", Answer("a"), None, "file:1")])
    assert [record.instructions for record in holding_records(store)] == [None]


def test_the_page_shows_them_open_until_a_pair_is_answered_and_again_when_they_change(
    store: Store, enter: Enter
) -> None:
    store.add_items(pairs(4))
    ada = enter("ada")
    assert '<details class="instructions"' not in ada.get("/").text
    change_instructions(store, "Prefer what is true.\n\n  1. Then what is short.")
    for page in (ada.get("/").text, ada.get("/").text):
        assert '<details class="instructions" open>' in page
        assert "Prefer what is true.\n\n  1. Then what is short.</div>" in page
    for _ in range(2):
        page = answer(ada, "skip").text
        assert '<details class="instructions">' in page
        assert "Prefer what is true." in page
    assert '<details class="instructions" open>' in enter("bob").get("/").text, "each for themselves"
    change_instructions(store, "Prefer what is short.")
    page = ada.get("/").text
    assert '<details class="instructions" open>' in page
    assert "what is true" not in page


def test_who_is_known_by_imported_labels_has_not_read_them(store: Store, enter: Enter) -> None:
    store.add_items(pairs(1))
    change_instructions(store, "Prefer what is true.")
    import_labels(store, [Incoming(Pair("k", "p", "x", "y"), "eve", Answer("a"), None, "file:1")])
    assert '<details class="instructions" open>' in enter("eve").get("/").text


def test_their_markup_is_shown_and_never_becomes_markup(store: Store, enter: Enter) -> None:
    store.add_items(pairs(1))
    ada = enter("ada")
    change_instructions(store, "plain")
    plain = tags(ada.get("/").text)
    change_instructions(
        store, "</div></details><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }} [a](javascript:b)"
    )
    page = ada.get("/").text
    assert tags(page) == plain
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page


def test_the_admin_gets_them_as_a_file_and_nobody_else_does(store: Store, enter: Enter) -> None:
    boss, ada = enter("boss", "admin"), enter("ada")
    assert "instructions" not in boss.get("/admin").text
    change_instructions(store, "Prefer what is true.")
    assert sha256("Prefer what is true.")[:12] in boss.get("/admin").text
    answered = boss.get("/admin/export/instructions.jsonl")
    assert answered.json() == {"instructions": sha256("Prefer what is true."), "text": "Prefer what is true."}
    assert ada.get("/admin/export/instructions.jsonl").status_code == 404
    assert boss.get("/admin/export/skipped").status_code == 404
