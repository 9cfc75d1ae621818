"""Estimators of KL(π_θ ‖ π_ref), in nats per response (summed over its tokens).

The direction (policy from reference) and the estimator stand in each name. The first three need only the log-probs of
sampled tokens and are named after Schulman's note "Approximating KL divergence" (2020); with u = log π_θ − log π_ref of the
whole response, sampled from π_θ:

- k1 = u                 unbiased, noisy, sometimes negative;
- k2 = u²/2              biased, equal to second order where the two policies are close;
- k3 = e^{−u} − 1 + u    unbiased and never negative for one token, but its variance explodes for sequences.

The full-vocabulary estimator sums the exact KL of each next-token distribution along the sampled path: unbiased for the
sequence KL and by far the quietest of the four. It is the one that reports show.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from p3o.functional.masked import masked_sum


def kl_policy_reference_k1(
    policy_logprobs: Float[Tensor, "*batch time"],
    reference_logprobs: Float[Tensor, "*batch time"],
    response_mask: Bool[Tensor, "*batch time"],
) -> Float[Tensor, "*batch"]:
    """Schulman 2020, k1: the log-ratio of the whole response."""
    return masked_sum(policy_logprobs - reference_logprobs, response_mask)


def kl_policy_reference_k2(
    policy_logprobs: Float[Tensor, "*batch time"],
    reference_logprobs: Float[Tensor, "*batch time"],
    response_mask: Bool[Tensor, "*batch time"],
) -> Float[Tensor, "*batch"]:
    """Schulman 2020, k2: half the squared log-ratio of the whole response."""
    return 0.5 * masked_sum(policy_logprobs - reference_logprobs, response_mask) ** 2


def kl_policy_reference_k3(
    policy_logprobs: Float[Tensor, "*batch time"],
    reference_logprobs: Float[Tensor, "*batch time"],
    response_mask: Bool[Tensor, "*batch time"],
) -> Float[Tensor, "*batch"]:
    """Schulman 2020, k3, of each token, summed over the response: Σ_t e^{−u_t} − 1 + u_t, never negative.

    Per token and not per sequence: the expectation is the same sequence KL (each token's k3 is unbiased for the KL of
    its own next-token distribution) while the sequence form has a variance that grows exponentially with the KL.
    """
    # Masked before exp: garbage in padding would reach the gradient as 0 · inf.
    log_ratio = (policy_logprobs - reference_logprobs).masked_fill(~response_mask, 0.0)
    return masked_sum(torch.exp(-log_ratio) - 1.0 + log_ratio, response_mask)


def kl_policy_reference_full_vocabulary(
    policy_logits: Float[Tensor, "*batch time vocab"],
    reference_logits: Float[Tensor, "*batch time vocab"],
    response_mask: Bool[Tensor, "*batch time"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    """Σ_t Σ_v π_θ(v | x, y_<t) · log( π_θ(v | x, y_<t) / π_ref(v | x, y_<t) ) along each sampled response."""
    policy = torch.log_softmax(policy_logits / temperature, dim=-1)
    reference = torch.log_softmax(reference_logits / temperature, dim=-1)
    return masked_sum((policy.exp() * (policy - reference)).sum(-1), response_mask)
