"""Tiny random models of several families, a word-level tokenizer, prompts of unequal length."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
)

from p3o.models.tokens import PromptBatch, pad_left

VOCABULARY, PAD, EOS = 40, 0, 1

FAMILIES = {
    "llama": lambda: LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    ),
    "qwen2": lambda: Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": lambda: GPTNeoXConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    ),
}


@pytest.fixture(params=FAMILIES, scope="session")
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A random model in float64, large enough in its weights that its distributions are far from uniform."""
    torch.manual_seed(0)
    config = FAMILIES[request.param]()
    config.initializer_range = 0.3
    config.eos_token_id, config.pad_token_id, config.bos_token_id = EOS, PAD, None
    return AutoModelForCausalLM.from_config(config).double().eval()


@pytest.fixture
def prompts() -> PromptBatch:
    """Three prompts of 5, 2 and 7 tokens."""
    generator = torch.Generator().manual_seed(1)
    return pad_left([torch.randint(2, VOCABULARY, (n,), generator=generator).tolist() for n in (5, 2, 7)], PAD)
