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
    PreTrainedTokenizerBase,
)

from p3o.distributed.sharding import is_sharded, settle, whole_tensors
from p3o.distributed.world import world
from p3o.errors import P3OError, first_line
from p3o.functional.logprobs import token_logprobs
from p3o.models.adapters import has_adapter, merged, plain_model
from p3o.models.hub_names import refuse_unknown
from p3o.models.loading import ADVICE, adapter_base, is_adapter, load_pretrained
from p3o.models.tokens import PromptBatch, ResponseBatch

Model = TypeVar("Model", bound=nn.Module)


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder or hub name; of an adapter without one, that of its base.

    Raises:
        P3OError: if there is none, with what was tried.
    """
    refuse_unknown(path, f"model {path!r}")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if is_adapter(path):
            return load_tokenizer(adapter_base(path, f"model {path!r}"), trust_remote_code=trust_remote_code)
        if Path(path).is_dir() and not any(Path(path).glob("*token*")):
            raise P3OError(
                f"model {path!r}: the folder has no tokenizer; save the model's tokenizer there too, with save_pretrained"
            ) from error
        raise P3OError(f"model {path!r}: no tokenizer could be loaded ({first_line(error)}); {ADVICE}") from error
    return tokenizer


def load_model_config(path: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a local folder or hub name, without its weights; of an adapter, that of its base.

    Raises:
        P3OError: if there is none.
    """
    what = f"model {path!r}"
    refuse_unknown(path, what)
    source = adapter_base(path, what) if is_adapter(path) else path
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise P3OError(f"{what}: no config.json could be loaded ({first_line(error)}); {ADVICE}") from error
    return config


def load_language_model(
    path: str, *, device: torch.device, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> nn.Module:
    """A causal language model of a local folder or hub name, in evaluation mode: no dropout, in training either, so that
    the importance ratio is exactly 1 before the first update. An adapter comes on its base, and trainable.

    Raises:
        P3OError: if it cannot be loaded.
    """
    model = load_pretrained(
        AutoModelForCausalLM,
        path,
        what=f"model {path!r}",
        task="CAUSAL_LM",
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    return model.to(device)


def frozen_copy(model: Model) -> Model:
    """The model as it is now, without gradients: the reference is the policy that was handed over, never a reload.

    Weights that are frozen in the model already are shared with the copy: that of a policy with LoRA holds nothing of its own
    but the adapter's start values.
    """
    shared: dict[int, Any] = {
        id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad
    }
    return copy.deepcopy(model, shared).eval().requires_grad_(False)


def save_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, *, merge: bool = False) -> None:
    """Write model and tokenizer as a plain Hugging Face folder (safetensors): a model with an adapter as peft writes it, or
    with ``merge`` as a whole model with the update added in.

    Of several processes all must call it; the first one writes, and a sharded model is gathered in its memory, on the CPU.

    Raises:
        P3OError: if an adapter's base has no folder or hub name, from which it could be loaded again.
    """
    weights: dict[str, Any] = {}
    if is_sharded(model):
        if merge and has_adapter(model):
            raise P3OError("a sharded model cannot be saved merged; set lora.save: adapter, or parallel.mode: data")
        settle(model)
        weights = {"state_dict": whole_tensors(model.state_dict(keep_vars=True).items())}
    if not world().first:
        return
    writer: Any = merged(model) if merge else model
    _end_where_the_tokenizer_ends(writer, tokenizer)
    if has_adapter(writer):
        if not writer.active_peft_config.base_model_name_or_path:
            raise P3OError(
                "the adapter cannot be saved by itself, because its base model is not in any folder; save the "
                "base first, or save merged"
            )
        # No look at the hub for whether the vocabulary has grown: nothing here grows it.
        writer.save_pretrained(folder, save_embedding_layers=False, **weights)
    else:
        writer.save_pretrained(folder, **weights)
    tokenizer.save_pretrained(folder)


def context_limit(model: nn.Module) -> int | None:
    """How many tokens the model can read at once, by its configuration; None if that does not say."""
    limit: int | None = getattr(plain_model(model).config, "max_position_embeddings", None)
    return limit


def _end_where_the_tokenizer_ends(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let generation stop at the end of sequence that was trained, which may be a chat template's end of turn."""
    generation: Any = getattr(plain_model(model), "generation_config", None)
    if generation is None or tokenizer.eos_token_id is None:
        return
    ends = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    if tokenizer.eos_token_id not in ends:
        others = [end for end in ends if end is not None]
        generation.eos_token_id = [tokenizer.eos_token_id, *others] if others else tokenizer.eos_token_id


def accepted(model: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the model's forward knows by name (a model of peft passes all on to the model inside)."""
    known = inspect.signature(plain_model(model).forward).parameters
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
