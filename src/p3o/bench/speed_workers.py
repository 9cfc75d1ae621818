"""The contenders of ``p3o bench speed``, each in a process of its own: one step at every request, and the seconds it took.

P3O and PPO run the package's own loop; RLOO is TRL's trainer, whose training loop waits at the start of every step.
"""

import resource
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from p3o.algorithms import make_algorithm
from p3o.bench.speed_work import BETA, LEARNING_RATE, Phases, Setting, end_responses, prompt_texts, reward
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy, load_tokenizer
from p3o.training.online import OnlineConfig, OnlineTrainer

TRL_ROWS = 4
"""Rows of a pass in TRL: its per_device_train_batch_size."""

Report = dict[str, Any]
"""``{"phases": {name: seconds}, "tokens": sampled}``, or ``{"peak_bytes": …}``, or ``{"error": …}``."""


def serve(
    connection: Connection, contender: str, setting: Setting, folder: str, scratch: str, threads: int, steps: int
) -> None:
    """Take this many steps, one at every message; then tell the peak of memory.

    Args:
        connection: where requests come from and reports go.
        contender: ``p3o``, ``ppo`` or ``trl``.
        setting: the work.
        folder: of model and tokenizer.
        scratch: a folder that TRL may call its output.
        threads: of torch.
        steps: to be taken.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if contender == "trl":
            trl_steps(connection, setting, folder, scratch, steps)
        else:
            step = own_step({"p3o": "p3o_v2", "ppo": "ppo"}[contender], setting, folder, steps, device)
            connection.send({"ready": True})
            for _ in range(steps):
                connection.recv()
                connection.send(step())
        connection.send({"peak_bytes": peak_bytes()})
    except Exception as error:
        connection.send({"error": f"{type(error).__name__}: {error}"})
        raise


def peak_bytes() -> int:
    """The most memory that this process has held: of the GPU if there is one."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def own_step(
    algorithm: str,
    setting: Setting,
    folder: str,
    steps: int,
    device: torch.device,
    clock: Callable[[], float] | None = None,
) -> Callable[[], Report]:
    """A function that takes a step of the package's loop: one update a batch, as TRL's default is. ``clock``: of the phases."""
    tokenizer = load_tokenizer(folder)
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    made = make_algorithm(algorithm, beta=BETA)
    critic = Critic.from_pretrained(folder, device=device) if made.needs_critic else None
    reference = frozen_copy(policy)
    end_responses(policy, tokenizer, setting.end)
    config = OnlineConfig(
        steps=steps,
        prompts_per_step=len(setting.prompts),
        responses_per_prompt=setting.responses,
        epochs=1,
        minibatches=1,
        learning_rate=LEARNING_RATE,
        schedule="constant",
        warmup_fraction=0.0,
        max_new_tokens=setting.response,
    )

    def score(_prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return reward(responses)

    texts = prompt_texts(tokenizer, setting.prompts)
    trainer = OnlineTrainer(policy, reference, tokenizer, made, score, texts, config, seed=0, critic=critic)
    phases = Phases(clock)
    phases.wrap(trainer.rollouts.sampler, "sample", "generation")
    time_passes(trainer, phases)
    phases.wrap(trainer.optimisation, "update", "optimiser")

    def step() -> Report:
        phases.take()
        with phases.wrapped(Tensor, "backward", "backward"):
            metrics = trainer.step()
        rows = len(setting.prompts) * setting.responses
        return {"phases": phases.take(), "tokens": round(metrics["length"] * rows), "layout": str(trainer.verdict)}

    return step


def time_passes(trainer: OnlineTrainer, phases: Phases) -> None:
    """Count the passes of the trainer by whose log-probs they compute."""
    passes = trainer.passes

    class Timed(type(passes)):  # type: ignore[misc]
        def one(self, model: Any, *arguments: Any) -> Any:
            quiet = "behaviour pass" if model is trainer.policy else "reference pass"
            with phases.phase("forward" if torch.is_grad_enabled() else quiet):
                return super().one(model, *arguments)

        def one_of_values(self, *arguments: Any) -> Any:
            with phases.phase("critic forward" if torch.is_grad_enabled() else "critic values"):
                return super().one_of_values(*arguments)

    trainer.passes = trainer.rollouts.passes = Timed(**vars(passes))


def trl_steps(connection: Connection, setting: Setting, folder: str, scratch: str, steps: int) -> None:
    """TRL's RLOO: one iteration, a reference, the same prompts at every step, no gradient checkpointing."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    # Of names that TRL still uses and transformers no longer likes.
    warnings.filterwarnings("ignore", category=FutureWarning)
    rows = len(setting.prompts) * setting.responses
    accumulation = max(1, rows // TRL_ROWS)
    tokenizer = load_tokenizer(folder)
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    phases, sampled = Phases(), [0]

    def score(completions: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        sampled[0] += sum(map(len, completion_ids))
        return reward(completions)

    arguments = RLOOConfig(
        output_dir=f"{scratch}/trl",
        per_device_train_batch_size=rows // accumulation,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation,
        num_generations=setting.responses,
        max_completion_length=setting.response,
        num_iterations=1,
        beta=BETA,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_steps=steps,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        shuffle_dataset=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        model_init_kwargs=None,
    )

    class Turns(TrainerCallback):  # type: ignore[misc]
        """Waits for a request at the start of a step, reports at its end."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            connection.recv()
            phases.take()
            sampled[0] = 0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            connection.send({"phases": phases.take(), "tokens": sampled[0]})

    trainer = RLOOTrainer(
        model=policy,
        reward_funcs=score,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": prompt_texts(tokenizer, setting.prompts)}),
        processing_class=tokenizer,
        callbacks=[Turns()],
    )
    end_responses(policy, tokenizer, setting.end)
    trainer.remove_callback(PrinterCallback)
    trainer.create_optimizer()
    phases.wrap(trainer, "_generate", "generation")
    phases.wrap(trainer.accelerator, "backward", "backward")
    phases.wrap(trainer.optimizer, "step", "optimiser")
    time_trl_passes(trainer, phases)
    connection.send({"ready": True})
    trainer.train()


def time_trl_passes(trainer: Any, phases: Phases) -> None:
    """Count TRL's passes by whose log-probs they compute."""
    compute = trainer._get_per_token_logps_and_entropies  # noqa: SLF001 where TRL's passes meet

    def timed(model: Any, *arguments: Any, **settings: Any) -> Any:
        quiet = "reference pass" if model is trainer.ref_model else "behaviour pass"
        with phases.phase("forward" if torch.is_grad_enabled() else quiet):
            return compute(model, *arguments, **settings)

    trainer._get_per_token_logps_and_entropies = timed  # noqa: SLF001
