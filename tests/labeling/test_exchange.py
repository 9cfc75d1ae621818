"""What was labelled is what comes out, and comes in again; and other tools' exports mean what they say."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from sqlmodel import select
from tests.labeling.conftest import assigned, pairs

from p3o.data.reading import read_examples
from p3o.data.sources import SourceConfig
from p3o.errors import P3OError
from p3o.labeling.annotators import hash_of
from p3o.labeling.answers import Answer
from p3o.labeling.assignment import next_work
from p3o.labeling.exchange import (
    Imported,
    Incoming,
    export_labels,
    import_labels,
    parse_own,
    ties_path,
    write_rows,
)
from p3o.labeling.foreign import Naming, read_labels
from p3o.labeling.judging import count_waiting
from p3o.labeling.pairs import Pair
from p3o.labeling.records import holding_records, status_of
from p3o.labeling.server import links_for
from p3o.labeling.store import Store
from p3o.labeling.tables import Annotator

Register = Callable[[str], int]
CHOICES = ("a", "b", "tie", "bad", "skip")


def filled(store: Store, annotator: Register) -> None:
    """Seven pairs, two of them gold, answered by ada: a, b, tie, bad, skip, and the gold ones with a."""
    store.change_settings(gold_every=100)
    store.add_items(pairs(7, gold=2))
    ada = annotator("ada")
    for i, choice in enumerate((*CHOICES, "a", "a")):
        store.label(ada, assigned(store, ada), str(i), Answer(choice, 3 if choice == "b" else None, f"comment {i}"))


def test_an_export_has_every_label_in_its_place(store: Store, annotator: Register) -> None:
    filled(store, annotator)
    exported = export_labels(store)
    assert (exported.skipped, exported.gold) == (1, 2)
    first, second = exported.preferences
    assert (first["prompt"], first["chosen"], first["rejected"]) == ("prompt 0", "good answer 0", "bad answer 0")
    assert (second["prompt"], second["chosen"], second["rejected"]) == ("prompt 1", "bad answer 1", "good answer 1")
    assert (second["annotator"], second["strength"], second["comment"]) == ("ada", 3, "comment 1")
    assert (second["policy_chosen"], second["policy_rejected"]) == ("policy-two", "policy-one")
    assert abs((datetime.fromisoformat(second["time"]) - datetime.now(UTC)).total_seconds()) < 60
    assert [(row["prompt"], row["label"]) for row in exported.ties] == [("prompt 2", "tie"), ("prompt 3", "bad")]
    assert exported.ties[0]["response_a"] == "good answer 2"


def test_an_undone_label_is_not_exported(store: Store, annotator: Register) -> None:
    store.add_items(pairs(1))
    ada = annotator("ada")
    store.undo(ada, store.label(ada, assigned(store, ada), "k", Answer("a")).id or 0, "u")
    assert export_labels(store).preferences == []
    store.label(ada, assigned(store, ada), "k2", Answer("b"))
    assert [row["chosen"] for row in export_labels(store).preferences] == ["bad answer 0"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_an_export_is_imported_as_it_was_and_twice_is_once(
    store: Store, annotator: Register, tmp_path: Path, suffix: str
) -> None:
    filled(store, annotator)
    exported = export_labels(store)
    path = tmp_path / f"labels{suffix}"
    write_rows(path, exported.preferences)
    write_rows(ties_path(path), exported.ties)
    other = Store.open(tmp_path / "other.db")
    for file in (path, ties_path(path)):
        labels, without = read_labels(file)
        assert without == 0
        assert import_labels(other, labels) == Imported(labels=2, known=0, items=2)
        assert import_labels(other, labels) == Imported(labels=0, known=2, items=0)
    again = export_labels(other)
    for row in (*exported.preferences, *exported.ties):
        row.update(seconds=None, shown_first="a")  # of the page, not of the label
    assert again.preferences == exported.preferences
    assert again.ties == exported.ties
    assert other.verify() == {"items": 4, "labels": 4, "undone": 0}
    other.close()


def test_an_export_trains_a_reward_model(store: Store, annotator: Register, tmp_path: Path) -> None:
    filled(store, annotator)
    write_rows(tmp_path / "p.jsonl", export_labels(store).preferences)
    assert [
        placed.example.answers[0]
        for placed in read_examples(SourceConfig(path=str(tmp_path / "p.jsonl")), "preferences")[0]
    ] == ["good answer 0", "bad answer 1"]


def test_parquet_keeps_the_columns(store: Store, annotator: Register, tmp_path: Path) -> None:
    filled(store, annotator)
    rows = export_labels(store).preferences
    write_rows(tmp_path / "p.parquet", rows)
    assert parquet.read_table(tmp_path / "p.parquet").to_pylist() == rows
    with pytest.raises(P3OError, match=r"must end in \.jsonl or \.parquet"):
        write_rows(tmp_path / "p.csv", rows)


def test_plain_preferences_are_imported_without_telling_by_their_order(store: Store, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "x", "rejected": "y"}, {"prompt": "q", "chosen": "y", "rejected": "x"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels, _ = read_labels(tmp_path / "p.jsonl")
    assert [(label.pair.response_a, label.pair.response_b, label.answer.choice) for label in labels] == [
        ("x", "y", "a"),
        ("x", "y", "b"),
    ]
    import_labels(store, labels)
    assert [row["chosen"] for row in export_labels(store).preferences] == ["x", "y"]


def test_an_import_that_contradicts_adds_nothing(store: Store, tmp_path: Path) -> None:
    def write(*chosen: str) -> Path:
        rows = [{"prompt": f"p{i}", "chosen": c, "rejected": "xy".replace(c, "")} for i, c in enumerate(chosen)]
        (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / "p.jsonl"

    import_labels(store, read_labels(write("x"))[0])
    with pytest.raises(P3OError, match=r"p\.jsonl:2: imported has answered this pair .* nothing was imported"):
        import_labels(store, [*read_labels(write("x", "y"))[0][1:], *flipped(read_labels(write("x"))[0])])
    assert store.verify()["labels"] == 1


def flipped(labels: list[Any]) -> list[Any]:
    """The same labels with the other answer, as of line 2."""
    return [type(one)(one.pair, one.annotator, Answer("b"), one.time, one.place.replace(":1", ":2")) for one in labels]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "p", "chosen": "x"}, "no column 'rejected'"),
        ({"prompt": "p", "chosen": "x", "rejected": "x"}, "are the same text"),
        ({"prompt": "p", "chosen": "x", "rejected": "y", "strength": 9}, "strength 9: not 1, 2 or 3"),
        ({"prompt": "p", "chosen": "x", "rejected": "y", "time": "noon"}, "'time': 'noon' is not a valid time"),
        ({"prompt": "p", "chosen": "x", "rejected": "y", "annotator": 3}, "'annotator': 3 is not a text"),
        ({"prompt": "p", "response_a": "x", "response_b": "y", "label": "c"}, "choice 'c': not one of"),
        ("x", "not a JSON object"),
    ],
)
def test_a_bad_row_is_told(tmp_path: Path, row: Any, told: str) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(P3OError) as caught:
        read_labels(tmp_path / "p.jsonl", "p3o")
    assert str(caught.value).startswith(f"{tmp_path / 'p.jsonl'}:1: ")
    assert told in str(caught.value)


def argilla(value: Any, question: str = "preference", **fields: str) -> dict[str, Any]:
    """A record as ``Record.to_dict`` of argilla 2 writes it."""
    return {
        "id": "0",
        "fields": fields or {"prompt": "p", "response1": "x", "response2": "y"},
        "metadata": {},
        "suggestions": {question: {"value": "response1", "score": None, "agent": "model"}},
        "responses": {question: [{"value": value, "user_id": "u1"}]} if value is not ... else {},
        "vectors": {},
        "_server_id": "s",
    }


def read(tmp_path: Path, rows: list[dict[str, Any]], naming: Naming | None = None) -> tuple[list[tuple[str, str]], int]:
    """Annotators and choices of an export."""
    (tmp_path / "export.json").write_text(json.dumps(rows))
    labels, without = read_labels(tmp_path / "export.json", None, naming)
    return [(label.annotator, label.answer.choice) for label in labels], without


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        ("response1", "a"),
        ("response2", "b"),
        ("Tie", "tie"),
        ("both bad", "bad"),
        ([{"value": "response1", "rank": 2}, {"value": "response2", "rank": 1}], "b"),
        ([{"value": "response1", "rank": 1}, {"value": "response2", "rank": 1}], "tie"),
    ],
)
def test_argilla(tmp_path: Path, value: Any, choice: str) -> None:
    assert read(tmp_path, [argilla(value), argilla(...), argilla(None)]) == ([("argilla u1", choice)], 1)


def test_argilla_with_names_of_its_own(tmp_path: Path) -> None:
    row = argilla("the left one", "which", post="p", draft="x", final="y", note="n")
    with pytest.raises(
        P3OError, match=r"which of 'post', 'draft', 'final', 'note' are the prompt and the two responses"
    ):
        read(tmp_path, [row])
    naming = Naming("post", "draft", "final")
    with pytest.raises(P3OError, match="what does the label 'the left one' mean"):
        read(tmp_path, [row], naming)
    naming = Naming("post", "draft", "final", "which", {"the left one": "a"})
    assert read(tmp_path, [row], naming) == ([("argilla u1", "a")], 0)
    with pytest.raises(P3OError, match="no field 'posts'"):
        read(tmp_path, [row], Naming("posts", "draft", "final"))


def task(*results: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A task as Label Studio's JSON export has it, with one annotation."""
    annotation = {"id": 1, "result": list(results), "was_cancelled": False, "completed_by": 10, "lead_time": 4.2}
    annotation |= {"created_at": "2021-03-09T22:16:08.728353Z", **more}
    return {
        "id": 1,
        "data": {"prompt": "p", "text1": "x", "text2": "y"},
        "annotations": [annotation],
        "predictions": [],
    }


