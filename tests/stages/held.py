"""What two ranks do for ``test_held.py``: load the models of RL as its stage does, take a step of PPO, and add up tensors."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from p3o.config import RunConfig
from p3o.distributed.sharding import gathered, local, parts, settle
from p3o.evaluation.divergence import divergences
from p3o.models.language import frozen_copy
from p3o.models.layouts import LAYOUTS
from p3o.models.recomputation import blocks
from p3o.models.selection import output_embeddings
from p3o.models.tokens import PromptBatch, ResponseBatch, split_groups
from p3o.stages.estimates import ModelShape
from p3o.stages.models import Models
from p3o.training.optimisation import Optimisation, OptimiserConfig
from p3o.training.passes import Passes
from p3o.training.past import PastShards, past_of

CPU = torch.device("cpu")
SHAPE = LlamaConfig(
    vocab_size=1001,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)
"""1.04 million parameters; the vocabulary is odd, so that one of two ranks has a row less."""

SMALL = ModelShape(
    parameters=1000, layers=2, hidden=10, attention_width=8, key_value_width=4, mlp_width=30, vocabulary=50
)
"""For estimates by hand."""


PROMPTS = PromptBatch(torch.arange(12).view(2, 6), torch.ones(2, 6, dtype=torch.bool))
RESPONSES = ResponseBatch(
    torch.arange(12).view(2, 2, 3), torch.ones(2, 2, 3, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
)


def write(path: str) -> None:
    """The model's folder."""
    torch.manual_seed(0)
    LlamaForCausalLM(SHAPE).save_pretrained(path)


def config(path: str, mode: str, *, reshards: bool = True) -> RunConfig:
    """Of a run on two processes."""
    parallel = {"mode": mode, "processes": 2, "reshard_after_forward": reshards}
    reward = {"function": "none:none"}
    return RunConfig.model_validate({"model": path, "dtype": "float32", "parallel": parallel, "reward": reward})


def resting(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages under these tensors on this rank, each once; FSDP's shards are as long on every rank."""
    storages = [local(tensor.detach()).untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def distinct(models: list[nn.Module]) -> list[nn.Parameter]:
    """Every parameter once."""
    return list({id(parameter): parameter for model in models for parameter in model.parameters()}.values())


def put_together(models: list[nn.Module]) -> int:
    """Bytes of whole weights that FSDP holds now."""
    groups = [group for model in models for part in parts(model) for group in part._get_fsdp_state()._fsdp_param_groups]  # type: ignore[attr-defined]
    whole = [tensor for group in groups for param in group.fsdp_params for tensor in param.all_gather_outputs]
    return sum(tensor.untyped_storage().nbytes() for tensor in whole)


@contextmanager
def most_at_layers(every: list[nn.Module], *used: nn.Module) -> Iterator[list[int]]:
    """The most bytes of whole weights that FSDP holds when a layer of one of these models, or its head, is at work."""
    most = [0]

    def look(*_: Any) -> None:
        most[0] = max(most[0], put_together(every))

    heads = filter(None, (output_embeddings(model) for model in used))
    modules = [*heads, *(block for model in used for block in blocks(model))]
    # A hook on what is in a layer, for those of the layer itself may come before FSDP's.
    handles = [next(iter(module.children()), module).register_forward_hook(look) for module in modules]
    try:
        yield most
    finally:
        for handle in handles:
            handle.remove()


def counted(path: str, mode: str, reshards: bool) -> dict[str, int]:
    """Bytes on this rank."""
    models = Models(config(path, mode, reshards=reshards), CPU, adapter_seed=0)
    if models.is_sharding:
        (policy, reference), critic = models.sharded(path), models.sharded_critic(path)
    else:
        policy, critic = models.policy(path), models.critic(path)
        reference = frozen_copy(policy)
    every = [policy, reference, critic]
    past = past_of(policy, for_passes=True)
    past.remember()
    training = Optimisation({"policy": policy, "critic": critic}, OptimiserConfig(learning_rate=1e-3), 1)
    found: dict[str, Any] = {"rest": resting(distinct(every))}
    found["past"] = resting(past._held if isinstance(past, PastShards) else past.source.parameters())
    groups = split_groups(PROMPTS, RESPONSES)
    passes = Passes(LAYOUTS["padded"](), temperature=1.0, fill=0, tokens=100)
    with most_at_layers(every, reference, critic) as most:
        passes.logprobs(reference, groups, 3)
        passes.values(critic, groups, 3)
    found["scoring"], found["after scoring"] = most[0], put_together(every)
    with most_at_layers(every, policy, reference) as most:
        divergences(policy, reference, groups, temperature=1.0, fill=0)
    found["evaluating"], found["after evaluating"] = most[0], put_together(every)
    logits = policy(input_ids=PROMPTS.tokens).logits
    values = critic(PROMPTS, RESPONSES)
    found["passes"] = put_together(every)
    (logits.mean() + values.mean()).backward()
    settle(policy, critic)
    found["gradients"] = resting(p.grad for p in distinct(every) if p.grad is not None)
    found["after settling"] = put_together(every)
    training.update()
    moments = (tensor for state in training.optimiser.state.values() for tensor in state.values())
    found["moments"] = sum(local(tensor).nbytes for tensor in moments)
    with gathered(policy):
        found["sampling"] = put_together(every)
    return found


def everything(path: str) -> dict[str, dict[str, int]]:
    """By mode."""
    return {
        "data": counted(path, "data", reshards=True),
        "fsdp": counted(path, "fsdp", reshards=True),
        "kept": counted(path, "fsdp", reshards=False),
    }
