"""Sampling responses: prefill each prompt once, expand the cache to K rows, decode token by token.

Plain sampling at a temperature (or greedy). Top-p and top-k are left out on purpose: the importance ratio compares full
distributions. Every row has its own stream of uniform numbers, drawn up front, so that dropping finished rows from the
batch changes nothing that is sampled.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from p3o.models.language import accepted
from p3o.models.tokens import PromptBatch, ResponseBatch


@torch.no_grad()
def sample_responses(
    model: nn.Module,
    prompts: PromptBatch,
    *,
    responses_per_prompt: int,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> ResponseBatch:
    """K responses for each prompt, sampled independently.

    Args:
        model: a causal language model of transformers.
        prompts: left-padded prompts.
        responses_per_prompt: K.
        max_new_tokens: the length limit, end of sequence included.
        eos_id: ends a response and belongs to it.
        pad_id: fills what follows.
        temperature: divides the logits; 0 is greedy.
        generator: a CPU generator, the only source of randomness.
    """
    device = prompts.tokens.device
    rows = prompts.tokens.shape[0] * responses_per_prompt
    uniforms = torch.rand(rows, max_new_tokens, generator=generator, dtype=torch.float64).to(device)
    tokens = torch.full((rows, max_new_tokens), pad_id, dtype=torch.long, device=device)
    lengths = torch.full((rows,), max_new_tokens, dtype=torch.long, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)

    mask = prompts.mask.long()
    positions = (prompts.mask.cumsum(-1) - 1).clamp(min=0)
    prefill = {"position_ids": positions, "logits_to_keep": 1}
    output = model(input_ids=prompts.tokens, attention_mask=mask, use_cache=True, **accepted(model, prefill))
    cache = output.past_key_values
    cache.batch_repeat_interleave(responses_per_prompt)
    logits = output.logits[:, -1].repeat_interleave(responses_per_prompt, 0)
    mask = mask.repeat_interleave(responses_per_prompt, 0)
    position = positions[:, -1:].repeat_interleave(responses_per_prompt, 0)
    alive = torch.arange(rows, device=device)

    for t in range(max_new_tokens):
        chosen = choose(logits, uniforms[alive, t], temperature)
        tokens[alive, t] = chosen
        stopped = chosen == eos_id
        if bool(stopped.any()):
            ended[alive[stopped]] = True
            lengths[alive[stopped]] = t + 1
            going = (~stopped).nonzero().squeeze(-1)
            if going.numel() == 0:
                break
            alive, chosen, mask, position = alive[going], chosen[going], mask[going], position[going]
            cache.batch_select_indices(going)
        if t + 1 == max_new_tokens:
            break
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        position = position + 1
        step = {"position_ids": position, "logits_to_keep": 1}
        output = model(
            input_ids=chosen.unsqueeze(-1),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **accepted(model, step),
        )
        logits, cache = output.logits[:, -1], output.past_key_values

    shape = (prompts.tokens.shape[0], responses_per_prompt)
    time = int(lengths.max())
    response_mask = torch.arange(time, device=device) < lengths.unsqueeze(-1)
    return ResponseBatch(tokens[:, :time].view(*shape, time), response_mask.view(*shape, time), ended.view(shape))


def choose(
    logits: Float[Tensor, "row vocab"], uniform: Float[Tensor, " row"], temperature: float
) -> Int[Tensor, " row"]:
    """One token a row: the inverse of the cumulative distribution at a uniform number, or the largest logit at τ = 0."""
    if temperature == 0.0:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits.double() / temperature, dim=-1).cumsum(-1)
    target = (uniform * cumulative[:, -1]).unsqueeze(-1)
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
