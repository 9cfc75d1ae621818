"""Many small causal transformers in one tensor program: every parameter carries a leading ``policy`` axis.

One pre-norm layer: embedding of token plus position, causal attention with several heads, a perceptron, an output at the last
token of the context. The parameters of one network are a row of a ``[policy, parameter]`` matrix, so that one optimiser
steps all of them.

In a single layer queries, keys and values depend on a token and its position alone. A *symbol* is such a pair. There are few,
so scores are computed once for every pair of symbols, and attention over a context is a softmax over the symbols that are in
it: the numbers of the usual form (held by a test) without a matrix product per response.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import embedding, relu


@dataclass(frozen=True)
class BatchedTransformer:
    """The shape of the network; the parameters are passed to every call.

    Attributes:
        symbols: token and position of each symbol, numbered from 0.
        outputs: width of the output.
        width: of the residual stream.
        heads: each of ``width / heads``.
        hidden: width of the perceptron's hidden layer.
    """

    symbols: tuple[tuple[int, int], ...]
    outputs: int
    width: int = 32
    heads: int = 2
    hidden: int = 64

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Of the matrices in a row of parameters: token and position embedding, W_qkv, W_o, W_1, W_2, W_out."""
        tokens, positions = (1 + max(part) for part in zip(*self.symbols, strict=True))
        return (
            (tokens, self.width),
            (positions, self.width),
            (self.width, 3 * self.width),
            (self.width, self.width),
            (self.width, self.hidden),
            (self.hidden, self.width),
            (self.width, self.outputs),
        )

    @property
    def parameters(self) -> int:
        """Number of parameters of one network."""
        return sum(rows * columns for rows, columns in self.shapes)

    def initialise(self, normal: Float[Tensor, "policy parameter"]) -> Float[Tensor, "policy parameter"]:
        """Scale standard normal numbers: embeddings to variance ½, matrices to keep the variance of what they are given."""
        scales = [math.sqrt(0.5)] * 2 + [1.0 / math.sqrt(rows) for rows, _ in self.shapes[2:]]
        sizes = torch.tensor([rows * columns for rows, columns in self.shapes])
        return normal * torch.tensor(scales).repeat_interleave(sizes)

    def encode(self, contexts: Int[Tensor, "*row time"]) -> UInt8[Tensor, "*row time symbol"]:
        """Every prefix of sequences of symbols: 0 for a symbol not in it, 1 for one in it, 2 for its last."""
        one_hot = torch.nn.functional.one_hot(contexts, len(self.symbols)).to(torch.uint8)
        return one_hot.cumsum(-2, dtype=torch.uint8) + one_hot

    def __call__(
        self, parameters: Float[Tensor, "policy parameter"], contexts: UInt8[Tensor, "policy row symbol"]
    ) -> Float[Tensor, "policy row output"]:
        """The output at the last symbol of every encoded context."""
        token, position, qkv, out, up, down, head = self._matrices(parameters)
        tokens, positions = (torch.tensor(part) for part in zip(*self.symbols, strict=True))
        stream = token[:, tokens] + position[:, positions]
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)) for part in torch.bmm(_normed(stream), qkv).chunk(3, -1)
        )
        scores = torch.einsum("pshd,pthd->psht", query, key) / math.sqrt(self.width / self.heads)
        last = contexts.argmax(-1)
        absent = (contexts == 0).unsqueeze(2)
        attention = _rows(scores.flatten(2), last).unflatten(-1, (self.heads, -1)).masked_fill(absent, -math.inf)
        read = torch.einsum("prht,pthd->prhd", attention.softmax(-1), value).flatten(2)
        state = torch.baddbmm(_rows(stream, last), read, out)
        state = torch.baddbmm(state, relu(torch.bmm(_normed(state), up)), down)
        return torch.bmm(_normed(state), head)

    def _matrices(self, parameters: Float[Tensor, "policy parameter"]) -> Sequence[Tensor]:
        parts = parameters.split([rows * columns for rows, columns in self.shapes], -1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]


def _normed(stream: Float[Tensor, "*row width"]) -> Float[Tensor, "*row width"]:
    """Divided by its root mean square."""
    return stream * torch.rsqrt((stream * stream).mean(-1, keepdim=True) + 1e-6)


def _rows(
    tables: Float[Tensor, "policy symbol value"], index: Int[Tensor, "policy row"]
) -> Float[Tensor, "policy row value"]:
    """Rows of each policy's own table."""
    start = torch.arange(tables.shape[0]).unsqueeze(1) * tables.shape[1]
    return embedding(index + start, tables.flatten(0, 1))