def pairwise(selected: str, name: str = "pw") -> dict[str, Any]:
    value = {"selected": selected}
    return {
        "from_name": name,
        "to_name": "text1,text2",
        "type": "pairwise",
        "value": value,
        "id": "x",
        "origin": "manual",
    }


def choices(*chosen: str) -> dict[str, Any]:
    return {"from_name": "ch", "to_name": "text1", "type": "choices", "value": {"choices": list(chosen)}}


def test_label_studio(tmp_path: Path) -> None:
    rows = [
        task(pairwise("left")),
        task(pairwise("right"), completed_by={"id": 3, "email": "ada@example.org"}),
        task(choices("tie")),
        task(pairwise("left"), was_cancelled=True),
        task({"from_name": "c", "type": "textarea", "value": {"text": ["why"]}}),
    ]
    found = [("label-studio 10", "a"), ("label-studio ada@example.org", "b"), ("label-studio 10", "tie")]
    assert read(tmp_path, rows) == (found, 2)
    [label, *_] = read_labels(tmp_path / "export.json")[0]
    assert label.time == datetime(2021, 3, 9, 22, 16, 8, 728353, tzinfo=UTC)
    assert (label.pair.prompt, label.pair.response_a, label.pair.response_b) == ("p", "x", "y")


def test_label_studio_with_several_questions(tmp_path: Path) -> None:
    row = task(pairwise("left", "safer"), pairwise("right", "better"))
    with pytest.raises(P3OError, match="answers to 'safer', 'better'; name the question"):
        read(tmp_path, [row])
    assert read(tmp_path, [row], Naming(question="better"))[0] == [("label-studio 10", "b")]


