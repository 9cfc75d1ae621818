"""What two ranks do for ``test_held.py``: load the models of RL as its stage does, take a step of PPO, and add up tensors."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from p3o.config import RunConfig
from p3o.distributed.sharding import gathered, local, parts, settle
from p3o.models.language import frozen_copy
from p3o.models.tokens import PromptBatch, ResponseBatch
from p3o.stages.estimates import ModelShape
from p3o.stages.models import Models
from p3o.training.optimisation import Optimisation, OptimiserConfig
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
    with torch.no_grad():
        reference(input_ids=PROMPTS.tokens)
    logits = policy(input_ids=PROMPTS.tokens).logits
    values = critic(PROMPTS, RESPONSES)
    found["passes"] = put_together(every)
    (logits.mean() + values.mean()).backward()
    settle(policy, critic)
    found["gradients"] = resting(p.grad for p in distinct(every) if p.grad is not None)
    found["reference kept"] = put_together(every)
    training.update()
    moments = (tensor for state in training.optimiser.state.values() for tensor in state.values())
    found["moments"] = sum(local(tensor).nbytes for tensor in moments)
    with gathered(policy):
        found["sampling"] = put_together(every)
    with gathered(policy, reference):
        found["evaluating"] = put_together(every)
    return found


def everything(path: str) -> dict[str, dict[str, int]]:
    """By mode."""
    return {
        "data": counted(path, "data", reshards=True),
        "fsdp": counted(path, "fsdp", reshards=True),
        "kept": counted(path, "fsdp", reshards=False),
    }
