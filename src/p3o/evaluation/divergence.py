"""KL of a policy from the reference on sampled responses, from one pass of each model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from p3o.distributed.sharding import settle
from p3o.functional.logprobs import selected_distributions
from p3o.models.division import share_of
from p3o.models.layouts import Padded
from p3o.models.packing import length_buckets
from p3o.models.selection import LOGITS_BUDGET, full_precision, output_embeddings, selected_logits
from p3o.models.tokens import GroupTokens


@torch.no_grad()
def divergences(
    policy: nn.Module,
    reference: nn.Module,
    groups: Sequence[GroupTokens],
    *,
    temperature: float,
    fill: int,
    most: int | None = None,
    budget: int = LOGITS_BUDGET,
) -> tuple[Tensor, Tensor]:
    """The full-vocabulary KL and k1 of every response, [group, response] each, in nats (``p3o.functional.kl``).

    Several processes divide the groups among them and all get the whole. Of sharded models no more is gathered than a pass of
    each needs at a time, and nothing is left gathered.

    Args:
        policy: what sampled the responses.
        reference: what the KL is measured from.
        groups: prompts with their responses; all of them on every process.
        temperature: τ, of both models.
        fill: the id that padding holds.
        most: groups of a pass; None: any number.
        budget: bytes of logits that may exist at once, both models together.
    """
    layout = Padded()
    width = getattr(output_embeddings(policy), "weight", torch.empty(1, 0)).shape[0]

    def cut(some: Sequence[GroupTokens]) -> list[list[int]]:
        tokens = [sum(map(len, group.responses)) for group in some]
        return length_buckets(tokens, max(1, budget // (8 * width)), most=most)

    def one(chosen: Sequence[GroupTokens]) -> Tensor:
        """KL and k1, the last axis, of [group, response]."""
        time = max(len(response) for group in chosen for response in group.responses)
        logits = []
        for model in (policy, reference):
            (call,), predictions = layout.passes(model, chosen, time=time, fill=fill)
            logits.append(full_precision(selected_logits(model, call)))
        found = selected_distributions(
            logits[0], predictions.rows, predictions.tokens, temperature=temperature, reference_logits=logits[1]
        )
        assert found.kl is not None
        assert found.reference_logprobs is not None
        # Padding is 0 in both.
        kl, k1 = (predictions.scattered(part).sum(-1) for part in (found.kl, found.logprobs - found.reference_logprobs))
        return torch.stack([kl, k1], -1)

    both = share_of(groups, layout.length, cut, policy, reference).compute(groups, one).cpu()
    settle(policy, reference)
    return both[..., 0], both[..., 1]
