"""What two ranks do for ``test_learner.py``, in one go: meeting and importing takes longer than the work."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.models.families import FAMILIES
from tests.stages.held import put_together
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from p3o.algorithms import make_algorithm
from p3o.distributed import ParallelConfig, world
from p3o.distributed.sharding import is_sharded, settle, shard, whole
from p3o.errors import P3OError
from p3o.evaluation import writing
from p3o.evaluation.policy import Evaluator
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy, save_model
from p3o.models.recomputation import blocks, enable_gradient_checkpointing
from p3o.models.sharded_loading import empty_model, fill
from p3o.stopping import Stopped
from p3o.training.checkpoint import Checkpoints
from p3o.training.faults import NumericalError
from p3o.training.loop import fit, resume
from p3o.training.online import OnlineConfig, OnlineTrainer

ALGORITHMS = ("p3o_v2", "ppo", "online_dpo")
MODES = ("data", "fsdp")
CPU = torch.device("cpu")
TOKENIZER = FAMILIES["llama"].tokenizer()
PROMPTS = ["a", "b c d e f g h", "i j", "k l m n o", "p", "a b c", "d e f g", "h i", "c b a", "f"]


def language_model() -> LlamaForCausalLM:
    """Two layers, tied embeddings, and a vocabulary that two ranks cannot halve."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER) + 1 - len(TOKENIZER) % 2,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=48,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def varied(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A reward that differs for nearly all texts."""
    return [torch.tensor(sum(map(ord, response)) / 977.0).sin().item() for response in responses]


