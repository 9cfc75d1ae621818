"""Sampling responses: prefill each prompt once, expand the cache to K rows, decode token by token.

Plain sampling at a temperature (or greedy). Top-p and top-k are left out on purpose: the importance ratio compares full
distributions. Every row has its own stream of uniform numbers, drawn up front, so that dropping finished rows from the
batch changes nothing that is sampled.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from p3o.models.cache import PromptCache
from p3o.models.language import accepted
from p3o.models.stopping import Stops, StopStrings, split_stops
from p3o.models.tokens import PromptBatch, ResponseBatch


@torch.no_grad()
def sample_responses(
    model: nn.Module,
    prompts: PromptBatch,
    *,
    responses_per_prompt: int,
    max_new_tokens: int,
    eos_id: int | Sequence[int],
    pad_id: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    uniforms: Float[Tensor, "row max_new_tokens"] | None = None,
    stop: Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> ResponseBatch:
    """K responses for each prompt, sampled independently.

    Args:
        model: a causal language model of transformers.
        prompts: left-padded prompts.
        responses_per_prompt: K.
        max_new_tokens: the length limit, end of sequence included.
        eos_id: ends a response and belongs to it; several of a model with several ends (``p3o.models.ends.end_ids``).
        pad_id: fills what follows.
        temperature: divides the logits; 0 is greedy.
        generator: a CPU generator, the only source of randomness.
        uniforms: numbers in [0, 1) to sample by instead, a row for each response: a process that samples some of a batch's
            responses takes the rows that are theirs.
        stop: strings that end a response, too: its tokens up to and including the one that completes the string are kept,
            and it counts as ended. ``p3o.models.tokens.decode_responses`` leaves the string out of the text.
        tokenizer: to read the text; needed with ``stop``.

    Raises:
        ValueError: if there are stop strings and no tokenizer.
    """
    if stop and tokenizer is None:
        raise ValueError("stop strings need the tokenizer")
    stops = Stops((), ()) if tokenizer is None else split_stops(tokenizer, stop)
    stopping = StopStrings(tokenizer, stops.texts) if stops.texts and tokenizer is not None else None
    device = prompts.tokens.device
    ends = torch.tensor([*([eos_id] if isinstance(eos_id, int) else eos_id), *stops.ids], device=device)
    groups, width = prompts.tokens.shape
    rows = groups * responses_per_prompt
    if uniforms is None:
        uniforms = draw_uniforms(rows, max_new_tokens, generator)
    uniforms = uniforms.to(device)
    tokens = torch.full((rows, max_new_tokens), pad_id, dtype=torch.long, device=device)
    lengths = torch.full((rows,), max_new_tokens, dtype=torch.long, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)

    prefilled = PromptCache(model, prompts, responses=responses_per_prompt, room=max_new_tokens)
    cache, logits = prefilled.cache, prefilled.logits
    # As wide as it will ever be; the columns of tokens that are still to come are cut off at every step.
    mask = prompts.mask.new_ones(rows, width + max_new_tokens).long()
    mask[:, :width] = prompts.mask.repeat_interleave(responses_per_prompt, 0)
    position = mask[:, :width].sum(-1, keepdim=True)
    alive = torch.arange(rows, device=device)

    for t in range(max_new_tokens):
        chosen = choose(logits, uniforms[alive, t], temperature)
        tokens[alive, t] = chosen
        stopped = chosen == ends if len(ends) == 1 else (chosen.unsqueeze(-1) == ends).any(-1)
        if stopping is not None:
            stopped |= torch.tensor(stopping.found(tokens[alive, : t + 1].tolist()), device=device)
        if bool(stopped.any()):
            ended[alive[stopped]] = True
            lengths[alive[stopped]] = t + 1
            if bool(stopped.all()):
                break
            going = prefilled.keep(~stopped)
            alive, chosen, mask, position = alive[going], chosen[going], mask[going], position[going]
        if t + 1 == max_new_tokens:
            break
        step = {"position_ids": position + t, "logits_to_keep": 1}
        output = model(
            input_ids=chosen.unsqueeze(-1),
            attention_mask=mask[:, : width + t + 1],
            past_key_values=cache,
            use_cache=True,
            **accepted(model, step),
        )
        logits = output.logits[:, -1]

    shape = (groups, responses_per_prompt)
    time = int(lengths.max())
    response_mask: Bool[Tensor, "row time"] = torch.arange(time, device=device) < lengths.unsqueeze(-1)
    return ResponseBatch(tokens[:, :time].view(*shape, time), response_mask.view(*shape, time), ended.view(shape))


def draw_uniforms(
    rows: int, max_new_tokens: int, generator: torch.Generator | None
) -> Float[Tensor, "row max_new_tokens"]:
    """The numbers by which so many responses are sampled."""
    return torch.rand(rows, max_new_tokens, generator=generator, dtype=torch.float64)


def choose(
    logits: Float[Tensor, "row vocab"], uniform: Float[Tensor, " row"], temperature: float
) -> Int[Tensor, " row"]:
    """One token a row: the inverse of the cumulative distribution at a uniform number, or the largest logit at τ = 0."""
    if temperature == 0.0:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits.double() / temperature, dim=-1).cumsum(-1)
    target = (uniform * cumulative[:, -1]).unsqueeze(-1)
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
