"""A tokenizer, a policy and servers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.rollouts.fake import FakeVLLM
from torch import nn

from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.models.tokens import encode_prompts, end_id, pad_id
from p3o.rollouts.config import RolloutConfig
from p3o.rollouts.probe import probe_text
from p3o.rollouts.sampler import VLLMSampler
from p3o.rollouts.server import SamplingSettings

TOKENIZER = build_tokenizer()
PROMPTS = task.prompts(24, seed=0, split="train")
ENCODED = encode_prompts(TOKENIZER, PROMPTS)


@pytest.fixture
def policy() -> nn.Module:
    return build_model(TOKENIZER, seed=0).eval()


@pytest.fixture
def servers() -> Iterator[Callable[..., FakeVLLM]]:
    """Starts a fake server; all are ended after the test."""
    started: list[FakeVLLM] = []

    def start(**settings: Any) -> FakeVLLM:
        # The servers' own weights are not the learner's.
        started.append(FakeVLLM(build_model(TOKENIZER, seed=1).eval(), TOKENIZER, **settings))
        return started[-1]

    yield start
    for server in started:
        server.end()
        assert server.errors == []


@pytest.fixture
def sampler(tmp_path: Path) -> Iterator[Callable[..., VLLMSampler]]:
    """A sampler for these servers, with short times; what it warns of is in ``warnings``."""
    made: list[VLLMSampler] = []

    def make(*fakes: FakeVLLM, seed: int = 3, **settings: Any) -> VLLMSampler:
        sampling = {"responses": 2, "max_new_tokens": 8, "temperature": 1.0, "end_id": end_id(TOKENIZER)}
        of_sampling = {name: settings.pop(name) for name in list(settings) if name in (*sampling, "stop", "stop_ids")}
        short = {"timeout": 5.0, "check_every": 0.05, "patience": 3.0, "weights": "gloo"}
        warnings: list[str] = []
        made.append(
            VLLMSampler(
                RolloutConfig(engine="vllm", urls=tuple(fake.url for fake in fakes), **(short | settings)),
                SamplingSettings(**(sampling | of_sampling)),
                fill=pad_id(TOKENIZER),
                probe=probe_text(ENCODED),
                folder=tmp_path / "weights",
                seed=seed,
                warn=warnings.append,
            )
        )
        made[-1].warnings = warnings  # type: ignore[attr-defined]
        return made[-1]

    yield make
    for each in made:
        each.close()
