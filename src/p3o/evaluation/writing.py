"""Who writes the responses that are evaluated: the processes that have the policy, or an engine elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from p3o.distributed.sharding import gathered
from p3o.distributed.world import world
from p3o.models.ends import end_ids
from p3o.models.layouts import device_of
from p3o.models.sampling import draw_uniforms, sample_responses
from p3o.models.tokens import ResponseBatch, joined_responses, pad_id, pad_left


@runtime_checkable
class Writer(Protocol):
    """Writes responses by a policy."""

    def __call__(
        self, policy: nn.Module, prompts: Sequence[Sequence[int]], *, responses: int, temperature: float, seed: int
    ) -> ResponseBatch:
        """So many responses to each prompt by the policy as it is now; all processes call it and get all responses.

        Args:
            policy: a causal language model, whole or sharded.
            prompts: their ids.
            responses: to each.
            temperature: of the sampling; 0 is greedy.
            seed: of all random numbers.
        """


@dataclass(frozen=True)
class OwnWriter:
    """The processes take turns, batch by batch; a sharded policy is whole on each of them meanwhile, and only meanwhile.

    Attributes:
        tokenizer: of the policy.
        max_new_tokens: length limit, end of sequence included.
        batch_size: responses at a time.
        stop: texts that end a response too.
    """

    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    batch_size: int
    stop: tuple[str, ...] = ()

    def __call__(
        self, policy: nn.Module, prompts: Sequence[Sequence[int]], *, responses: int, temperature: float, seed: int
    ) -> ResponseBatch:
        """As ``Writer``. Random numbers belong to the response's place, so the number of processes changes nothing."""
        generator, device, fill = torch.Generator().manual_seed(seed), device_of(policy), pad_id(self.tokenizer)
        uniforms = draw_uniforms(len(prompts) * responses, self.max_new_tokens, generator)
        rows = uniforms.view(len(prompts), responses, -1)

        def write(part: slice) -> dict[str, Any]:
            written = sample_responses(
                policy,
                pad_left(prompts[part], fill).to(device),
                responses_per_prompt=responses,
                max_new_tokens=self.max_new_tokens,
                eos_id=end_ids(policy, self.tokenizer),
                pad_id=fill,
                temperature=temperature,
                uniforms=rows[part].flatten(0, 1),
                stop=self.stop,
                tokenizer=self.tokenizer,
            )
            return vars(written.to(torch.device("cpu")))

        with gathered(policy):
            written = world().in_turns(turns(len(prompts), self.batch_size // responses), write)
        return joined_responses([ResponseBatch(**part) for part in written], fill)


def turns(count: int, most: int) -> list[slice]:
    """So many things in pieces of ``most`` at most, one after another, and small enough that no process is left without."""
    size = max(1, min(most, -(-count // world().size)))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
