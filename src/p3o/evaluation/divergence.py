"""KL of a policy from the reference on sampled responses, from one pass of each model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from p3o.functional.logprobs import selected_distributions
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
    budget: int = LOGITS_BUDGET,
) -> tuple[Tensor, Tensor]:
    """The full-vocabulary KL and k1 of every response, [group, response] each, in nats (``p3o.functional.kl``).

    Args:
        policy: what sampled the responses.
        reference: what the KL is measured from.
        groups: prompts with their responses.
        temperature: τ, of both models.
        fill: the id that padding holds.
        budget: bytes of logits that may exist at once, both models together.
    """
    layout = Padded()
    width = getattr(output_embeddings(policy), "weight", torch.empty(1, 0)).shape[0]
    tokens = [sum(map(len, group.responses)) for group in groups]
    order, kls, k1s = [], [], []
    for batch in length_buckets(tokens, max(1, budget // (8 * width))):
        chosen = [groups[i] for i in batch]
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
        kls.append(predictions.scattered(found.kl).sum(-1))
        k1s.append(predictions.scattered(found.logprobs - found.reference_logprobs).sum(-1))
        order += batch
    back = torch.tensor(order).argsort()
    return torch.cat(kls).cpu()[back], torch.cat(k1s).cpu()[back]
