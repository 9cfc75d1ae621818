"""One label per form, whatever is sent how often; and a history that nobody can change."""

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlmodel import col, select
from tests.labeling.conftest import POSTGRESQL, assigned, pairs

from p3o.errors import P3OError
from p3o.labeling.answers import Answer, NotYoursError
from p3o.labeling.assignment import next_work
from p3o.labeling.records import holding_records
from p3o.labeling.store import Store
from p3o.labeling.tables import Event

Register = Callable[[str], int]


def events(store: Store) -> list[Event]:
    with store.database.reading() as session:
        return list(session.exec(select(Event).order_by(col(Event.id))))


def test_a_label_is_kept_as_it_was_given(store: Store, annotator: Register) -> None:
    store.add_items(pairs(1))
    ada = annotator("ada")
    store.label(ada, assigned(store, ada), "k", Answer("b", 2, "too long,\nbut right"))
    [record] = holding_records(store)
    assert (record.event.choice, record.event.strength, record.event.comment) == ("b", 2, "too long,\nbut right")
    assert (record.item.prompt, record.annotator.name) == ("prompt 0", "ada")
    assert record.event.seconds is not None
    assert 0 <= record.event.seconds < 60
    assert store.verify() == {"items": 1, "labels": 1, "undone": 0}


def test_a_form_sent_twice_is_one_label_and_the_first_answer_holds(store: Store, annotator: Register) -> None:
    store.add_items(pairs(2))
    ada = annotator("ada")
    assignment = assigned(store, ada)
    first = store.label(ada, assignment, "k", Answer("a"))
    again = store.label(ada, assignment, "k", Answer("b"))
    other_form = store.label(ada, assignment, "another key", Answer("b"))
    assert first.id == again.id == other_form.id
    assert [event.choice for event in events(store)] == ["a"]


def test_the_same_key_of_two_annotators_is_two_labels(store: Store, annotator: Register) -> None:
    store.change_settings(overlap=2)
    store.add_items(pairs(1))
    for name, choice in (("ada", "a"), ("bob", "b")):
        who = annotator(name)
        store.label(who, assigned(store, who), "k", Answer(choice))
    assert [event.choice for event in events(store)] == ["a", "b"]


def test_undo_appends_and_gives_the_pair_back(store: Store, annotator: Register) -> None:
    store.add_items(pairs(3))
    ada = annotator("ada")
    labels = [store.label(ada, assigned(store, ada), f"k{i}", Answer("a")) for i in range(2)]
    assert store.undo(ada, labels[0].id, "u") is False, "a newer label holds"
    assert store.undo(ada, labels[1].id, "u1") is True
    assert store.undo(ada, labels[1].id, "u1") is True, "sent again"
    assert store.undo(ada, labels[1].id, "u2") is True, "from a second window"
    work = next_work(store, ada)
    assert work.item is not None
    assert work.item.id == labels[1].item_id
    assert work.latest is not None
    assert work.latest.id == labels[0].id
    store.label(ada, assigned(store, ada), "k2", Answer("b"))
    assert [(event.choice, event.undoes) for event in events(store)] == [
        ("a", None),
        ("a", None),
        (None, labels[1].id),
        ("b", None),
    ]
    assert store.verify() == {"items": 3, "labels": 2, "undone": 1}


def test_all_labels_can_be_undone_one_after_the_other(store: Store, annotator: Register) -> None:
    store.add_items(pairs(3))
    ada = annotator("ada")
    for i, choice in enumerate(("a", "skip", "tie")):
        store.label(ada, assigned(store, ada), f"k{i}", Answer(choice))
    for i in range(3):
        latest = next_work(store, ada).latest
        assert latest is not None
        assert latest.id is not None
        assert store.undo(ada, latest.id, f"u{i}")
    assert next_work(store, ada).latest is None
    assert store.verify() == {"items": 3, "labels": 0, "undone": 3}


def test_nobody_labels_or_undoes_for_another(store: Store, annotator: Register) -> None:
    store.add_items(pairs(2))
    ada, bob = annotator("ada"), annotator("bob")
    assignment = assigned(store, ada)
    with pytest.raises(NotYoursError):
        store.label(bob, assignment, "k", Answer("a"))
    with pytest.raises(NotYoursError):
        store.label(bob, 10**6, "k", Answer("a"))
    with pytest.raises(NotYoursError):
        store.is_swapped(bob, assignment)
    label = store.label(ada, assignment, "k", Answer("a"))
    with pytest.raises(NotYoursError):
        store.undo(bob, label.id, "u")
    store.undo(ada, label.id, "u")
    undo = events(store)[-1]
    with pytest.raises(NotYoursError):
        store.undo(ada, undo.id, "u2")


@pytest.mark.parametrize("change", ["UPDATE event SET choice = 'b'", "DELETE FROM event"])
def test_the_database_refuses_to_change_history(store: Store, annotator: Register, change: str) -> None:
    store.add_items(pairs(1))
    ada = annotator("ada")
    store.label(ada, assigned(store, ada), "k", Answer("a"))
    with (
        pytest.raises((DBAPIError, P3OError), match="the history is append-only"),
        store.database.writing() as session,
    ):
        session.execute(text(change))
    assert [event.choice for event in events(store)] == ["a"]