def test_foreign_labels_reach_the_store(store: Store, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(json.dumps([task(pairwise("right"))]))
    import_labels(store, read_labels(tmp_path / "e.json")[0])
    [record] = holding_records(store)
    assert (record.annotator.role, record.row()["chosen"]) == ("imported", "y")
    assert record.event.at == datetime(2021, 3, 9, 22, 16, 8, 728353, tzinfo=UTC)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    for name, content, told in (
        ("a.json", "[", "not a JSON list"),
        ("b.jsonl", "{", r"b\.jsonl:1: not a complete JSON object"),
        ("c.jsonl", "", "has no rows"),
        ("d.parquet", "x", "not a readable parquet file"),
        ("e.json", '[{"data": 1, "annotations": []}]', "no 'data' object"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(P3OError, match=told):
            read_labels(tmp_path / name)


def test_an_id_with_other_texts_is_refused(store: Store, tmp_path: Path) -> None:
    store.add_items([Pair("k", "p", "x", "y")])
    row = {"id": "k", "prompt": "p", "chosen": "x", "rejected": "z", "chosen_side": "a"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    with pytest.raises(
        P3OError, match="the store already has a pair with the id 'k' and different texts; nothing was imported"
    ):
        import_labels(store, read_labels(tmp_path / "p.jsonl")[0])


def of(name: str, *chosen: str) -> list[Incoming]:
    """Labels that the file says this annotator gave to the pairs p0, p1, …"""
    rows = [
        {"prompt": f"p{i}", "chosen": c, "rejected": "xy".replace(c, ""), "annotator": name}
        for i, c in enumerate(chosen)
    ]
    return parse_own([(f"l.jsonl:{number}", row) for number, row in enumerate(rows, start=1)])


def test_who_logs_in_speaks_for_themselves(store: Store, annotator: Register) -> None:
    annotator("ada")
    with pytest.raises(P3OError, match=r"^l\.jsonl:1: ada labels in this store, .* nothing was imported$"):
        import_labels(store, of("ada", "x"))
    store.add_annotator("boss", "admin")
    with pytest.raises(P3OError, match="boss labels in this store"):
        import_labels(store, of("boss", "x"))
    assert store.verify() == {"items": 0, "labels": 0, "undone": 0}


def test_nobody_but_the_admin_has_the_admins_name(store: Store) -> None:
    """An import under it would leave a new store without any admin."""
    with pytest.raises(P3OError, match=r"^l\.jsonl:1: annotator 'admin': .* nothing was imported$"):
        import_labels(store, of("admin", "x"))
    with pytest.raises(P3OError, match="annotator 'admin': this name is reserved for the administrator"):
        count_waiting(store, "admin")
    [admin] = links_for(store, [])
    found = store.authenticate(admin.token or "")
    assert found is not None
    assert (found.name, found.role) == ("admin", "admin")


def test_whose_labels_were_imported_can_log_in_and_label_the_rest(store: Store) -> None:
    import_labels(store, of("ada", "x", "y"))
    store.add_items([Pair("k", "p", "x", "y")])
    links = links_for(store, ["ada"])
    assert [link.name for link in links] == ["admin", "ada"]
    ada = store.authenticate(links[1].token or "")
    assert ada is not None
    assert ada.role == "annotator"
    work = next_work(store, ada.id or 0)
    assert work.item is not None
    assert work.item.key == "k", "the others she has answered"
    store.label(ada.id or 0, assigned(store, ada.id or 0), "0" * 32, Answer("a"))
    assert import_labels(store, of("ada", "x", "y")) == Imported(labels=0, known=2, items=0)
    status = status_of(store, datetime.now(UTC))
    assert [label.item for label in status.by_people] == [3], "statistics of the page are of labels given there"
    assert [label.role for label in status.labels] == ["imported", "imported", "annotator"]
    assert links_for(store, ["ada"])[1].token is None


def test_a_token_of_who_cannot_log_in_is_none(store: Store) -> None:
    import_labels(store, of("eve", "x"))
    count_waiting(store, "judge")
    with store.database.writing() as session:
        for who in session.exec(select(Annotator)):
            who.token_hash = hash_of(f"token of {who.name}")
    for name in ("eve", "judge"):
        assert store.authenticate(f"token of {name}") is None
        with pytest.raises(P3OError, match="nobody logs in with this name"):
            store.renew_token(name)


@pytest.mark.parametrize("wrong", ["judge", "", "a\nb"])
def test_links_are_made_for_all_or_for_none(store: Store, wrong: str) -> None:
    """A token is shown once: of a name that was registered before the mistake nobody would see it."""
    count_waiting(store, "judge")
    with pytest.raises(P3OError):
        links_for(store, ["ada", wrong])
    assert [found.name for found in store.annotators()] == ["judge"]
    assert all(link.token for link in links_for(store, ["ada"]))


def test_a_bad_row_is_told_with_its_line_whatever_blank_lines_stand_before_it(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('\n\n{"prompt": "p", "chosen": "a"}\n')
    with pytest.raises(P3OError, match=r"labels\.jsonl:3: no column 'rejected'"):
        read_labels(path)
