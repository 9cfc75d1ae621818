"""Log-probabilities against the softmax written out."""

import math

import pytest
import torch

from p3o.functional.logprobs import (
    chunked_logprobs,
    selected_distributions,
    selected_logprobs,
    sequence_logprobs,
    token_logprobs,
)

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


def some_logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Five rows over seven tokens; one row is read three times, twice for the same token, one row never."""
    logits = torch.randn(5, 7, dtype=torch.float64) * 3
    return logits, torch.tensor([0, 1, 1, 1, 2, 4]), torch.tensor([3, 2, 2, 6, 0, 5])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_selected_logprobs_equal_the_equation_and_its_gradient(temperature: float) -> None:
    logits, rows, tokens = some_logits()
    weights = torch.rand(6, dtype=torch.float64)
    plain = logits.clone().requires_grad_()
    expected = token_logprobs(plain[rows], tokens, temperature=temperature)
    (expected * weights).sum().backward()
    leaf = logits.clone().requires_grad_()
    got = selected_logprobs(leaf * 1.0, rows, tokens, temperature=temperature)
    (got * weights).sum().backward()
    torch.testing.assert_close(got, expected, atol=1e-14, rtol=0)
    assert plain.grad is not None
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, plain.grad, atol=1e-14, rtol=0)
    assert (leaf.grad[3] == 0).all()


def test_selected_logprobs_against_finite_differences() -> None:
    """gradcheck walks one graph many times, which the buffer does not allow; so each difference gets a graph of its own."""
    logits, rows, tokens = some_logits()
    step = 1e-6
    for n in range(len(rows)):
        leaf = logits.clone().requires_grad_()
        selected_logprobs(leaf * 1.0, rows, tokens, temperature=0.6)[n].backward()
        assert leaf.grad is not None
        for at in [(0, 3), (1, 2), (1, 6), (2, 1), (4, 5)]:
            shift = torch.zeros_like(logits)
            shift[at] = step
            up, down = (selected_logprobs(logits + s, rows, tokens, temperature=0.6)[n] for s in (shift, -shift))
            assert leaf.grad[at].item() == pytest.approx((up - down).item() / (2 * step), abs=1e-8)


def test_no_second_walk_through_the_buffer() -> None:
    logits, rows, tokens = some_logits()
    total = selected_logprobs(logits.requires_grad_() * 1.0, rows, tokens).sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_an_operation_that_kept_the_logits_raises() -> None:
    """tanh reads its own output in its backward pass: better an error than a wrong gradient."""
    logits, rows, tokens = some_logits()
    total = selected_logprobs(torch.tanh(logits.requires_grad_()), rows, tokens).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 5, 99])
def test_chunks_pass_gradcheck_and_change_no_number(rows_at_once: int) -> None:
    _, rows, tokens = some_logits()
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)

    def chunked(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return chunked_logprobs(
            hidden, lambda states: states @ weight.T, rows, tokens, temperature=0.6, rows_at_once=rows_at_once
        )

    assert torch.autograd.gradcheck(chunked, (hidden, weight))
    whole = selected_logprobs(hidden @ weight.T, rows, tokens, temperature=0.6)
    torch.testing.assert_close(chunked(hidden, weight), whole, atol=1e-14, rtol=0)
    with torch.no_grad():
        assert torch.equal(chunked(hidden, weight), chunked(hidden.detach(), weight.detach()))


def test_chunks_never_hold_more_rows_than_they_may() -> None:
    _, rows, tokens = some_logits()
    hidden, weight = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3)
    sizes = []

    def head(states: torch.Tensor) -> torch.Tensor:
        sizes.append(len(states))
        return states @ weight.T

    chunked_logprobs(hidden, head, rows, tokens, rows_at_once=2).sum().backward()
    assert sizes[:3] == [2, 2, 1]
    assert len(sizes) == 6, "once forward, once again in the backward pass"
    assert max(sizes) == 2


@pytest.mark.parametrize("rows_at_once", [2, 64])
def test_one_pass_gives_entropy_and_full_vocabulary_kl(rows_at_once: int) -> None:
    logits, rows, tokens = some_logits()
    other = torch.randn(5, 7, dtype=torch.float64)
    logits[0, 1] = other[0, 1] = float("-inf")  # a token that both rule out
    one, two = (torch.distributions.Categorical(logits=z / 0.6) for z in (logits, other))
    expected_kl = torch.distributions.kl_divergence(one, two)
    got = selected_distributions(
        logits.clone(), rows, tokens, temperature=0.6, reference_logits=other.clone(), rows_at_once=rows_at_once
    )
    assert got.kl is not None
    assert got.reference_logprobs is not None
    torch.testing.assert_close(got.logprobs, one.logits[rows, tokens])
    torch.testing.assert_close(got.reference_logprobs, two.logits[rows, tokens])
    torch.testing.assert_close(got.entropy[1:], one.entropy()[rows[1:]])
    torch.testing.assert_close(got.kl[1:], expected_kl[rows[1:]])
    p, q = one.probs[0], two.probs[0]
    keep = p > 0
    assert got.entropy[0].item() == pytest.approx(-(p[keep] * p[keep].log()).sum().item())
    assert got.kl[0].item() == pytest.approx((p[keep] * (p[keep] / q[keep]).log()).sum().item())
    alone = selected_distributions(logits.clone(), rows, tokens)
    assert (alone.kl, alone.reference_logprobs) == (None, None)
