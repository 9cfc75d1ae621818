"""A language model of under a million random parameters, with a tokenizer of its own: to try a recipe without a download.

    python examples/tiny_model.py FOLDER TEXTS.jsonl [TEXTS.jsonl ...]

The tokenizer is a byte-level BPE trained on every text of the files, so it can write anything and writes these in few tokens.
What the recipes train from it learns the form of the data and little else; name a real model for the rest.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, END = "<pad>", "<end>"


def texts_in(value: Any) -> Iterator[str]:
    """Every string in a JSON value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for part in value.values() for text in texts_in(part))
    elif isinstance(value, list):
        yield from (text for part in value for text in texts_in(part))


def train_tokenizer(files: list[Path], size: int = 2000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer for the texts of these JSONL files."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rows = (json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines())
    tokenizer.train_from_iterator((text for row in rows for text in texts_in(row)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False
    )


def write(folder: Path, files: list[Path]) -> None:
    """A folder of transformers: model and tokenizer."""
    tokenizer = train_tokenizer(files)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    write(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
