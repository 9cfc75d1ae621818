"""A byte-level tokenizer with a ChatML template whose turns do not end with its end of sequence, as base models have it."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CONTEXT = 256


def chat_tokenizer(*, template: str | None = CHATML, eos: str = "<|endoftext|>") -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


def save_tokenizer(folder: Path, *, template: str | None = CHATML) -> Path:
    """A model's folder as far as reading data needs it: the tokenizer, and a configuration with its context length."""
    chat_tokenizer(template=template).save_pretrained(folder)
    LlamaConfig(max_position_embeddings=CONTEXT).save_pretrained(folder)
    return folder
