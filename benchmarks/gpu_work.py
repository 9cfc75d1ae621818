"""The model, the rows and the clock of ``benchmarks.gpu``."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from p3o.bench.speed_work import llama, word_tokenizer
from p3o.models.language import frozen_copy, load_language_model, load_tokenizer
from p3o.models.layouts import Layout
from p3o.models.precision import compute_in
from p3o.models.sampling import sample_responses
from p3o.models.tokens import GroupTokens, pad_id, pad_left

CPU, BF16 = torch.device("cpu"), torch.bfloat16


@dataclass(frozen=True)
class Size:
    """How much work there is.

    Attributes:
        shapes: groups, K, tokens of a prompt and of a response, of the passes.
        rows: rows sampled together.
        tokens: sampled of each.
        step: prompts, K, tokens of a prompt and of a response of a whole step.
        updates: of fine-tuning, and steps of RL, of the training that must learn.
        repeats: of everything that is timed.
    """

    shapes: tuple[tuple[int, int, int, int], ...]
    rows: tuple[int, ...]
    tokens: int
    step: tuple[int, int, int, int]
    updates: tuple[int, int]
    repeats: int


FULL = Size(
    shapes=(
        (32, 4, 256, 64),
        (16, 4, 512, 128),
        (8, 8, 256, 256),
        (4, 16, 128, 512),
        (4, 16, 512, 1024),
        (8, 4, 1024, 1024),
    ),
    rows=(16, 128, 1024),
    tokens=64,
    step=(64, 4, 256, 64),
    updates=(400, 40),
    repeats=4,
)
QUICK = Size(shapes=((2, 2, 16, 8),), rows=(4,), tokens=4, step=(2, 2, 16, 4), updates=(2, 1), repeats=2)


class Bench:
    """The model and the device that all parts are about."""

    def __init__(self, device: torch.device, size: Size, *, folder: Path | None, quick: bool) -> None:
        self.device, self.size, self.is_random = device, size, folder is None
        if folder is None:
            self.model: nn.Module = llama(quick=quick).eval()
            self.tokenizer: PreTrainedTokenizerBase = word_tokenizer(self.model.config.vocab_size)
        else:
            self.model = load_language_model(str(folder), device=CPU)
            self.tokenizer = load_tokenizer(str(folder))
        self.vocabulary = int(self.model.config.get_text_config().vocab_size)

    def copy(self, *, half: bool, device: torch.device | None = None) -> nn.Module:
        """The model with all weights to be trained; ``half``: bfloat16 arithmetic on float32 weights, as on GPUs by default."""
        model = frozen_copy(self.model).requires_grad_(True).to(device or self.device)
        return compute_in(model, BF16) if half else model

    def groups(self, count: int, responses: int, prompt: int, response: int) -> list[GroupTokens]:
        """Random ids; of unequal length, but for the longest ones."""
        generator = torch.Generator().manual_seed(0)

        def some(longest: int, first: bool) -> list[int]:
            least = longest if first else max(1, longest // 2)
            length = int(torch.randint(least, longest + 1, (1,), generator=generator))
            found: list[int] = torch.randint(3, self.vocabulary, (length,), generator=generator).tolist()
            return found

        return [
            GroupTokens(some(prompt, g == 0), [some(response, k == 0) for k in range(responses)], [True] * responses)
            for g in range(count)
        ]

    def logprobs(self, layout: Layout, model: nn.Module, groups: Sequence[GroupTokens]) -> Tensor:
        """Of all groups in one pass."""
        time = max(len(response) for group in groups for response in group.responses)
        return layout.logprobs(model, groups, temperature=1.0, time=time, fill=pad_id(self.tokenizer))

    def timed(self, run: Callable[[], object]) -> dict[str, Any]:
        """Median seconds and peak of memory; or that the memory did not suffice."""
        seconds = []
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            for _ in range(1 + self.size.repeats):
                start = self.now()
                run()
                seconds.append(self.now() - start)
        except torch.OutOfMemoryError:
            return {"out_of_memory": True}
        found: dict[str, Any] = {"seconds": median(seconds[1:]), "first": seconds[0]}
        if self.device.type == "cuda":
            found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            found["reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
        return found

    def now(self) -> float:
        """Seconds, when the device has done all it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter()


def sampled(bench: Bench, model: nn.Module, rows: int, tokens: int, *, greedy: bool = False) -> Tensor:
    """So many tokens of every row, two rows a prompt; none ends before."""
    device = next(model.parameters()).device
    prompts = pad_left([group.prompt for group in bench.groups(max(1, rows // 2), 1, 64, 2)], pad_id(bench.tokenizer))
    responses = sample_responses(
        model, prompts.to(device), responses_per_prompt=2, max_new_tokens=tokens, eos_id=-1, pad_id=0,
        temperature=0.0 if greedy else 1.0, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return responses.tokens.cpu()
