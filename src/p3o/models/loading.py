"""Pretrained models from folders and hub names: full models and adapters alike, safetensors only, checked to be complete.

A folder with an ``adapter_config.json`` is an adapter: its base is found from that file, loaded, and the adapter put on it,
trainable. Code from a model's repository is never run unless asked for, and pickled weights are never read, because reading
them can run code too.
"""

import os
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from p3o.errors import P3OError, first_line, shorten
from p3o.models.hub_names import refuse_unknown

ADVICE = "give a folder that save_pretrained wrote, or a hub name"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_pretrained(
    auto_class: Any,
    path: str,
    *,
    what: str,
    task: str,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    new: Collection[str] = (),
    **settings: Any,
) -> nn.Module:
    """A model of a local folder or hub name, in evaluation mode on the CPU; of an adapter, its base with the adapter on it.

    Args:
        auto_class: one of transformers' ``AutoModel…`` classes.
        path: folder or hub name.
        what: how an error names it, such as "model 'runs/mine/sft'".
        task: peft's name of what the model is for. An adapter of a language model (CAUSAL_LM) goes onto a classifier
            (SEQ_CLS) too: the classifier then starts with it and with a new head.
        dtype: of the weights. An adapter's own weights stay in float32 where this is a half precision.
        trust_remote_code: whether Python code in the model's repository may run.
        new: top-level modules that may be missing from the file and are then drawn at random (a classifier's head).
        **settings: further settings of ``from_pretrained``.

    Raises:
        P3OError: if there is no such model, it is pickled, incomplete or of another kind, or an adapter's base is missing.
    """
    refuse_unknown(path, what)
    adapter = is_adapter(path)
    base_path = adapter_base(path, what) if adapter else path
    named = f"{what}: its base {base_path!r}" if adapter else what
    if adapter:
        refuse_pickled_weights(path, what)
        refuse_unknown(base_path, named)
    refuse_pickled_weights(base_path, named)
    try:
        with _no_conversion_service():
            model, report = auto_class.from_pretrained(
                base_path,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **settings,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        kind = {"CAUSAL_LM": "a causal language model", "SEQ_CLS": "a sequence classifier with one label"}.get(
            task, "a transformer"
        )
        reason = first_line(error)
        if "use_safetensors=True" in reason:  # transformers' advice is to read the pickle
            reason = "it has no safetensors weights, and p3o does not load pickled ones"
        raise P3OError(f"{named}: cannot be loaded as {kind} ({reason}); {ADVICE}") from error
    missing = sorted(key for key in report["missing_keys"] if key.split(".")[0] not in new)
    if missing:
        raise P3OError(
            f"{named}: its files lack {_listed(missing)}, which would be initialised at random; it is a different kind of model"
            + (", train a reward model on it with `p3o reward`" if task == "SEQ_CLS" and not new else "")
        )
    if adapter:
        model = _with_saved_adapter(model, path, task=task, what=what, new=new)
    loaded: nn.Module = model.eval()
    return loaded


def is_adapter(path: str) -> bool:
    """Whether a folder or hub name holds an adapter of peft instead of a whole model."""
    try:
        return find_adapter_config_file(path) is not None
    except (OSError, ValueError):  # neither a folder nor a possible hub name: loading says so better
        return False


def adapter_base(path: str, what: str) -> str:
    """The folder or hub name of the model that an adapter was trained on.

    Raises:
        P3OError: if its configuration cannot be read, or names no base.
    """
    base = _adapter_config(path, what).base_model_name_or_path
    if not base:
        raise P3OError(
            f"{what}: an adapter without the name of its base model; set base_model_name_or_path in its adapter_config.json"
        )
    if not Path(base).exists() and (Path(base).is_absolute() or base.startswith(".") or base.count("/") > 1):
        raise P3OError(
            f"{what}: an adapter on {base!r}, but that folder does not exist; restore it, run p3o where this "
            "path is valid, or correct base_model_name_or_path in adapter_config.json"
        )
    return str(base)


def adapter_task(path: str, what: str) -> str | None:
    """peft's name of what an adapter is for, if it says so.

    Raises:
        P3OError: if its configuration cannot be read.
    """
    task = _adapter_config(path, what).task_type
    return None if task is None else str(getattr(task, "value", task))


def peft() -> Any:
    """The package that adapters come from; imported when one is met.

    Raises:
        P3OError: if it is not installed.
    """
    try:
        import peft as package
    except ImportError as error:
        raise P3OError("adapters need the package peft: pip install 'p3o[lora]'") from error
    return package


def put_on(model: nn.Module, config: Any) -> nn.Module:
    """The model with an adapter of this configuration, by peft.

    Raises:
        ValueError: if the configuration does not fit the model.
    """
    with warnings.catch_warnings():
        # peft 0.21 asks transformers by a name that is to go; it is theirs to change.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        adapted: nn.Module = peft().get_peft_model(model, config)
    return adapted


def refuse_pickled_weights(path: str, what: str) -> None:
    """Stop at a local folder that has weights, but only pickled ones.

    Raises:
        P3OError: naming the file.
    """
    folder = Path(path)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickled = sorted(
        file.name for file in folder.iterdir() if file.suffix in _PICKLED and file.name != "training_args.bin"
    )
    if pickled:
        raise P3OError(
            f"{what}: only pickled weights ({_listed(pickled)}), and loading a pickle can run code; if you trust "
            f"them, load them yourself and save them with save_pretrained, which writes safetensors"
        )


@contextmanager
def _no_conversion_service() -> Iterator[None]:
    """For a hub model without safetensors, transformers asks a service on the hub to convert it. Nobody asked us to ask."""
    before = os.environ.get("DISABLE_SAFETENSORS_CONVERSION")
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISABLE_SAFETENSORS_CONVERSION"]
        else:
            os.environ["DISABLE_SAFETENSORS_CONVERSION"] = before


def _adapter_config(path: str, what: str) -> Any:
    try:
        config = peft().PeftConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise P3OError(f"{what}: its adapter_config.json cannot be read ({first_line(error)})") from error
    if config.is_prompt_learning:
        raise P3OError(
            f"{what}: an adapter of type {config.peft_type.value}; only adapters that change weights are supported"
        )
    return config


def _with_saved_adapter(model: nn.Module, path: str, *, task: str, what: str, new: Collection[str]) -> nn.Module:
    """The base with the adapter of this folder on it, ready to be trained on."""
    config = _adapter_config(path, what)
    saved_task = config.task_type or task
    if saved_task != task and (saved_task, task) != ("CAUSAL_LM", "SEQ_CLS"):
        raise P3OError(f"{what}: an adapter for the task {saved_task}, not for {task}")
    config.task_type, config.inference_mode = task, False
    try:
        weights = load_file(str(cached_file(path, _ADAPTER_WEIGHTS)))
        adapted = put_on(model, config)
        if saved_task != task:  # the new head of a classifier on a language model
            own = peft().get_peft_model_state_dict(adapted, save_embedding_layers=False)
            weights |= {name: value for name, value in own.items() if name.split(".")[-2] in new}
        result = peft().set_peft_model_state_dict(adapted, weights)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise P3OError(f"{what}: the adapter cannot be applied to its base model ({first_line(error)})") from error
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    missing, unknown = sorted(trained & set(result.missing_keys)), sorted(result.unexpected_keys)
    if missing or unknown:
        raise P3OError(
            f"{what}: the adapter does not fit its base ({_listed(missing or unknown)}); check that the base "
            f"model was not replaced"
        )
    return adapted


def _listed(names: Iterable[str]) -> str:
    first, *others = names
    return shorten(first)[1:-1] + (f" and {len(others)} more" if others else "")
