"""Rows by hand: tokens, positions, who sees whom, which logits predict what; and batches of whole groups."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p3o.models.packing import length_buckets, separate_rows, shared_length, shared_rows, split_rows
from p3o.models.tokens import GroupTokens

GROUPS = [
    GroupTokens([10, 11], [[20, 21, 22], [30]], [True, True]),
    GroupTokens([12], [[40], [50, 51]], [True, False]),
]


def test_a_shared_row_by_hand() -> None:
    rows, predictions = shared_rows(GROUPS, time=3, fill=99)
    assert rows.tokens.tolist() == [[10, 11, 20, 21], [12, 50, 99, 99]], "no last token of a response is an input"
    assert rows.positions.tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert rows.segments.tolist() == [[0, 0, 1, 1], [0, 2, -1, -1]]
    assert rows.selected.tolist() == [[False, True, True, True], [True, True, False, False]]
    # Selected positions: 0 end of prompt 0, 1 and 2 after 20 and 21; 3 end of prompt 1, 4 after 50.
    assert predictions.rows.tolist() == [0, 0, 1, 2, 3, 3, 4]
    assert predictions.tokens.tolist() == [20, 30, 21, 22, 40, 50, 51]
    values = torch.arange(1.0, 8.0)
    assert predictions.scattered(values).tolist() == [[[1, 3, 4], [2, 0, 0]], [[5, 0, 0], [6, 7, 0]]]


def test_positions_start_again_after_the_prompt() -> None:
    rows, _ = shared_rows([GroupTokens([1, 1, 1], [[2] * 4, [3] * 3, [4] * 2], [True] * 3)], time=4, fill=0)
    assert rows.positions.tolist() == [[0, 1, 2, 3, 4, 5, 3, 4, 3]]


def test_who_sees_whom() -> None:
    rows, _ = shared_rows(GROUPS, time=3, fill=99)
    visible = rows.visible[:, 0].int().tolist()
    assert visible[0] == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert visible[1] == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]], (
        "padding sees something, nothing sees it"
    )
    two, _ = shared_rows([GroupTokens([1], [[2, 2, 2], [3, 3, 3]], [True] * 2)], time=3, fill=0)
    assert two.visible[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 0, 0, 1, 1],
    ]


def test_separate_rows_by_hand() -> None:
    rows, predictions = separate_rows(GROUPS, time=3, fill=99)
    assert rows.tokens.tolist() == [[10, 11, 20, 21], [10, 11, 99, 99], [12, 99, 99, 99], [12, 50, 99, 99]]
    assert rows.mask.sum(-1).tolist() == [4, 2, 1, 2]
    assert predictions.rows.tolist() == list(range(7))
    assert predictions.tokens.tolist() == [20, 21, 22, 30, 40, 50, 51]
    assert predictions.places.tolist() == [0, 1, 2, 3, 6, 9, 10]


def test_split_rows_by_hand() -> None:
    split = split_rows(GROUPS, time=3, fill=99)
    assert split.prompts.tokens.tolist() == [[10, 11], [99, 12]]
    assert split.prompts.selected.tolist() == [[False, True], [False, True]]
    assert split.responses is not None
    assert split.responses.tokens.tolist() == [[20, 21], [99, 99], [99, 99], [50, 99]]
    assert split.responses.positions.tolist() == [[2, 3], [0, 0], [0, 0], [1, 0]]
    assert split.predictions.rows.tolist() == [0, 0, 1, 1, 2, 3, 4]
    assert split.predictions.tokens.tolist() == [20, 30, 40, 50, 21, 22, 51]


def test_responses_of_one_token_need_no_second_pass() -> None:
    assert split_rows([GroupTokens([1, 2], [[3], [4]], [True] * 2)], time=1, fill=0).responses is None


@given(
    st.integers(2, 4).flatmap(
        lambda responses: st.lists(
            st.tuples(
                st.lists(st.integers(0, 9), min_size=1, max_size=6),
                st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=responses, max_size=responses),
            ),
            min_size=1,
            max_size=5,
        )
    )
)
def test_every_response_token_is_predicted_once_by_what_stands_before_it(
    drawn: list[tuple[list[int], list[list[int]]]],
) -> None:
    """In any row, the predictor of y_t holds y_(t−1), or the prompt's last token, and sees exactly x, y_<t."""
    groups = [GroupTokens(prompt, responses, [True] * len(responses)) for prompt, responses in drawn]
    rows, predictions = shared_rows(groups, time=5, fill=99)
    at = rows.selected.nonzero()
    assert len(at) == int(predictions.rows.max()) + 1
    assert predictions.rows.tolist() == sorted(predictions.rows.tolist())
    places = predictions.places.tolist()
    assert len(set(places)) == len(places) == sum(len(response) for group in groups for response in group.responses)
    for logits, token, place in zip(predictions.rows.tolist(), predictions.tokens.tolist(), places, strict=True):
        g, rest = divmod(place, len(groups[0].responses) * 5)
        k, t = divmod(rest, 5)
        assert groups[g].responses[k][t] == token
        row, column = at[logits].tolist()
        seen = rows.tokens[row][rows.visible[row, 0, column]].tolist()
        assert (row, seen) == (g, groups[g].prompt + groups[g].responses[k][:t])
        assert int(rows.positions[row, column]) == len(seen) - 1
    assert int(rows.mask.sum()) == sum(map(shared_length, groups))


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120))
def test_length_buckets_keep_everything_and_the_budget(lengths: list[int], budget: int) -> None:
    buckets = length_buckets(lengths, budget)
    assert sorted(i for bucket in buckets for i in bucket) == list(range(len(lengths)))
    for bucket in buckets:
        longest = max(lengths[i] for i in bucket)
        assert len(bucket) == 1 or len(bucket) * longest <= budget
    order = [lengths[i] for bucket in buckets for i in bucket]
    assert order == sorted(order, reverse=True), "longest first"


@pytest.mark.parametrize(
    ("budget", "expected"), [(20, [[1, 3], [0, 2]]), (9, [[1], [3], [0], [2]]), (40, [[1, 3, 0, 2]])]
)
def test_length_buckets_by_hand(budget: int, expected: list[list[int]]) -> None:
    assert length_buckets([7, 10, 5, 9], budget) == expected
