"""Two real vLLM servers on a CPU that get SmolLM2's weights in one broadcast, one of them killed in the middle of it."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rollouts.real import READY, RealServer, needs_vllm
from tests.rollouts.test_vllm import (
    MODEL,
    NEW_TOKENS,
    PROMPTS,
    TEMPERATURE,
    TOLERANCE,
    largest_difference,
    load,
    needs_model,
)
from torch import nn

from p3o.models.language import load_tokenizer
from p3o.models.tokens import encode_prompts, end_id, pad_id, pad_left
from p3o.rollouts.config import RolloutConfig
from p3o.rollouts.links import GlooLink
from p3o.rollouts.probe import own_logprobs, probe_text
from p3o.rollouts.publishing import Broadcast
from p3o.rollouts.sampler import VLLMSampler
from p3o.rollouts.server import SamplingSettings, VLLMServer

pytestmark = [pytest.mark.slow, needs_vllm, needs_model]

Samplers = Callable[..., VLLMSampler]
TOKENIZER = load_tokenizer(str(MODEL)) if MODEL.exists() else None


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RealServer]]:
    arguments = ["--max-model-len", "256", "--logprobs-mode", "processed_logprobs"]
    arguments += ["--weight-transfer-config", '{"backend": "p3o_gloo"}']
    both = [RealServer(MODEL, tmp_path_factory.mktemp("vllm"), *arguments) for _ in range(2)]
    try:
        for server in both:
            server.start()
        print(f"\ntwo vLLM servers ready in {max(server.wait() for server in both):.0f} s")
        yield both
    finally:
        for server in both:
            server.kill()


@pytest.fixture
def sampler(servers: list[RealServer], tmp_path: Path) -> Iterator[Samplers]:
    made: list[VLLMSampler] = []

    def make(**settings: Any) -> VLLMSampler:
        urls = tuple(server.url for server in servers)
        made.append(
            VLLMSampler(
                RolloutConfig(engine="vllm", urls=urls, timeout=120, patience=READY, in_flight=2, **settings),
                SamplingSettings(2, NEW_TOKENS, TEMPERATURE, end_id(TOKENIZER)),
                fill=pad_id(TOKENIZER),
                probe=probe_text(encode_prompts(TOKENIZER, PROMPTS)),
                folder=tmp_path,
                seed=1,
                warn=print,
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


@torch.no_grad()
def learn(policy: nn.Module) -> None:
    """What an update does; old weights give other log-probs."""
    for parameter in policy.parameters():
        parameter.add_(1e-3 * torch.randn_like(parameter))


def versions(servers: list[RealServer]) -> list[str]:
    return [VLLMServer(server.url, timeout=10).weight_version() for server in servers]


def responses_differ_by(policy: nn.Module, ours: VLLMSampler) -> float:
    encoded = encode_prompts(TOKENIZER, PROMPTS)
    return largest_difference(policy, encoded, ours.sample(policy, pad_left(encoded, pad_id(TOKENIZER))))


def test_one_of_two_servers_is_killed_while_both_receive(
    servers: list[RealServer], sampler: Samplers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first in the chain, with -9: the other one, which it was passing the weights to, has the whole new version."""
    torch.manual_seed(0)
    policy, ours, dies = load(), sampler(), servers[0]
    publisher = ours.publisher
    assert isinstance(publisher, Broadcast)
    ours.publish(policy)
    link = publisher.link
    learn(policy)
    started = time.monotonic()
    ours.publish(policy)
    print(f"to two servers at once: push and check {time.monotonic() - started:.1f} s")
    assert publisher.link is link, "one group for both pushes"
    assert versions(servers) == [ours.version] * 2
    assert responses_differ_by(policy, ours) < TOLERANCE

    send, tensors, half = GlooLink.send, list(policy.parameters()), [0]

    def kill_at_half(self: GlooLink, tensor: torch.Tensor) -> None:
        half[0] += 1
        if half[0] == len(tensors) // 2:
            dies.kill()
        send(self, tensor)

    learn(policy)
    ours.take_metrics()
    monkeypatch.setattr(GlooLink, "send", kill_at_half)
    started = time.monotonic()
    ours.publish(policy)
    told = ours.take_metrics()
    print(
        f"one killed at half: push and check {time.monotonic() - started:.1f} s, {half[0]} tensors sent of {len(tensors)}"
    )
    monkeypatch.undo()
    assert len(tensors) < half[0] < 2 * len(tensors), "a part, and then all to the one that is left"
    assert (told["servers"], told["servers_lost"]) == (1, 1)
    assert told["probe_difference"] < TOLERANCE
    assert versions(servers[1:]) == [ours.version]
    assert responses_differ_by(policy, ours) < TOLERANCE

    dies.start()
    dies.wait()
    learn(policy)
    ours.publish(policy)
    told = ours.take_metrics()
    assert versions(servers) == [ours.version] * 2
    assert publisher.linked == [server.url for server in servers]
    assert told["servers"] == 2
    assert told["probe_difference"] < TOLERANCE
    assert responses_differ_by(policy, ours) < TOLERANCE


def test_rounded_weights_are_those_of_a_rounded_model(servers: list[RealServer], sampler: Samplers) -> None:
    """The servers compute in float32, so what they give is what the learner would give with rounded weights."""
    policy, ours = load(), sampler(push_dtype="bfloat16", probe_tolerance=0.5)
    torch.manual_seed(1)
    learn(policy)  # SmolLM2 itself was published in bfloat16
    started = time.monotonic()
    ours.publish(policy)
    seconds = time.monotonic() - started
    away = ours.take_metrics()["probe_difference"]
    assert away > 2 * TOLERANCE
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(parameter.bfloat16())
    rounded = own_logprobs(policy, ours.probe)
    differences = [
        abs(a - b)
        for server in servers
        for a, b in zip(
            rounded, VLLMServer(server.url, timeout=60).prompt_logprobs(str(MODEL), ours.probe), strict=True
        )
    ]
    print(
        f"in bfloat16: push and check {seconds:.1f} s, {away:.2g} nats from float32, {max(differences):.1e} from rounded ones"
    )
    assert max(differences) < TOLERANCE