def test_a_block_that_fails_leaves_nothing(store: Store) -> None:
    def change_and_fail() -> None:
        with store.database.writing() as session:
            session.execute(text("UPDATE setting SET value = '7' WHERE name = 'overlap'"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        change_and_fail()
    assert store.settings().overlap == 1


def test_many_threads_with_one_form_make_one_label(store: Store, annotator: Register) -> None:
    store.add_items(pairs(1))
    ada = annotator("ada")
    assignment = assigned(store, ada)
    found: list[int | None] = []

    def send(choice: str) -> None:
        found.append(store.label(ada, assignment, "k", Answer(choice)).id)  # type: ignore[arg-type]

    threads = [threading.Thread(target=send, args=(choice,)) for choice in ("a", "b", "tie", "a", "b", "bad")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert set(found) == {events(store)[0].id}
    assert len(events(store)) == 1


def test_tokens_are_hashed_renewed_and_end(store: Store, place: Path) -> None:
    token = store.add_annotator("ada")
    assert len(token) >= 43, "256 bits"
    assert store.authenticate(token) is not None
    assert store.authenticate(token + "x") is None
    assert store.authenticate("") is None
    [row] = store.annotators()
    assert row.token_hash is not None
    assert token not in row.token_hash
    if isinstance(place, Path):
        kept = b"".join(file.read_bytes() for file in place.parent.glob("labels.db*"))
        assert row.token_hash.encode() in kept
        assert token.encode() not in kept
    new = store.renew_token("ada")
    assert (store.authenticate(token), store.authenticate(new) is not None) == (None, True)
    store.deactivate("ada")
    assert store.authenticate(new) is None


@pytest.mark.skipif(
    not POSTGRESQL, reason="P3O_TEST_POSTGRESQL names no server; all tests of stores ran on SQLite only"
)
def test_postgresql_commits_to_the_disk(store: Store) -> None:
    if store.database.engine.dialect.name == "postgresql":
        with store.database.writing() as session:
            values = [session.execute(text(f"SHOW {name}")).scalar() for name in ("fsync", "synchronous_commit")]
        assert values == ["on", "on"]


def test_a_store_is_opened_again_as_it_was(place: Path, store: Store) -> None:
    store.add_items(pairs(2))
    store.change_settings(overlap=3, gold_every=4)
    again = Store.open(place)
    assert (again.id, again.settings()) == (store.id, store.settings())
    assert again.add_items(pairs(3)) == 1
    again.close()


def test_sqlite_commits_to_the_disk(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s.db")
    with store.database.writing() as session:
        values = [session.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")]
    assert values == ["wal", 2], "2 is FULL"
    store.close()


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda store: store.add_annotator("ada"), "an annotator with this name exists already"),
        (lambda store: store.add_annotator("  "), "1 to 100 printable characters"),
        (lambda store: store.add_annotator("a\nb"), "1 to 100 printable characters"),
        (lambda store: store.renew_token("eve"), "there is no annotator with this name"),
        (lambda store: store.change_settings(overlap=0), "overlap: 0 is less than 1"),
        (lambda store: Answer("c"), "choice 'c': not one of a, b, tie, bad, skip"),
        (lambda store: Answer("a", 4), "strength 4: not 1, 2 or 3"),
        (lambda store: Answer("a", None, "x" * 2001), "2001 characters; shorten it to at most 2000"),
        (lambda store: Answer("a", None, "\0"), "holds a null character"),
    ],
)
def test_a_wrong_call_is_told(store: Store, act: Callable[[Store], object], told: str) -> None:
    store.add_annotator("ada")
    with pytest.raises(P3OError) as caught:
        act(store)
    assert told in str(caught.value)


def test_an_id_with_other_texts_is_refused_and_nothing_is_added(store: Store) -> None:
    first, second, third = pairs(3)
    store.add_items([first])
    clash = type(second)(first.key, second.prompt, second.response_a, second.response_b)
    with pytest.raises(P3OError, match="the store already has a pair with this id"):
        store.add_items([third, clash])
    assert store.verify()["items"] == 1


def test_what_is_no_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database " * 100)
    with pytest.raises(P3OError, match=r"text\.db: file is not a database"):
        Store.open(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE birds (name TEXT)")
    connection.close()
    with pytest.raises(P3OError, match="not a labelling store \\(table 'birds'\\)"):
        Store.open(tmp_path / "other.db")
    with pytest.raises(P3OError, match="no such folder"):
        Store.open(tmp_path / "none" / "s.db")
    with pytest.raises(P3OError, match="no such store"):
        Store.open(tmp_path / "s.db", create=False)
    with pytest.raises(P3OError, match="not a URL"):
        Store.open("what")
    with pytest.raises(P3OError, match="this kind of database is not supported"):
        Store.open("oracles://localhost/x")


def test_verify_finds_a_contradiction(store: Store, annotator: Register) -> None:
    store.add_items(pairs(1))
    ada = annotator("ada")
    store.label(ada, assigned(store, ada), "k", Answer("a"))
    with store.database.writing() as session:
        session.execute(text("UPDATE item SET labels = 2"))
    with pytest.raises(P3OError, match="the count of item 1 disagrees"):
        store.verify()
    with store.database.writing() as session:
        session.execute(text("UPDATE item SET labels = 1"))
        session.execute(text("UPDATE assignment SET label_id = NULL"))
    with pytest.raises(P3OError, match="assignments and history disagree about the labels"):
        store.verify()