def none_on_the_last_rank(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """NaN for one response of what the last rank scores."""
    bad = world().rank == world().size - 1
    return [float("nan") if bad and i == 0 else value for i, value in enumerate(varied(prompts, responses))]


def learner(
    name: str, mode: str, scorer: Any = varied, dtype: torch.dtype = torch.float64, **training: Any
) -> OnlineTrainer:
    """A trainer of a small random model. Five prompts in two minibatches, one group a pass: ranks differ in passes."""
    policy = language_model().to(dtype)
    algorithm = make_algorithm(name)
    critic = Critic(language_model().model).to(dtype) if algorithm.needs_critic else None
    reference = frozen_copy(policy)
    if mode == "fsdp":
        for model in (policy, reference, critic):
            if model is not None:
                shard(model, blocks(model), ParallelConfig(mode="fsdp"), compute=dtype, device=CPU)
    settings = {
        "steps": 2,
        "prompts_per_step": 5,
        "max_new_tokens": 8,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "warmup_fraction": 0.0,
        "micro_batch_prompts": 1,
        "kl_stop": 0.5,
        # A sharded critic reads padded rows. RMSNorm works in float32, so other rows differ in the eighth digit.
        "layout": "auto" if critic is None else "padded",
    }
    config = OnlineConfig(**(settings | training))
    return OnlineTrainer(policy, reference, TOKENIZER, algorithm, scorer, PROMPTS, config, seed=5, critic=critic)


def weights(model: nn.Module) -> list[float]:
    """All of them, whole, in float64."""
    settle(model)
    return torch.cat([whole(parameter.detach()).flatten().double() for parameter in model.parameters()]).tolist()


def loaded(folder: Path, auto_class: Any = AutoModelForCausalLM) -> nn.Module:
    """A model read straight into its shards."""
    model = empty_model(auto_class, str(folder), what="model", dtype=torch.float64)
    assert model is not None
    assert all(parameter.is_meta for parameter in model.parameters())
    shard(model, blocks(model), ParallelConfig(mode="fsdp"), compute=torch.float64, device=CPU)
    fill(model, str(folder), what="model", device=CPU)
    return model


def taken(trainer: OnlineTrainer, steps: int) -> dict[str, Any]:
    """The metrics of these steps, and the weights after them."""
    rows = [dict(trainer.step()) for _ in range(steps)]
    return {"rows": rows, "weights": weights(trainer.policy)}


def chunked(trainer: OnlineTrainer) -> OnlineTrainer:
    """The same with logits computed a few rows at a time and activations computed again."""
    layout = type(trainer.passes.layout)(budget=4096)
    trainer.passes = trainer.rollouts.passes = replace(trainer.passes, layout=layout)
    enable_gradient_checkpointing(trainer.policy)
    return trainer


def saved(trainer: OnlineTrainer, folder: Path) -> None:
    """A checkpoint after the steps that are done."""
    Checkpoints(folder).save(trainer.done, {"trainer": trainer.state_dict(), "random": {}, "extra": {}})


def gone_on(trainer: OnlineTrainer, folder: Path, steps: int = 1) -> dict[str, Any]:
    """From the checkpoint in this folder."""
    state = Checkpoints(folder).latest()
    assert state is not None
    trainer.load_state_dict(state["trainer"])
    return taken(trainer, steps)


def evaluated(mode: str) -> dict[str, Any]:
    """All kinds of evaluation of a policy that has moved away, by a reward and by gold; and the bytes that are put together
    of policy and reference while responses are written, and of both while they are rated.

    Of seven prompts three at a time two ranks differ in batches and in passes.
    """
    policy = language_model().double()
    reference = frozen_copy(policy)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    if mode == "fsdp":
        for model in (policy, reference):
            shard(model, blocks(model), ParallelConfig(mode="fsdp"), compute=torch.float64, device=CPU)
    held: dict[str, Any] = {"writing": [0, 0], "rating": 0}

    def rated(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        held["rating"] = max(held["rating"], put_together([policy, reference]))
        return varied(prompts, responses)

    def written(*arguments: Any, **settings: Any) -> Any:
        most = held["writing"]
        held["writing"] = [max(most[0], put_together([policy])), max(most[1], put_together([reference]))]
        return sample_responses(*arguments, **settings)

    judge = Evaluator(
        TOKENIZER,
        reference,
        PROMPTS[:7],
        rated,
        gold=lambda prompts, responses: [float(len(response)) for response in responses],
        max_new_tokens=8,
        temperature=0.9,
        missing_eos_penalty=0.5,
        batch_size=3,
        seed=7,
    )
    sample_responses, writing.sample_responses = writing.sample_responses, written
    try:
        found = {"sampled": judge.sampled(policy), "greedy": judge.greedy(policy), "best": judge.best_of(policy, 3)}
    finally:
        writing.sample_responses = sample_responses
    held["after"] = put_together([policy, reference])
    return {kind: vars(evaluation) | {"summary": evaluation.summary()} for kind, evaluation in found.items()} | held


def outcome(work: Any) -> str:
    """How the work fails."""
    try:
        work()
    except (P3OError, Stopped) as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def everything(folder: Path) -> dict[str, Any]:
    """All that two ranks do."""
    found: dict[str, Any] = {"size": world().size}
    for mode in MODES:
        for name in ALGORITHMS:
            found[f"{mode} {name}"] = taken(learner(name, mode), 2)
        first = learner("ppo", mode, replay_batches=1)
        first.step()
        saved(first, folder / mode)
        found[f"{mode} evaluated"] = evaluated(mode)
        found[f"{mode} saved"] = taken(first, 1)
        found[f"{mode} from one"] = gone_on(learner("ppo", mode, replay_batches=1), folder / "one")
    found["fsdp from data"] = gone_on(learner("ppo", "fsdp", replay_batches=1), folder / "data")
    found["data from fsdp"] = gone_on(learner("ppo", "data", replay_batches=1), folder / "fsdp")
    found["one pass"] = taken(learner("p3o_v2", "data", epochs=1, minibatches=1, learning_rate=1e-2), 2)
    found["chunked"] = taken(chunked(learner("p3o_v2", "fsdp")), 2)
    found["float32"] = taken(learner("p3o_v2", "fsdp", dtype=torch.float32), 2)
    sharded = learner("p3o_v2", "fsdp")
    found["sharded"] = [is_sharded(sharded.policy), is_sharded(sharded.rollouts.reference)]
    found["rows"] = [
        len(parameter.to_local()) for parameter in sharded.policy.parameters() if settle(sharded.policy) is None
    ]
    save_model(sharded.policy, TOKENIZER, folder / "model")
    world().barrier()
    found["loaded"] = weights(loaded(folder / "model"))
    body = loaded(folder / "model", AutoModel)
    found["loaded body"] = weights(body)
    found["buffers"] = [buffer.double().tolist() for buffer in body.buffers()]
    found |= faults(folder)
    return found


def faults(folder: Path) -> dict[str, Any]:
    """What one rank meets alone is answered by both; the last of it is that a rank is gone."""
    found: dict[str, Any] = {}
    found["bad reward"] = outcome(learner("p3o_v2", "data", none_on_the_last_rank).step)
    dropping = learner("p3o_v2", "fsdp", none_on_the_last_rank, on_fault="skip")
    found["dropped"] = [dict(dropping.step())["dropped_groups"], weights(dropping.policy)]
    diverged = learner("p3o_v2", "data")
    with torch.no_grad():
        next(diverged.policy.parameters()).fill_(float("nan"))
    found["bad weights"] = outcome(diverged.step)

    def one_is_asked(step: int, _metrics: Any) -> None:
        if step == 1 and world().rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    stopping, checkpoints = learner("p3o_v2", "fsdp", steps=4), Checkpoints(folder / "stopped")
    found["stopped"] = outcome(lambda: fit(stopping, one_is_asked, checkpoints=checkpoints))
    again = learner("p3o_v2", "fsdp", steps=4)
    resume(again, checkpoints)
    found["resumed at"] = again.done

    def one_fails() -> None:
        if world().rank == 1:
            raise KeyError("x")

    found["a mistake on one"] = outcome_of_any(lambda: world().together(one_fails))
    found["faults are numerical"] = issubclass(NumericalError, P3OError)
    if world().rank == 0:
        found["left alone"] = outcome(world().barrier)
    return found


def outcome_of_any(work: Any) -> str:
    """How the work fails, whatever the error."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"
