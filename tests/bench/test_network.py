"""The batched transformer against the usual form of one: a policy at a time, a context at a time, torch's own attention."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import relu, rms_norm, scaled_dot_product_attention

from p3o.bench.network import BatchedTransformer

# Two prompt tokens at position 0, three response tokens at positions 1 and 2.
SYMBOLS = ((0, 0), (1, 0), *((2 + token, 1 + t) for t in range(2) for token in range(3)))
NETWORK = BatchedTransformer(SYMBOLS, outputs=5, width=12, heads=3, hidden=10)


def parameters(policies: int) -> Tensor:
    normal = torch.randn(policies, NETWORK.parameters, generator=torch.Generator().manual_seed(2))
    return NETWORK.initialise(normal)


def plain(row: Tensor, context: list[int]) -> Tensor:
    """The output at the last symbol of one context; every symbol attends to itself and those before it."""
    token, position, qkv, out, up, down, head = (
        part.reshape(shape)
        for part, shape in zip(row.split([a * b for a, b in NETWORK.shapes]), NETWORK.shapes, strict=True)
    )
    stream = torch.stack([token[SYMBOLS[s][0]] + position[SYMBOLS[s][1]] for s in context])
    query, key, value = (
        part.reshape(len(context), NETWORK.heads, -1).transpose(0, 1)
        for part in (rms_norm(stream, (12,), eps=1e-6) @ qkv).split(12, -1)
    )
    read = scaled_dot_product_attention(query, key, value, is_causal=True).transpose(0, 1).reshape(len(context), -1)
    stream = stream + read @ out
    stream = stream + relu(rms_norm(stream, (12,), eps=1e-6) @ up) @ down
    return (rms_norm(stream, (12,), eps=1e-6) @ head)[-1]


def test_every_prefix_has_the_output_of_a_transformer_in_its_usual_form() -> None:
    weights = parameters(2)
    sequences = torch.tensor([[[0, 2, 7], [1, 4, 5]], [[1, 3, 6], [0, 3, 7]]])
    ours = NETWORK(weights, NETWORK.encode(sequences).flatten(1, 2)).unflatten(1, (2, 3))
    for policy in range(2):
        for row in range(2):
            for last in range(3):
                expected = plain(weights[policy], sequences[policy, row, : last + 1].tolist())
                assert torch.allclose(ours[policy, row, last], expected, atol=1e-5)


def test_gradients_are_those_of_the_usual_form() -> None:
    weights = parameters(1).double().requires_grad_()
    sequence = torch.tensor([[0, 2, 7]])
    (ours,) = torch.autograd.grad(NETWORK(weights, NETWORK.encode(sequence))[0, 2].square().sum(), weights)
    (expected,) = torch.autograd.grad(plain(weights[0], [0, 2, 7]).square().sum(), weights)
    assert torch.allclose(ours[0], expected[0], atol=1e-10)


def test_later_tokens_are_not_seen() -> None:
    weights = parameters(1)
    one, other = (NETWORK(weights, NETWORK.encode(torch.tensor([[1, 2, last]]))) for last in (5, 7))
    assert torch.equal(one[:, :2], other[:, :2])
    assert not torch.allclose(one[:, 2], other[:, 2], atol=1e-3)


def test_outputs_begin_with_about_unit_variance() -> None:
    normal = torch.randn(64, NETWORK.parameters, generator=torch.Generator().manual_seed(4))
    outputs = NETWORK(NETWORK.initialise(normal), NETWORK.encode(torch.tensor([[0, 4, 6]])).expand(64, -1, -1))
    assert outputs.std().item() == pytest.approx(1.0, abs=0.2)
