"""Log-probabilities of tokens and of whole responses.

Two ways to the same numbers. :func:`token_logprobs` is the equation, on aligned logits. :func:`selected_logprobs` is what
training uses: only the rows of logits that predict something, one buffer that becomes log-softmax, softmax and gradient in
turn, and :func:`chunked_logprobs` where even that buffer would be too large.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from p3o.functional.devices import onto
from p3o.functional.masked import masked_sum


def token_logprobs(
    logits: Float[Tensor, "*batch time vocab"], tokens: Int[Tensor, "*batch time"], *, temperature: float = 1.0
) -> Float[Tensor, "*batch time"]:
    """log π(y_t | x, y_<t) = z_t[y_t]/τ − logsumexp(z_t/τ), where ``logits[t]`` predict ``tokens[t]``.

    Args:
        logits: unscaled logits, already aligned with the tokens that they predict.
        tokens: the tokens whose log-probability is wanted.
        temperature: τ, the temperature at which the tokens were sampled; ratios only mean something at that one.
    """
    scaled = logits if temperature == 1.0 else logits / temperature
    chosen = scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - torch.logsumexp(scaled, dim=-1)


def sequence_logprobs(
    logprobs: Float[Tensor, "*batch time"], response_mask: Bool[Tensor, "*batch time"]
) -> Float[Tensor, "*batch"]:
    """log π(y|x) = Σ_t log π(y_t | x, y_<t) over the response tokens, end of sequence counted, padding never."""
    return masked_sum(logprobs, response_mask)


def selected_logprobs(
    logits: Float[Tensor, "row vocab"],
    rows: Int[Tensor, " token"],
    tokens: Int[Tensor, " token"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, " token"]:
    """log-softmax(logits/τ)[rows, tokens], in the memory of ``logits``, which are overwritten.

    Several tokens may be read from one row: the first tokens of a prompt's responses have one predictor. The backward pass
    writes the gradient ∂/∂z = (onehot(tokens) − softmax(z/τ))/τ into the same buffer, so at no time is there a second array
    of [row, vocab]; for the same reason the graph can be walked backward only once (a second time raises RuntimeError).
    """
    logprobs: Tensor = _SelectedLogprobs.apply(logits, rows, tokens, temperature)  # type: ignore[no-untyped-call]
    return logprobs


class _SelectedLogprobs(torch.autograd.Function):
    """See :func:`selected_logprobs`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        # The detached view shares the version counter: an operation that kept the logits for its own backward pass
        # raises there, instead of reading what stands here now.
        buffer = _log_softmax_(logits.detach(), temperature)
        ctx.save_for_backward(buffer, rows, tokens)
        ctx.temperature = temperature
        return buffer[rows, tokens]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        buffer, rows, tokens = ctx.saved_tensors
        gradient = gradient / ctx.temperature
        per_row = torch.zeros_like(buffer[:, 0]).index_add_(0, rows, gradient)
        # softmax(log-softmax(z)) = softmax(z). Not exp: where probabilities underflow it is many times slower on a CPU.
        torch.softmax(buffer, -1, out=buffer)
        buffer.mul_(-per_row.unsqueeze(-1)).index_put_((rows, tokens), gradient, accumulate=True)
        return buffer, None, None, None


def _log_softmax_(logits: Tensor, temperature: float) -> Tensor:
    """log-softmax(logits/τ) over the last dimension, in place."""
    if temperature != 1.0:
        logits.div_(temperature)
    return torch.log_softmax(logits, -1, out=logits)


def chunked_logprobs(
    hidden: Float[Tensor, "row hidden"],
    head: Callable[[Tensor], Tensor],
    rows: Int[Tensor, " token"],
    tokens: Int[Tensor, " token"],
    *,
    temperature: float = 1.0,
    rows_at_once: int,
) -> Float[Tensor, " token"]:
    """:func:`selected_logprobs` of ``head(hidden)``, a few rows at a time; the backward pass computes them again.

    Args:
        hidden: what the head reads.
        head: hidden states of some rows to their logits, which nothing else may keep.
        rows: the row of each token, in rising order; best on the CPU, wherever the others are.
        tokens: ids.
        temperature: τ.
        rows_at_once: rows whose logits exist at the same time; more arithmetic by one application of the head, less memory.
    """

    def part(states: Tensor, chunk_rows: Tensor, chunk_tokens: Tensor) -> Tensor:
        return selected_logprobs(head(states), chunk_rows, chunk_tokens, temperature=temperature)

    parts = []
    for start, states, chosen in _chunks(hidden, rows, rows_at_once):
        arguments = (states, onto(rows[chosen] - start, hidden.device), tokens[chosen])
        if torch.is_grad_enabled():
            parts.append(checkpoint(part, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(part(*arguments))
    return torch.cat(parts) if parts else hidden.new_zeros(0)


def _chunks(
    hidden: Float[Tensor, "row hidden"], rows: Int[Tensor, " token"], size: int
) -> Iterator[tuple[int, Tensor, slice]]:
    """First row, hidden states and slice of tokens of each chunk of ``size`` rows."""
    starts = torch.arange(0, hidden.shape[0], size, device=rows.device)
    bounds = [*torch.searchsorted(rows, starts).tolist(), rows.shape[0]]
    for n, start in enumerate(starts.tolist()):
        yield start, hidden[start : start + size], slice(bounds[n], bounds[n + 1])


@dataclass(frozen=True)
class Distributions:
    """What one pass over the logits says of each predicted token; detached.

    Attributes:
        logprobs: log π(y_t | x, y_<t).
        entropy: −Σ_v π log π of the distribution that the token was drawn from, in nats.
        reference_logprobs: log π_ref(y_t | x, y_<t), if there is a reference.
        kl: Σ_v π·log(π/π_ref), in nats, if there is a reference.
    """

    logprobs: Float[Tensor, " token"]
    entropy: Float[Tensor, " token"]
    reference_logprobs: Float[Tensor, " token"] | None
    kl: Float[Tensor, " token"] | None


@torch.no_grad()
def selected_distributions(
    logits: Float[Tensor, "row vocab"],
    rows: Int[Tensor, " token"],
    tokens: Int[Tensor, " token"],
    *,
    temperature: float = 1.0,
    reference_logits: Float[Tensor, "row vocab"] | None = None,
    rows_at_once: int = 64,
) -> Distributions:
    """Log-probs, entropy and full-vocabulary KL from one pass; both arrays of logits are overwritten.

    Args:
        logits: of the policy.
        rows: the row that predicts each token.
        tokens: ids.
        temperature: τ, of policy and reference.
        reference_logits: of the reference, for the same rows.
        rows_at_once: rows per block; beside the logits, only arrays of this many rows are made.
    """
    policy = _log_softmax_(logits, temperature)
    reference = None if reference_logits is None else _log_softmax_(reference_logits, temperature)
    entropy, kl = torch.empty_like(policy[:, 0]), torch.empty_like(policy[:, 0])
    for start in range(0, policy.shape[0], rows_at_once):
        part = slice(start, start + rows_at_once)
        probability = torch.softmax(policy[part], -1)
        # 0 · −inf, of tokens that a model rules out, is 0.
        entropy[part] = -torch.where(probability > 0, probability * policy[part], 0.0).sum(-1)
        if reference is not None:
            difference = policy[part] - reference[part]
            kl[part] = torch.where(probability > 0, probability * difference, 0.0).sum(-1)
    return Distributions(
        policy[rows, tokens],
        entropy[rows],
        None if reference is None else reference[rows, tokens],
        None if reference is None else kl[rows],
    )
