"""Whether a server really has the learner's weights: log-probs of a fixed text by both, after every push.

A push can go through and change nothing (adapters that never arrive, a prefix cache of old weights, another model): only
numbers tell.
"""

from collections.abc import Sequence

import torch
from torch import nn

from p3o.errors import P3OError
from p3o.functional.logprobs import token_logprobs
from p3o.models.layouts import device_of
from p3o.rollouts.server import VLLMServer

LONGEST = 64
"""Tokens of the text."""


def probe_text(encoded: Sequence[Sequence[int]]) -> list[int]:
    """A fixed text of a run: its first prompts in a row, cut; two tokens at least.

    Raises:
        P3OError: if there are no two tokens.
    """
    tokens = [token for prompt in encoded[:8] for token in prompt][:LONGEST]
    if len(tokens) < 2:
        raise P3OError("rl.rollout: the first prompts have no two tokens, so the servers' weights cannot be checked")
    return tokens


@torch.no_grad()
def own_logprobs(model: nn.Module, tokens: Sequence[int]) -> list[float]:
    """log p of every token but the first by the learner, at temperature 1. Of a sharded model all ranks must call it."""
    device = device_of(model)
    ids = torch.tensor([list(tokens)], device=device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1]
    values: list[float] = token_logprobs(logits.float(), ids[:, 1:])[0].tolist()
    return values


def check_weights(
    server: VLLMServer, name: str, tokens: Sequence[int], own: Sequence[float], *, version: str, tolerance: float
) -> float:
    """The largest difference between the server's log-probs of the text and the learner's, nats.

    Raises:
        ServerError: if the server cannot be asked.
        P3OError: if it is beyond the tolerance: this server would go on sampling from another policy.
    """
    theirs = server.prompt_logprobs(name, tokens)
    differences = [abs(a - b) for a, b in zip(own, theirs, strict=True)]
    largest = max(differences)
    if not largest <= tolerance:  # NaN, too
        at = differences.index(largest) + 1
        raise P3OError(
            f"{server.url}: with weights {version} the log-prob of token {at} of the fixed text is {theirs[at - 1]:.4f}, the "
            f"learner's {own[at - 1]:.4f}; they differ by {largest:.2g} and may by {tolerance:g} (rl.rollout.probe_tolerance): "
            "the server has another model, another dtype (rl.rollout.push_dtype rounds, too), or did not take the weights; see "
            "its log"
        )
    return largest
