"""Files of pairs, and all pairs of sampled responses."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3o.errors import P3OError
from p3o.labeling.pairs import PairCounts, Sampled, pairs_of_responses, read_pairs, write_pairs

ROW = {"prompt": "p", "response_a": "x", "response_b": "y"}


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Héllo\u2028?"}]
    groups = [("p", [Sampled("x", "one"), Sampled("y", "two")]), (chat, [Sampled("x"), Sampled("z\n")])]
    found, _ = pairs_of_responses(groups)
    write_pairs(tmp_path / "pairs.jsonl", found)
    assert read_pairs(tmp_path / "pairs.jsonl") == found
    assert [pair.prompt for pair in found] == ["p", chat]
    assert [(pair.policy_a, pair.policy_b) for pair in found] == [("one", "two"), (None, None)]


def test_optional_columns_and_others(tmp_path: Path) -> None:
    rows = [{**ROW, "id": 7, "gold": "tie", "policy_a": "one", "else": 1}, {**ROW, "prompt": "q"}]
    (tmp_path / "p.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    first, second = read_pairs(tmp_path / "p.jsonl")
    assert (first.key, first.gold, first.policy_a, first.policy_b) == ("7", "tie", "one", None)
    assert (len(second.key), second.gold) == (16, None)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"prompt": "p", "response_a": "x"},
            "'response_b': missing; a pair needs 'prompt', 'response_a' and 'response_b'",
        ),
        ({**ROW, "response_a": 3}, "'response_a': input should be a valid string"),
        ({**ROW, "response_a": " \n"}, "'response_a': is empty; fill it in or remove the row"),
        ({**ROW, "prompt": ""}, "'prompt': "),
        ({**ROW, "prompt": []}, "'prompt': "),
        ({**ROW, "prompt": [{"role": "bird", "content": "x"}]}, "'prompt.0.role': input should be 'system', 'user'"),
        ({**ROW, "prompt": [{"role": "user", "content": "x\0"}]}, "'prompt': holds a null character"),
        ({**ROW, "response_b": "x"}, "are the same text; remove the row"),
        ({**ROW, "gold": "c"}, "'gold': input should be 'a', 'b', 'tie' or 'bad'"),
        (ROW, ":2: the same pair as in line 1; remove one of them or give it an 'id'"),
        ([1], "input should be a valid dictionary"),
    ],
)
def test_a_bad_row_is_told_with_its_line(tmp_path: Path, row: Any, told: str) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(P3OError) as caught:
        read_pairs(tmp_path / "p.jsonl")
    assert str(caught.value).startswith(f"{tmp_path / 'p.jsonl'}:2: ")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"{", ":1: not a complete JSON object in UTF-8"), (b"\xff", ":1: not a complete JSON"), (b" \n", "has no rows")],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(P3OError, match=told):
        read_pairs(tmp_path / "p.jsonl")


def test_k_choose_2_of_the_distinct_responses() -> None:
    found, counts = pairs_of_responses([("p", [Sampled(text) for text in ("x", "y", "x", "z", " ", "a\0b", "\ud800")])])
    assert [(pair.response_a, pair.response_b) for pair in found] == [("x", "y"), ("x", "z"), ("y", "z")]
    assert counts == PairCounts(pairs=3, identical_dropped=1, empty_dropped=1, unholdable_dropped=2)


def test_a_prompt_that_comes_again_does_not_repeat_its_responses() -> None:
    group = ("p", [Sampled("x"), Sampled("y")])
    found, counts = pairs_of_responses([group, group, ("q", group[1])])
    assert [(pair.prompt, pair.response_a, pair.response_b) for pair in found] == [("p", "x", "y"), ("q", "x", "y")]
    assert counts.identical_dropped == 2


@given(
    st.lists(st.tuples(st.sampled_from("pq"), st.lists(st.sampled_from(["", "x", "y", "z"]), max_size=5)), max_size=4)
)
def test_every_response_is_paired_or_counted_and_no_pair_comes_twice(groups: list[tuple[str, list[str]]]) -> None:
    found, counts = pairs_of_responses([(prompt, [Sampled(text) for text in texts]) for prompt, texts in groups])
    keys = [(pair.prompt, frozenset((pair.response_a, pair.response_b))) for pair in found]
    assert len(set(keys)) == len(keys) == counts.pairs
    assert counts.empty_dropped == sum(texts.count("") for _, texts in groups)
    kept = {(prompt, text) for prompt, texts in groups for text in texts if text}
    assert counts.identical_dropped + counts.empty_dropped + len(kept) == sum(len(texts) for _, texts in groups)
    if len({prompt for prompt, _ in groups}) == len(groups):
        expected = [
            (p, frozenset(two)) for p, texts in groups for two in combinations(dict.fromkeys(filter(None, texts)), 2)
        ]
        assert keys == expected
