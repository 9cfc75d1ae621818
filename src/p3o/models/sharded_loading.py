"""Weights straight from safetensors into the shards that FSDP keeps of them: no process ever holds the whole model.

    model = empty_model(AutoModelForCausalLM, path, what=…, dtype=torch.float32)      # parameters on the meta device
    shard(model, blocks(model), …)
    fill(model, path, device=device)                                                 # each rank reads its own rows

Buffers (rotary frequencies) are made as the model makes them, tied weights stay tied. A model whose files name its weights
otherwise than the model does (transformers converts some on loading) cannot be read row by row; ``empty_model`` then gives
None, and it is loaded whole and sharded afterwards.
"""

import copy
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoConfig
from transformers.utils import cached_file

from p3o.distributed.sharding import local, rows_here
from p3o.errors import P3OError, first_line
from p3o.models.ends import load_generation_config
from p3o.models.hub_names import refuse_unknown
from p3o.models.loading import is_adapter, refuse_pickled_weights

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def empty_model(
    auto_class: Any,
    path: str,
    *,
    what: str,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    new: Collection[str] = (),
    **settings: Any,
) -> nn.Module | None:
    """The model of this folder or hub name in evaluation mode, its parameters on the meta device; None if its files do not hold
    its weights one by one under their own names, or it is an adapter.

    Args:
        auto_class: one of transformers' ``AutoModel…`` classes.
        path: folder or hub name.
        what: how an error names it.
        dtype: of the weights.
        trust_remote_code: whether Python code in the model's repository may run.
        new: top-level modules that the files may lack (``start_values``).
        **settings: of the configuration, that differ from the saved ones.

    Raises:
        P3OError: if there is no such model.
    """
    if is_adapter(path):
        return None
    refuse_unknown(path, what)
    refuse_pickled_weights(path, what)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **settings)
        with parameters_on_meta():
            model: Any = auto_class.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise P3OError(f"{what}: cannot be loaded ({first_line(error)})") from error
    if model.can_generate():
        model.generation_config = load_generation_config(path, trust_remote_code=trust_remote_code)
    files = weight_files(path, what)
    shapes = {}
    for name, file in files.items():
        with safe_open(file, framework="pt") as opened:
            shapes[name] = tuple(opened.get_slice(name).get_shape())
    prefix = str(getattr(model, "base_model_prefix", ""))
    for name, parameter in model.named_parameters():
        known = _in_file(name, prefix, files)
        if known is None and name.split(".")[0] in new:
            continue
        if shapes.get(known or "") != tuple(parameter.shape):
            return None
    empty: nn.Module = model.eval()
    return empty


def start_values(model: nn.Module, path: str, *, what: str, new: Collection[str]) -> dict[str, Tensor]:
    """Of those of these top-level modules that the files lack: whole weights by name, drawn as transformers draws them when it
    loads the model, from torch's global generator.

    Args:
        model: of ``empty_model``, not sharded yet.
        path: folder or hub name.
        what: how an error names it.
        new: names of modules.
    """
    files, prefix = weight_files(path, what), str(getattr(model, "base_model_prefix", ""))
    found: dict[str, Tensor] = {}
    for name, module in model.named_children():
        if name in new and any(
            _in_file(f"{name}.{key}", prefix, files) is None for key, _ in module.named_parameters()
        ):
            fresh = copy.deepcopy(module).to_empty(device="cpu")
            fresh.apply(model._init_weights)  # type: ignore[arg-type]  # noqa: SLF001 transformers has no public name for it
            found |= {f"{name}.{key}": value.detach() for key, value in fresh.named_parameters()}
    return found


def fill(
    model: nn.Module,
    path: str,
    *,
    what: str,
    device: torch.device,
    prefix: str | None = None,
    start: Mapping[str, Tensor] | None = None,
) -> None:
    """Read this rank's rows of every parameter.

    Args:
        model: of ``empty_model``, sharded since.
        path: folder or hub name.
        what: how an error names it.
        device: where the shards go.
        prefix: of the model's own names, where it stands inside of a larger module; what is outside is left undefined.
        start: whole weights that the files lack (``start_values``).
    """
    files, start = weight_files(path, what), start or {}
    inner = model if prefix is None else model.get_submodule(prefix)
    base = str(getattr(inner, "base_model_prefix", ""))
    materialise(model, device)
    with torch.no_grad():
        for name, parameter in inner.named_parameters():
            first, last = rows_here(parameter) if isinstance(parameter, DTensor) else (0, parameter.shape[0])
            if name in start:
                local(parameter).copy_(start[name][first:last])
                continue
            known = _in_file(name, base, files)
            assert known is not None, name  # empty_model has looked
            with safe_open(files[known], framework="pt") as opened:
                local(parameter).copy_(opened.get_slice(known)[first:last])


def copy_shards(target: nn.Module, source: nn.Module) -> None:
    """Give a model the weights of its twin, shard by shard: the reference is the policy as it was handed over."""
    theirs: Mapping[str, Tensor] = dict(source.named_parameters())
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            local(parameter).copy_(local(theirs[name]))


def materialise(model: nn.Module, device: torch.device) -> None:
    """Memory for this rank's shards, of undefined content. Buffers stay what and where they are: shards may rest on the CPU,
    but the model computes on the GPU, where sharding has put them."""
    places = {module: dict(module.named_buffers(recurse=False, remove_duplicate=False)) for module in model.modules()}
    model.to_empty(device=device)
    for module, buffers in places.items():
        for name, buffer in buffers.items():
            setattr(module, name, buffer)


def weight_files(path: str, what: str) -> dict[str, Path]:
    """The file in which each weight is, by its name there.

    Raises:
        P3OError: if there are no weights in safetensors.
    """
    try:
        found = cached_file(path, INDEX, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            index = json.loads(Path(found).read_bytes())["weight_map"]
            files = {file: Path(str(cached_file(path, file))) for file in set(index.values())}
            return {name: files[file] for name, file in index.items()}
        whole = Path(str(cached_file(path, WEIGHTS)))
    except (OSError, ValueError, KeyError) as error:
        raise P3OError(f"{what}: its weights cannot be read ({first_line(error)})") from error
    with safe_open(whole, framework="pt") as opened:
        return dict.fromkeys(opened.keys(), whole)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Inside, modules make their parameters without memory, and their buffers as always."""
    register: Callable[..., None] = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _in_file(name: str, prefix: str, files: Mapping[str, Any]) -> str | None:
    """What a parameter is called in the files: a body may be read from a model with a head, and the other way round."""
    candidates = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
    return next((candidate for candidate in candidates if candidate in files), None)
