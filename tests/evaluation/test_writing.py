"""The responses that are evaluated: the same whatever the batches, of all processes together."""

import pytest
import torch
from torch import nn

from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.distributed.world import World, within
from p3o.evaluation.writing import OwnWriter, turns
from p3o.models.tokens import ResponseBatch, decode_responses, encode_prompts

TOKENIZER = build_tokenizer()
ENCODED = encode_prompts(TOKENIZER, task.prompts(7, seed=0, split="heldout"))


@pytest.fixture(scope="module")
def policy() -> nn.Module:
    """In float64, so that padding changes no token."""
    return build_model(TOKENIZER, seed=0).double().eval()


def texts(written: ResponseBatch) -> list[list[str]]:
    return decode_responses(TOKENIZER, written)


@pytest.mark.parametrize(
    ("count", "most", "processes", "sizes"),
    [
        (7, 3, 1, [3, 3, 1]),
        (7, 30, 1, [7]),
        (7, 30, 2, [4, 3]),
        (7, 30, 3, [3, 3, 1]),
        (2, 4, 3, [1, 1]),
        (3, 0, 1, [1] * 3),
    ],
)
def test_no_process_is_left_without_a_piece_where_there_is_one(
    count: int, most: int, processes: int, sizes: list[int]
) -> None:
    with within(World(size=processes)):
        pieces = turns(count, most)
    assert [part.stop - part.start for part in pieces] == sizes
    assert [i for part in pieces for i in range(count)[part]] == list(range(count))


def test_responses_depend_on_the_seed_and_on_no_batch(policy: nn.Module) -> None:
    by_one, by_three, at_once = (OwnWriter(TOKENIZER, 6, batch_size=size) for size in (1, 3, 100))
    asked = {"responses": 2, "temperature": 1.0}
    expected = at_once(policy, ENCODED, **asked, seed=1)
    assert expected.tokens.shape[:2] == expected.ended.shape == (7, 2)
    for writer in (by_one, by_three):
        written = writer(policy, ENCODED, **asked, seed=1)
        assert texts(written) == texts(expected)
        assert torch.equal(written.ended, expected.ended)
        assert torch.equal(written.mask, expected.mask)
    assert texts(at_once(policy, ENCODED, **asked, seed=2)) != texts(expected)


def test_greedy_responses_are_those_of_the_largest_logits(policy: nn.Module) -> None:
    written = OwnWriter(TOKENIZER, 1, batch_size=4)(policy, ENCODED, responses=1, temperature=0.0, seed=1)
    largest = [int(policy(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) for ids in ENCODED]
    assert written.tokens.flatten().tolist() == largest
