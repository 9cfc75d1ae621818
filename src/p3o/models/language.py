"""Causal language models: loading, saving, and the logits and log-probs of responses.

One row per response, [left-padded prompt | right-padded response]; the head is applied to the positions that predict response
tokens only.
"""

import copy
import inspect
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from p3o.errors import P3OError
from p3o.functional.logprobs import token_logprobs
from p3o.models.tokens import PromptBatch, ResponseBatch

Model = TypeVar("Model", bound=nn.Module)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder or hub name.

    Raises:
        P3OError: if there is none, with what was tried.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise P3OError(
            f"model {path!r}: no tokenizer could be loaded ({first_line(error)}); give a folder that "
            "save_pretrained wrote, or a hub name"
        ) from error
    return tokenizer


def load_model_config(path: str) -> PretrainedConfig:
    """The configuration of a local folder or hub name, without its weights.

    Raises:
        P3OError: if there is none.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise P3OError(
            f"model {path!r}: no config.json could be loaded ({first_line(error)}); give a folder that "
            "save_pretrained wrote, or a hub name"
        ) from error
    return config


def load_language_model(path: str, *, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model of a local folder or hub name, in evaluation mode: no dropout, in training either, so that
    the importance ratio is exactly 1 before the first update.

    Raises:
        P3OError: if it cannot be loaded.
    """
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError) as error:
        raise P3OError(
            f"model {path!r}: cannot be loaded as a causal language model ({first_line(error)}); give a folder "
            "that save_pretrained wrote, or a hub name"
        ) from error
    return model.to(device).eval()


def first_line(error: BaseException) -> str:
    """The first line of an exception's message: libraries explain themselves at length."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def frozen_copy(model: Model) -> Model:
    """The model as it is now, without gradients: the reference is the policy that was handed over, never a reload."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model and tokenizer as a plain Hugging Face folder (safetensors)."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def accepted(model: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the model's forward knows by name."""
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in arguments.items() if name in known}


def joined(prompts: PromptBatch, responses: ResponseBatch) -> tuple[Tensor, Bool[Tensor, "row length"], Tensor]:
    """Tokens, attention mask and position ids of [prompt | response] rows, [group · response, prompt_time + time]."""
    group, response, time = responses.tokens.shape
    repeated = prompts.repeat(response)
    tokens = torch.cat([repeated.tokens, responses.tokens.view(group * response, time)], dim=1)
    mask = torch.cat([repeated.mask, responses.mask.view(group * response, time)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return tokens, mask, positions


def response_logits(
    model: nn.Module, prompts: PromptBatch, responses: ResponseBatch
) -> Float[Tensor, "group response time vocab"]:
    """The logits that predict each response token; those of padding are meaningless but finite."""
    tokens, mask, positions = joined(prompts, responses)
    group, response, time = responses.tokens.shape
    arguments = {"position_ids": positions, "logits_to_keep": time + 1, "use_cache": False}
    logits: Tensor = model(input_ids=tokens, attention_mask=mask.long(), **accepted(model, arguments)).logits
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()  # a softmax over the vocabulary in half precision loses what ratios are made of
    return logits[:, -(time + 1) : -1].view(group, response, time, -1)


def response_logprobs(
    model: nn.Module, prompts: PromptBatch, responses: ResponseBatch, *, temperature: float
) -> Float[Tensor, "group response time"]:
    """log π(y_t | x, y_<t) of every response token at the sampling temperature; 0 on padding."""
    logits = response_logits(model, prompts, responses)
    return token_logprobs(logits, responses.tokens, temperature=temperature).masked_fill(~responses.mask, 0.0)
