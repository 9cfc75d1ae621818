"""Tiny random models of several families, prompts of unequal length."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from p3o.models.tokens import PromptBatch, pad_left

VOCABULARY, PAD, EOS = 40, 0, 1

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": PAD,
}
GROUPED = SMALL | {"num_key_value_heads": 2}

FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SMALL),
    "qwen2": lambda: Qwen2Config(**GROUPED),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=8),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gpt_neox": lambda: GPTNeoXConfig(**SMALL),
    "opt": lambda: OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
    "phi3": lambda: Phi3Config(**SMALL),
    "gptj": lambda: GPTJConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64),
}
"""Models that obey a mask and position ids of ours."""

SCALED: dict[str, Callable[[], PreTrainedConfig]] = {
    "cohere": lambda: CohereConfig(**GROUPED, logit_scale=0.25),
    "granite": lambda: GraniteConfig(**GROUPED, logits_scaling=3.0),
}
"""As above, and what they do to their logits after the head matters."""

OTHERS: dict[str, Callable[[], PreTrainedConfig]] = {
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=6),
    "gemma2": lambda: Gemma2Config(**GROUPED, head_dim=8, sliding_window=6, final_logit_softcapping=2.0),
    "gemma3": lambda: Gemma3TextConfig(**(GROUPED | {"num_hidden_layers": 6}), head_dim=8, sliding_window=6),
    "mpt": lambda: MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
    "bloom": lambda: BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
}
"""Models with windows of attention or positions of their own making."""


def build(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A random model, large enough in its weights that its distributions are far from uniform."""
    torch.manual_seed(0)
    config.initializer_range = 0.3
    config.eos_token_id, config.pad_token_id, config.bos_token_id = EOS, PAD, None
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """The model with PyTorch's RMSNorm in the place of transformers', which rounds to float32 whatever the dtype."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ in (
                "LlamaRMSNorm",
                "Qwen2RMSNorm",
                "Qwen3RMSNorm",
                "Phi3RMSNorm",
                "GraniteRMSNorm",
            ):
                norm = nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon, dtype=child.weight.dtype)
                norm.weight = child.weight
                setattr(module, name, norm)
    return model


@pytest.fixture(params=FAMILIES, scope="session")
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A random model in float64."""
    return build(FAMILIES[request.param](), torch.float64)


@pytest.fixture(params=OTHERS, scope="session")
def other_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A random model in float32: in float64 some of these make NaN of padding on the left."""
    return build(OTHERS[request.param](), torch.float32)


@pytest.fixture
def prompts() -> PromptBatch:
    """Three prompts of 5, 2 and 7 tokens."""
    generator = torch.Generator().manual_seed(1)
    return pad_left([torch.randint(2, VOCABULARY, (n,), generator=generator).tolist() for n in (5, 2, 7)], PAD)
