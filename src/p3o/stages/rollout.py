"""Who writes the responses of an RL run and of its evaluations, from the configuration."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from p3o.distributed import world
from p3o.evaluation.writing import Writer
from p3o.files import remove
from p3o.models.ends import find_ends, load_generation_config
from p3o.models.stopping import split_stops
from p3o.models.tokens import ResponseBatch, encode_prompts, pad_id
from p3o.stages.context import RunContext
from p3o.training.online import OnlineTrainer
from p3o.training.samplers import Engine, Sampler

ROLLOUTS = "rollouts"
"""Folder of weights on their way to servers."""


@contextmanager
def sampler_of(run: RunContext, name: str) -> Iterator[Sampler | None]:
    """The sampler of an RL run; None: the learner's own process samples."""
    config, training = run.config.rl.rollout, run.config.rl.training_of(name)
    if config.engine == "local":
        yield None
        return
    from p3o.rollouts.probe import probe_text
    from p3o.rollouts.sampler import VLLMSampler
    from p3o.rollouts.server import SamplingSettings

    folder = run.folder.path / ROLLOUTS

    def make() -> VLLMSampler:
        if world().first:
            remove(folder)  # what a killed run left
        stops = split_stops(run.tokenizer, training.stop)
        trusts = run.config.trust_remote_code
        ends = find_ends(run.tokenizer, load_generation_config(run.sft_folder, trust_remote_code=trusts)).ids
        return VLLMSampler(
            config,
            SamplingSettings(
                training.responses_per_prompt,
                training.max_new_tokens,
                training.temperature,
                ends[0],
                stops.texts,
                (*ends[1:], *stops.ids),
            ),
            fill=pad_id(run.tokenizer),
            probe=probe_text(encode_prompts(run.tokenizer, run.inputs.prompts[:8])),
            folder=folder,
            # All runs share this seed, as they share that of the prompts.
            seed=run.seed("rollout"),
            warn=lambda text: run.warn(f"rl {name}: {text}"),
        )

    sampler = world().together(make)
    run.progress.print(f"rl {name}: responses by vLLM at {', '.join(config.urls)}, weights by {config.weights}")
    try:
        yield sampler
    finally:
        sampler.close()
        if world().first:
            remove(folder)


def writer_of(trainer: OnlineTrainer) -> Writer | None:
    """Who writes the responses of the evaluations in the course of a training: the engine that writes those of the training;
    None: the learner's own processes."""
    engine = trainer.rollouts.sampler
    if not isinstance(engine, Engine):
        return None

    def write(
        policy: nn.Module, prompts: Sequence[Sequence[int]], *, responses: int, temperature: float, seed: int
    ) -> ResponseBatch:
        with trainer.source.paused():
            return engine.write(policy, prompts, responses=responses, temperature=temperature, seed=seed)

    return write
