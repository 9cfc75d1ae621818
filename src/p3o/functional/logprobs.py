"""Log-probabilities of tokens and of whole responses."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
