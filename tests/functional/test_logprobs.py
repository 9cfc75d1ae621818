"""Log-probabilities against the softmax written out."""

import math

import pytest
import torch

from p3o.functional.logprobs import sequence_logprobs, token_logprobs

LOGITS = [0.3, -1.2, 2.0]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_token_logprobs_by_hand(temperature: float) -> None:
    logits = torch.tensor(LOGITS, dtype=torch.float64).expand(2, 3, 3)
    tokens = torch.tensor([[0, 1, 2], [2, 2, 0]])
    weights = [math.exp(z / temperature) for z in LOGITS]
    expected = [[math.log(weights[v] / sum(weights)) for v in row] for row in tokens.tolist()]
    got = token_logprobs(logits, tokens, temperature=temperature)
    for got_row, row in zip(got.tolist(), expected, strict=True):
        assert got_row == pytest.approx(row, rel=1e-12)


def test_token_logprobs_stand_huge_logits() -> None:
    got = token_logprobs(torch.tensor([[1e4, 0.0]]), torch.tensor([1]))
    assert got.item() == -1e4


def test_sequence_logprobs_count_the_end_and_not_the_padding() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, float("nan")], [-0.5, -0.25, -0.125]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert sequence_logprobs(logprobs, mask).tolist() == [-3.0, -0.875]
