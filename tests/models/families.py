"""Tiny random models of several families on disk, each with a tokenizer set up as the family's real ones are.

They differ in what trips people up: a padding token of its own, none at all, one that is the end of sequence too; a beginning
of sequence or none, or one that is the end of sequence; tied embeddings; transposed matrices (GPT-2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

LETTERS = "abcdefghijklmnop"
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 48}


@dataclass(frozen=True)
class Family:
    """How a family's models and tokenizers are set up."""

    config: Callable[..., PretrainedConfig]
    eos: str
    pad: str | None
    bos: str | None = None

    def tokenizer(self) -> PreTrainedTokenizerFast:
        special = dict.fromkeys(token for token in (self.pad, self.eos, self.bos, "<unk>") if token is not None)
        vocabulary = {word: i for i, word in enumerate([*special, *LETTERS])}
        backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
        backend.pre_tokenizer = WhitespaceSplit()
        if self.bos is not None:
            backend.post_processor = processors.TemplateProcessing(
                single=f"{self.bos} $A", special_tokens=[(self.bos, vocabulary[self.bos])]
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token=self.eos,
            pad_token=self.pad,
            bos_token=self.bos,
            unk_token="<unk>",
            model_max_length=48,
        )

    def write(self, folder: Path, *, seed: int = 0) -> str:
        """A random model with its tokenizer, as a folder of the hub would hold them."""
        tokenizer = self.tokenizer()
        config = self.config(
            vocab_size=len(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)


def _gpt2(**settings: object) -> GPT2Config:
    return GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=48, initializer_range=0.3, **settings)


def _llama_like(kind: type[PretrainedConfig], **more: object) -> Callable[..., PretrainedConfig]:
    sizes = SIZES | {"intermediate_size": 24, "initializer_range": 0.3} | more
    return lambda **settings: kind(**sizes, **settings)


FAMILIES = {
    "llama": Family(_llama_like(LlamaConfig), eos="</s>", pad="<pad>", bos="<s>"),
    "qwen2": Family(_llama_like(Qwen2Config, num_key_value_heads=1), eos="<|im_end|>", pad="<|endoftext|>"),
    "gpt2": Family(_gpt2, eos="<|endoftext|>", pad=None),
    "gpt_neox": Family(_llama_like(GPTNeoXConfig), eos="<|endoftext|>", pad="<|endoftext|>"),
    "gemma": Family(_llama_like(GemmaConfig, num_key_value_heads=1, head_dim=8), eos="<eos>", pad="<pad>", bos="<bos>"),
    "opt": Family(
        lambda **settings: OPTConfig(
            **SIZES, ffn_dim=24, word_embed_proj_dim=16, init_std=0.3, dropout=0.1, **settings
        ),
        eos="</s>",
        pad="<pad>",
        bos="</s>",
    ),
}
