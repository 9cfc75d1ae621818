"""Where a response ends: at the tokenizer's end of sequence, and at every other end that the model was given.

A model that was tuned for chat often has several: the end of a turn and the end of a text (Llama 3, Qwen, Gemma). They are the
``eos_token_id`` of its ``generation_config.json``, or of its ``config.json`` where there is no such file. The tokenizer's own
(which is the chat template's end of turn where prompts are conversations) comes first: it is what training appends to texts.
A response keeps the one that was sampled.
"""

from typing import NamedTuple

from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from p3o.models.adapters import plain_model
from p3o.models.language import load_model_config
from p3o.models.loading import adapter_base, is_adapter
from p3o.models.stopping import special_tokens
from p3o.models.tokens import end_id


class Ends(NamedTuple):
    """The ids at which a response ends, the tokenizer's first; and those of the model that are left out, because they are no
    special tokens: configurations that were never adapted name any (Llama's default is 2), and text would hide the end."""

    ids: tuple[int, ...]
    left_out: tuple[int, ...]


def find_ends(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None) -> Ends:
    """The ends of a tokenizer with a model's generation settings, if it has any.

    Raises:
        P3OError: if the tokenizer has no end of sequence.
    """
    first = end_id(tokenizer)
    given = None if generation is None else generation.eos_token_id
    listed: list[int | None] = list(given) if isinstance(given, list | tuple) else [given]
    others = [end for end in dict.fromkeys(listed) if end is not None and end != first]
    special = set(special_tokens(tokenizer).values()) if others else set()
    return Ends((first, *(end for end in others if end in special)), tuple(end for end in others if end not in special))


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids at which this model's responses end, the tokenizer's first.

    Raises:
        P3OError: as ``find_ends``.
    """
    return find_ends(tokenizer, generation_of(model)).ids


def describe_ends(ends: Ends, tokenizer: PreTrainedTokenizerBase) -> str:
    """In words, what is more than the tokenizer's own end; "" if nothing is."""
    words = []
    if len(ends.ids) > 1:
        words.append("a response ends at " + " or ".join(map(str, tokenizer.convert_ids_to_tokens(list(ends.ids)))))
    if ends.left_out:
        ids = " and ".join(map(str, ends.left_out))
        words.append(f"not at id {ids} of the model's generation settings, which is not a special token")
    return ", ".join(words)


def generation_of(model: nn.Module) -> GenerationConfig | None:
    """A model's generation settings; None of one that is not transformers' own."""
    found: GenerationConfig | None = getattr(plain_model(model), "generation_config", None)
    return found


def load_generation_config(path: str, *, trust_remote_code: bool = False) -> GenerationConfig:
    """The generation settings that the model of this folder or hub name is loaded with; of an adapter, its base's.

    Raises:
        P3OError: if there are none, nor a config.json.
    """
    config = load_model_config(path, trust_remote_code=trust_remote_code)
    try:
        return GenerationConfig.from_pretrained(adapter_base(path, f"model {path!r}") if is_adapter(path) else path)
    except OSError:  # there is no such file
        return GenerationConfig.from_model_config(config)
