"""Text to token ids and back, in the one form that every stage reads.

A prompt and its response are encoded apart and joined as ids, so that supervised fine-tuning, the reward model and RL see
the same prompt tokens whatever the tokenizer would merge across the boundary. The end of sequence is part of a finished
response. Prompts are padded on the left, responses on the right; masks come from lengths, never from ``== pad_id``,
because many tokenizers pad with their end of sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from p3o.errors import P3OError
from p3o.functional.devices import onto
from p3o.models.stopping import before_stop, split_stops


@dataclass(frozen=True)
class PromptBatch:
    """Prompts padded on the left."""

    tokens: Int[Tensor, "group prompt_time"]
    mask: Bool[Tensor, "group prompt_time"]

    def repeat(self, responses: int) -> "PromptBatch":
        """Each prompt ``responses`` times in a row: [group · response, prompt_time]."""
        return type(self)(self.tokens.repeat_interleave(responses, 0), self.mask.repeat_interleave(responses, 0))

    def to(self, device: torch.device) -> "PromptBatch":
        """The same on another device."""
        return type(self)(onto(self.tokens, device), onto(self.mask, device))


@dataclass(frozen=True)
class ResponseBatch:
    """Responses of each prompt, padded on the right.

    Attributes:
        tokens: ids; padding holds the pad id.
        mask: True on response tokens, the end of sequence included.
        ended: whether the response has its end of sequence (otherwise it was cut at the length limit).
        logprobs: of each token by who sampled it, where that is another engine than the learner; zero on padding.
    """

    tokens: Int[Tensor, "group response time"]
    mask: Bool[Tensor, "group response time"]
    ended: Bool[Tensor, "group response"]
    logprobs: Float[Tensor, "group response time"] | None = None

    def to(self, device: torch.device) -> "ResponseBatch":
        """The same on another device."""
        logprobs = None if self.logprobs is None else onto(self.logprobs, device)
        return type(self)(onto(self.tokens, device), onto(self.mask, device), onto(self.ended, device), logprobs)


def joined_responses(parts: Sequence[ResponseBatch], fill: int) -> ResponseBatch:
    """Batches of equal K one after another, padded to the longest response; without log-probs."""
    time = max(part.tokens.shape[-1] for part in parts)

    def joined(tensors: Sequence[Tensor], value: int | bool) -> Tensor:
        return torch.cat([nn.functional.pad(t, (0, time - t.shape[-1]), value=value) for t in tensors])

    return ResponseBatch(
        joined([part.tokens for part in parts], fill),
        joined([part.mask for part in parts], False),
        torch.cat([part.ended for part in parts]),
    )


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The end-of-sequence id.

    Raises:
        P3OError: if the tokenizer has none; a response could never end.
    """
    if tokenizer.eos_token_id is None:
        raise P3OError(
            "the tokenizer has no eos_token, so responses could not end; set one in its tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills padding: the tokenizer's pad token, else its end of sequence (masks do not depend on it)."""
    return end_id(tokenizer) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Ids of each prompt, with the tokenizer's own first token (BOS) where it has one and never an end of sequence. The text
    of a rendered chat template that already begins with BOS gets no second one."""
    if not prompts:
        return []
    prefix = _prefix(tokenizer)
    encoded: list[list[int]] = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    return [ids if ids[: len(prefix)] == prefix else prefix + ids for ids in encoded]


def _prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before a text (a BOS, or nothing)."""
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []


def encode_responses(tokenizer: PreTrainedTokenizerBase, responses: Sequence[str]) -> list[list[int]]:
    """Ids of finished responses: the text, then the end of sequence."""
    if not responses:
        return []
    end = end_id(tokenizer)
    return [[*ids, end] for ids in tokenizer(list(responses), add_special_tokens=False)["input_ids"]]


def pad_left(rows: Sequence[Sequence[int]], fill: int) -> PromptBatch:
    """Rows of ids as one left-padded batch."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), fill, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[i, width - len(row) :] = True
    return PromptBatch(tokens, mask)


def pad_right(rows: Sequence[Sequence[int]], fill: int) -> tuple[Int[Tensor, "row time"], Bool[Tensor, "row time"]]:
    """Rows of ids as one right-padded batch with its mask."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), fill, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = True
    return tokens, mask


def decode_responses(
    tokenizer: PreTrainedTokenizerBase, responses: ResponseBatch, *, stop: Sequence[str] = ()
) -> list[list[str]]:
    """The text of every response up to its first stop string, special tokens left out: ``[group][response]``."""
    group, response, _ = responses.tokens.shape
    responses = responses.to(torch.device("cpu"))  # at once, not row by row
    rows = [
        tokens[mask].tolist()
        for tokens, mask in zip(responses.tokens.flatten(0, 1), responses.mask.flatten(0, 1), strict=True)
    ]
    decoded: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True)
    stops = split_stops(tokenizer, stop).texts
    texts = [before_stop(text, stops) for text in decoded]
    return [texts[g * response : (g + 1) * response] for g in range(group)]


@dataclass(frozen=True)
class GroupTokens:
    """One prompt with its responses as plain ids: what a buffer keeps and a minibatch is padded from."""

    prompt: list[int]
    responses: list[list[int]]
    ended: list[bool]


def split_groups(prompts: PromptBatch, responses: ResponseBatch) -> list[GroupTokens]:
    """A padded batch as groups of plain ids."""
    prompts, responses = prompts.to(torch.device("cpu")), responses.to(torch.device("cpu"))  # at once, not row by row
    return [
        GroupTokens(
            prompt=tokens[mask].tolist(),
            responses=[row[keep].tolist() for row, keep in zip(group_tokens, group_mask, strict=True)],
            ended=ended.tolist(),
        )
        for tokens, mask, group_tokens, group_mask, ended in zip(
            prompts.tokens, prompts.mask, responses.tokens, responses.mask, responses.ended, strict=True
        )
    ]


def collate_groups(groups: Sequence[GroupTokens], fill: int, *, time: int) -> tuple[PromptBatch, ResponseBatch]:
    """Groups of equal K as one padded batch, responses padded to ``time``."""
    prompts = pad_left([group.prompt for group in groups], fill)
    responses = len(groups[0].responses)
    tokens = torch.full((len(groups), responses, time), fill, dtype=torch.long)
    mask = torch.zeros((len(groups), responses, time), dtype=torch.bool)
    for g, group in enumerate(groups):
        for k, row in enumerate(group.responses):
            tokens[g, k, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[g, k, : len(row)] = True
    return prompts, ResponseBatch(tokens, mask, torch.tensor([group.ended for group in groups]))
