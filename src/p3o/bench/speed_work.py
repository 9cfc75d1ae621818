"""The work that every contender of ``p3o bench speed`` does: a model, prompts of given lengths, and where responses end.

Prompts and the number of tokens sampled are the same for all; what is sampled is not, and does not matter for the cost.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from p3o.errors import P3OError
from p3o.models.tokens import end_id

LEARNING_RATE, BETA = 1e-6, 0.1


@dataclass(frozen=True)
class Setting:
    """One row of the benchmark.

    Attributes:
        name: of the row.
        prompts: length of each prompt of a step, in tokens.
        response: length limit of a response.
        end: probability of the end of sequence at every token; 0: all responses run to the limit.
        responses: K.
    """

    name: str
    prompts: tuple[int, ...]
    response: int
    end: float = 0.0
    responses: int = 2


MIXED_PROMPTS = (71, 118, 164, 203, 247, 296, 361, 478)
"""Like TL;DR posts: at most 512 tokens, most much shorter."""

SETTINGS = (
    Setting("256,64", (256,) * 8, 64),
    Setting("mixed", MIXED_PROMPTS, 53, end=0.04),
    Setting("350,53", (350,) * 8, 53),
    Setting("64,64", (64,) * 8, 64),
)
"""The two that the summary speaks of come first: a run that is interrupted has them."""

QUICK = (Setting("256,64", (256,) * 8, 64),)


def llama(*, quick: bool) -> LlamaForCausalLM:
    """A Llama of SmolLM2-135M's shape, or one of 1.4 million parameters, with random weights."""
    torch.manual_seed(0)
    shape = {
        "hidden_size": 64 if quick else 576,
        "intermediate_size": 192 if quick else 1536,
        "num_hidden_layers": 4 if quick else 30,
        "num_attention_heads": 4 if quick else 9,
        "num_key_value_heads": 2 if quick else 3,
        "vocab_size": 8192 if quick else 49152,
    }
    config = LlamaConfig(
        **shape, tie_word_embeddings=True, max_position_embeddings=8192, bos_token_id=0, eos_token_id=1, pad_token_id=2
    )
    return LlamaForCausalLM(config)


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words w3, w4, …; 0, 1 and 2 begin, end and pad."""
    words = {"<s>": 0, "</s>": 1, "<pad>": 2, **{f"w{n}": n for n in range(3, size)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )


def write_llama(folder: Path, *, quick: bool) -> None:
    """Model and tokenizer as a folder that every contender loads."""
    model = llama(quick=quick)
    model.save_pretrained(folder)
    word_tokenizer(model.config.vocab_size).save_pretrained(folder)


def prompt_texts(tokenizer: PreTrainedTokenizerBase, lengths: Sequence[int]) -> list[str]:
    """Texts of exactly these lengths in tokens, special tokens included, of random words of the vocabulary.

    Raises:
        P3OError: if no such text is found.
    """
    generator = torch.Generator().manual_seed(0)
    texts = []
    for length in lengths:
        words: list[str] = []
        for _ in range(100 * length):
            size = len(tokenizer(" ".join(words))["input_ids"]) if words else 0
            if size == length:
                break
            if size > length:
                words.pop()
            token = int(torch.randint(3, len(tokenizer), (1,), generator=generator))
            word = str(tokenizer.decode([token])).strip()
            if word.isalnum():
                words.append(word)
        else:
            raise P3OError(f"no text of {length} tokens could be made for this tokenizer; use another --model")
        texts.append(" ".join(words))
    return texts


def reward(texts: Sequence[str]) -> list[float]:
    """A reward that costs nothing and differs between responses."""
    return [float(sum(map(ord, text)) % 101) / 101 for text in texts]


def end_responses(model: nn.Module, tokenizer: PreTrainedTokenizerBase, probability: float) -> None:
    """While tokens are sampled, and only then, give the end of sequence this probability at every token.

    A pass that samples is one without a graph whose head reads one position of every row.
    """
    end = end_id(tokenizer)
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]

    def change(_module: nn.Module, _arguments: tuple[Tensor, ...], logits: Tensor) -> None:
        if torch.is_grad_enabled() or logits.ndim != 3 or logits.shape[1] != 1:
            return
        logits[..., end] = -math.inf
        if probability > 0:
            odds = math.log(probability / (1 - probability))
            logits[..., end] = torch.logsumexp(logits, -1) + odds

    head.register_forward_hook(change)


class Phases:
    """Where the seconds of a step go: named parts, the innermost counted.

    Args:
        clock: gives seconds; None: those of the wall.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = self._now()

    def take(self) -> dict[str, float]:
        """The seconds since the last call, by phase; ``other`` is outside of all."""
        self._turn()
        seconds, self.seconds = self.seconds, {}
        return seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within, seconds count for this phase."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    @contextmanager
    def wrapped(self, owner: Any, attribute: str, name: str) -> Iterator[None]:
        """Within, and no longer, as :meth:`wrap`: for what several measurements share."""
        function = getattr(owner, attribute)
        self.wrap(owner, attribute, name)
        try:
            yield
        finally:
            setattr(owner, attribute, function)

    def wrap(self, owner: Any, attribute: str, name: str, *, without_graph: str | None = None) -> None:
        """Count every call of ``owner.attribute`` for this phase, or another one where no graph is made."""
        function = getattr(owner, attribute)

        def timed(*arguments: Any, **settings: Any) -> Any:
            quiet = without_graph is not None and not torch.is_grad_enabled()
            with self.phase(str(without_graph) if quiet else name):
                return function(*arguments, **settings)

        setattr(owner, attribute, timed)

    def _turn(self) -> None:
        """Book the seconds until now."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = self._now()
        name = self._open[-1] if self._open else "other"
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def _now(self) -> float:
        return perf_counter() if self._clock is None else self._clock()
