"""Who is given which pair: k answers each, one annotator never twice, leases that end, sides that stay."""

import random
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import select
from tests.labeling.conftest import assigned, pairs

from p3o.labeling.answers import Answer
from p3o.labeling.assignment import Work, next_work
from p3o.labeling.store import Store
from p3o.labeling.tables import Assignment

Register = Callable[[str], int]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def item_of(work: Work) -> str | None:
    return None if work.item is None else work.item.prompt


def answer_all(store: Store, who: int, *, key: str = "", choice: str = "a") -> list[str]:
    """Label until nothing is left; the prompts in order."""
    seen = []
    while (work := next_work(store, who)).assignment is not None:
        assert work.assignment.id is not None
        seen.append(item_of(work) or "")
        store.label(who, work.assignment.id, f"{key}{len(seen)}", Answer(choice))  # type: ignore[arg-type]
    return seen


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_every_pair_gets_k_answers_each_from_somebody_else(store: Store, annotator: Register, overlap: int) -> None:
    store.change_settings(overlap=overlap)
    store.add_items(pairs(6))
    people = [annotator(name) for name in ("ada", "bob", "cyd")]
    seen: Counter[str] = Counter()
    rng = random.Random(0)
    while people:
        who = rng.choice(people)
        work = next_work(store, who)
        if work.assignment is None:
            people.remove(who)
            continue
        assert work.assignment.id is not None
        seen[item_of(work) or ""] += 1
        store.label(who, work.assignment.id, str(sum(seen.values())), Answer("a"))
    assert seen == {f"prompt {i}": overlap for i in range(6)}
    assert store.verify() == {"items": 6, "labels": 6 * overlap, "undone": 0}


def test_the_open_pair_comes_again_on_the_same_sides(store: Store, annotator: Register) -> None:
    store.add_items(pairs(5))
    ada = annotator("ada")
    first = next_work(store, ada, rng=random.Random(1))
    for seed in range(10):
        again = next_work(store, ada, rng=random.Random(seed))
        assert again.assignment is not None
        assert first.assignment is not None
        assert (again.assignment.id, again.assignment.swapped) == (first.assignment.id, first.assignment.swapped)


def test_two_annotators_have_different_pairs_open(store: Store, annotator: Register) -> None:
    store.add_items(pairs(2))
    ada, bob, cyd = (annotator(name) for name in ("ada", "bob", "cyd"))
    assert [item_of(next_work(store, who)) for who in (ada, bob, cyd)] == ["prompt 0", "prompt 1", None]
    assert next_work(store, cyd).left == 2, "others have them open, but have not answered"


def test_an_expired_lease_gives_the_pair_to_the_next(store: Store, annotator: Register) -> None:
    store.change_settings(lease_seconds=60)
    store.add_items(pairs(1))
    ada, bob = annotator("ada"), annotator("bob")
    held = next_work(store, ada, now=NOW).assignment
    assert held is not None
    assert held.id is not None
    assert next_work(store, bob, now=NOW + timedelta(seconds=59)).item is None
    assert item_of(next_work(store, bob, now=NOW + timedelta(seconds=61))) == "prompt 0"
    assert next_work(store, ada, now=NOW + timedelta(seconds=62)).item is None, "now it is bob's"
    assert item_of(next_work(store, ada, now=NOW + timedelta(seconds=200))) == "prompt 0", "bob has left, too"
    store.label(bob, assigned(store, bob), "k", Answer("a"))
    assert next_work(store, ada).item is None
    store.label(ada, held.id, "late", Answer("b"))
    assert store.verify()["labels"] == 2, "an answer that comes late is not lost"


def test_looking_at_the_pair_renews_the_lease(store: Store, annotator: Register) -> None:
    store.change_settings(lease_seconds=60)
    store.add_items(pairs(1))
    ada, bob = annotator("ada"), annotator("bob")
    for second in range(0, 300, 50):
        next_work(store, ada, now=NOW + timedelta(seconds=second))
        assert next_work(store, bob, now=NOW + timedelta(seconds=second + 49)).item is None


def test_pairs_are_finished_before_new_ones_are_begun(store: Store, annotator: Register) -> None:
    store.change_settings(overlap=2)
    store.add_items(pairs(4))
    ada, bob = annotator("ada"), annotator("bob")
    for i in range(2):
        store.label(ada, assigned(store, ada), str(i), Answer("a"))
    store.label(bob, assigned(store, bob), "0", Answer("a"))
    assert item_of(next_work(store, bob)) == "prompt 1"


def test_a_skipped_pair_is_somebody_elses(store: Store, annotator: Register) -> None:
    store.add_items(pairs(2))
    ada, bob = annotator("ada"), annotator("bob")
    assert answer_all(store, ada, choice="skip") == ["prompt 0", "prompt 1"]
    assert answer_all(store, bob) == ["prompt 0", "prompt 1"]
    assert (next_work(store, ada).done, next_work(store, ada).left) == (2, 0)


def test_gold_pairs_come_to_everybody_in_their_places_and_do_not_show(store: Store, annotator: Register) -> None:
    store.change_settings(gold_every=3)
    store.add_items(pairs(8, gold=3))
    ada, bob = annotator("ada"), annotator("bob")
    totals = []
    seen = []
    while (work := next_work(store, ada)).assignment is not None:
        assert work.assignment.id is not None
        totals.append(work.done + work.left)
        seen.append(int((item_of(work) or "").split()[1]))
        store.label(ada, work.assignment.id, str(len(seen)), Answer("a"))
    assert seen == [0, 1, 5, 2, 3, 6, 4, 7], "5, 6 and 7 are gold"
    assert set(totals) == {8}, "a total that changes would give a gold pair away"
    assert answer_all(store, bob) == ["prompt 5", "prompt 6", "prompt 7"]


def test_sides_are_drawn_for_each_annotator_and_pair(store: Store, annotator: Register) -> None:
    store.change_settings(overlap=2)
    store.add_items(pairs(30))
    for name in ("ada", "bob"):
        answer_all(store, annotator(name))
    with store.database.reading() as session:
        rows = list(session.exec(select(Assignment)))
    by_annotator = [[row.swapped for row in rows if row.annotator_id == who] for who in {r.annotator_id for r in rows}]
    assert [len(sides) for sides in by_annotator] == [30, 30]
    # Each count is binomial(30, ½): outside 3…27 once in 100 000.
    assert all(3 <= sum(sides) <= 27 for sides in by_annotator)
    assert by_annotator[0] != by_annotator[1]


def test_many_at_once_are_never_given_too_many(store: Store, annotator: Register) -> None:
    store.change_settings(overlap=2)
    store.add_items(pairs(10))
    people = [annotator(f"annotator {i}") for i in range(5)]
    threads = [threading.Thread(target=answer_all, args=(store, who)) for who in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.verify() == {"items": 10, "labels": 20, "undone": 0}
    with store.database.reading() as session:
        answered = Counter(row.item_id for row in session.exec(select(Assignment)) if row.label_id is not None)
    assert set(answered.values()) == {2}


def test_progress_counts_what_is_left_for_this_annotator(store: Store, annotator: Register) -> None:
    store.add_items(pairs(4))
    ada, bob = annotator("ada"), annotator("bob")
    store.label(ada, assigned(store, ada), "k", Answer("a"))
    assert [(work.done, work.left) for work in (next_work(store, ada), next_work(store, bob))] == [(1, 3), (0, 3)]
