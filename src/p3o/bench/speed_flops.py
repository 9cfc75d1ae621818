"""Useful floating-point operations of a step, and the rate at which the machine multiplies matrices.

Useful is what the mathematics needs: the prompt once for its K responses, the head only where a response token is predicted
or sampled, one pass of policy and reference. 2 operations a weight and token forward, 4 backward; attention over the pairs
that see each other. What is computed beyond that (padding, repeated prompts, passes that could be skipped) does not count.
"""

from time import perf_counter

import torch
from torch import nn
from transformers import PreTrainedModel

from p3o.bench.speed_work import Setting

TRAINING_PASSES = 3
"""Forward passes that a training pass is worth: a backward pass is two."""

STEP_PASSES = 5
"""Forward passes that a step is worth: sampling, in which every input goes through the model once and every prediction through
the head; the reference's pass; the training pass. The optimiser's few operations are left out."""


def forward_operations(model: PreTrainedModel, setting: Setting, sampled: int | float) -> float:
    """Operations of one forward pass over the prompts and responses of a step.

    Args:
        model: of transformers, with linear layers.
        setting: the work.
        sampled: response tokens of the step.
    """
    head = model.get_output_embeddings()
    body = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    logits = head.weight.numel()
    groups, rows = len(setting.prompts), len(setting.prompts) * setting.responses
    length = sampled / rows
    # The last token of a response is no input; its first is predicted from the prompt, once for all K.
    inputs = sum(setting.prompts) + rows * (length - 1)
    scored = groups + rows * (length - 1)
    pairs = sum(
        prompt * (prompt + 1) / 2 + setting.responses * (length - 1) * (prompt + length / 2)
        for prompt in setting.prompts
    )
    config = model.config
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    attention = 4.0 * width * config.num_hidden_layers * pairs
    return float(2.0 * body * inputs + 2.0 * logits * scored + attention)


def gemm_rate(*, size: int = 2048, seconds: float = 1.0) -> float:
    """Operations per second of a float32 product of square matrices, the best of the products that fit into the time."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    a @ b
    best, start = float("inf"), perf_counter()
    while perf_counter() - start < seconds:
        before = perf_counter()
        a @ b
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, perf_counter() - before)
    return 2.0 * size**3 / best
