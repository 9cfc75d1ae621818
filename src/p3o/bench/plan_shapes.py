"""What the scaling plan counts in a model: parameters, operations of a forward pass, bytes of activations and of a cache.

Shapes are those of Llama: grouped-query attention, a gated feed-forward layer, RMS norms, no biases. Units: tokens, bytes,
floating-point operations (a multiplication and an addition are two).
"""

from dataclasses import dataclass

BF16, FP32 = 2, 4
"""Bytes of a number."""


@dataclass(frozen=True)
class Shape:
    """A Llama-like language model."""

    name: str
    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_width: int
    intermediate: int
    vocabulary: int
    tied: bool

    @property
    def query_width(self) -> int:
        """Of all heads' queries together."""
        return self.heads * self.head_width

    @property
    def key_value_width(self) -> int:
        """Of all keys of a token in one layer; values have the same."""
        return self.key_value_heads * self.head_width

    @property
    def layer_matrices(self) -> int:
        """Parameters of one layer that are multiplied with: queries and output, keys and values, gate, up and down."""
        attention = 2 * self.hidden * self.query_width + 2 * self.hidden * self.key_value_width
        return attention + 3 * self.hidden * self.intermediate

    @property
    def layer_parameters(self) -> int:
        """Of one layer, its two norms included."""
        return self.layer_matrices + 2 * self.hidden

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of the head where it has its own."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All of them."""
        tables = 1 if self.tied else 2
        return self.layers * self.layer_parameters + self.hidden + tables * self.embedding

    @property
    def outside(self) -> int:
        """Parameters outside of the layers: embedding, head, last norm. FSDP's root: whole from its forward to its backward."""
        return self.parameters - self.layers * self.layer_parameters

    @property
    def read_per_token(self) -> int:
        """Parameters that a decoding step reads: all but an embedding that is no head, of which it looks up rows."""
        return self.parameters - (0 if self.tied else self.embedding)

    @property
    def cache_bytes(self) -> int:
        """Of keys and values, for one token in bfloat16."""
        return 2 * self.layers * self.key_value_width * BF16

    @property
    def kept_per_layer(self) -> int:
        """Numbers that one token leaves in one layer for the backward pass, with fused attention.

        Inputs of both norms and both normed (4 hidden), queries, keys, values and attention's output (2 query + 2 key-value
        widths), gate, up, activated gate and their product (4 intermediate).
        """
        return 4 * self.hidden + 2 * self.query_width + 2 * self.key_value_width + 4 * self.intermediate

    def forward_operations(self, tokens: int | float, scored: int | float, pairs: int | float) -> int | float:
        """Operations of a forward pass.

        Args:
            tokens: that go through the layers.
            scored: positions at which the head predicts.
            pairs: of a token and a token that it attends to, itself included.
        """
        matrices = 2.0 * self.layers * self.layer_matrices * tokens
        return matrices + 2.0 * self.embedding * scored + 4.0 * self.query_width * self.layers * pairs

    def adapter_parameters(self, rank: int) -> int:
        """Of LoRA on every linear map of the layers."""
        hidden, query, key_value, wide = self.hidden, self.query_width, self.key_value_width, self.intermediate
        widths = 2 * (hidden + query) + 2 * (hidden + key_value) + 3 * (hidden + wide)
        return self.layers * rank * widths


SHAPES: dict[str, Shape] = {
    "1B": Shape("1B", 16, 2048, 32, 8, 64, 8192, 128256, tied=True),
    "8B": Shape("8B", 32, 4096, 32, 8, 128, 14336, 128256, tied=False),
    "70B": Shape("70B", 80, 8192, 64, 8, 128, 28672, 128256, tied=False),
}
"""Those of Llama 3.2 1B, Llama 3.1 8B and 70B."""


@dataclass(frozen=True)
class Work:
    """What one step samples and learns from.

    Attributes:
        prompts: groups.
        responses: K, of each.
        prompt_tokens, response_tokens: mean lengths.
        tail: the longest response over the mean one; who waits for all waits for it.
        passes: training passes over every sample.
        updates: optimiser steps; with one the behaviour's log-probs come out of the training pass.
    """

    prompts: int = 512
    responses: int = 4
    prompt_tokens: int = 512
    response_tokens: int = 512
    tail: int | float = 2.0
    passes: int = 1
    updates: int = 1

    @property
    def sampled_tokens(self) -> int:
        """Response tokens of a step."""
        return self.prompts * self.responses * self.response_tokens


@dataclass(frozen=True)
class Rows:
    """Tokens, scored positions and attended pairs of some groups in one layout."""

    tokens: int | float
    scored: int | float
    pairs: int | float


def rows_of(work: Work, groups: int | float, *, shared: bool) -> Rows:
    """Those of so many groups: ``shared`` has the prompt once for its K responses, otherwise each has its own copy."""
    p, length, k = work.prompt_tokens, work.response_tokens, work.responses
    copies = 1 if shared else k
    own = length * (length + 1) / 2 + length * p
    pairs = copies * p * (p + 1) / 2 + k * own
    return Rows(groups * (copies * p + k * length), groups * k * length, groups * pairs)
