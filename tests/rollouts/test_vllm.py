"""The real vLLM server on a CPU with the real SmolLM2-135M: steps, weights pushed three ways, a server killed in the middle.

``make test-vllm`` makes the environment and runs this; it takes a few minutes and 3 GB of memory. What it measures is printed
(``-s``) and stands in docs/scale_vllm.md.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from p3o.algorithms import make_algorithm
from p3o.functional.logprobs import token_logprobs
from p3o.models.adapters import LoraSettings, add_adapter
from p3o.models.language import frozen_copy, load_language_model, load_tokenizer
from p3o.models.tokens import ResponseBatch, encode_prompts, end_id, pad_id, pad_left
from p3o.rollouts.config import RolloutConfig
from p3o.rollouts.http import ServerError
from p3o.rollouts.probe import probe_text
from p3o.rollouts.sampler import VLLMSampler
from p3o.rollouts.server import SamplingSettings, VLLMServer
from p3o.training.online import OnlineConfig, OnlineTrainer

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
ENVIRONMENT = Path(os.environ.get("P3O_VLLM_ENV") or CACHE / "p3o" / "vllm-0.32.0")
MODEL = Path(os.environ.get("P3O_SMOLLM2") or Path(__file__).parents[2] / "models" / "smollm2")
TOLERANCE = 1e-3
READY = 400.0
"""Seconds for a server to start on a busy machine."""

PROMPTS = [
    "Write one sentence about a fox.",
    "Name three colours.",
    "What is the capital of France?",
    "Say something kind to a friend.",
]
TEMPERATURE, NEW_TOKENS = 0.8, 16

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ENVIRONMENT / ".complete").exists(),
        reason="no vLLM environment; make test-vllm (tools/vllm_env.sh) makes it",
    ),
    pytest.mark.skipif(
        not (MODEL / "model.safetensors").exists(), reason="no models/smollm2; examples/smollm2/get_model.py makes it"
    ),
]


class RealServer:
    """``vllm serve`` as docs/scale_vllm.md starts it on a CPU."""

    def __init__(self, folder: Path) -> None:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        settings = {
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        arguments = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "16"]
        arguments += ["--logprobs-mode", "processed_logprobs", "--enable-lora", "--max-lora-rank", "8"]
        arguments += ["--weight-transfer-config", '{"backend": "p3o_gloo"}']
        arguments += ["--worker-extension-cls", "p3o.rollouts.worker.Repacking"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    ENVIRONMENT / "bin" / "vllm",
                    "serve",
                    MODEL,
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(self.port),
                    *arguments,
                ],
                env=kept | settings,
                stdout=log,
                stderr=log,
                # A group of its own, so that the engine's processes end with it.
                start_new_session=True,
            )

    def wait(self) -> float:
        """Seconds until it was ready."""
        assert self.process is not None
        started = time.monotonic()
        while time.monotonic() - started < READY:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                VLLMServer(self.url, timeout=2).health()
                return time.monotonic() - started
            except ServerError:
                time.sleep(1.0)
        raise AssertionError(f"not ready in {READY} s: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    real = RealServer(tmp_path_factory.mktemp("vllm"))
    try:
        real.start()
        print(f"\nvLLM ready in {real.wait():.0f} s")
        yield real
    finally:
        real.kill()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(str(MODEL))


def load() -> nn.Module:
    return load_language_model(str(MODEL), device=torch.device("cpu"))


def largest_difference(policy: nn.Module, prompts: Sequence[list[int]], batch: ResponseBatch) -> float:
    """Between the server's log-probs and those of transformers, row by row without padding."""
    assert batch.logprobs is not None
    worst = 0.0
    for g, prompt in enumerate(prompts):
        for tokens, mask, theirs in zip(batch.tokens[g], batch.mask[g], batch.logprobs[g], strict=True):
            ids = torch.tensor([prompt + tokens[mask].tolist()])
            with torch.no_grad():
                logits = policy(input_ids=ids).logits[:, len(prompt) - 1 : -1]
            own = token_logprobs(logits, ids[:, len(prompt) :], temperature=TEMPERATURE)[0]
            worst = max(worst, (own - theirs[mask]).abs().max().item())
    return worst


def vowels(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [sum(map(response.count, "aeiou")) / 10 for response in responses]


Run = tuple[OnlineTrainer, VLLMSampler]


@pytest.fixture
def trainer(server: RealServer, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    made: list[VLLMSampler] = []

    def make(policy: nn.Module, weights: str) -> Run:
        encoded = encode_prompts(tokenizer, PROMPTS)
        config = OnlineConfig(
            steps=10,
            prompts_per_step=4,
            epochs=1,
            minibatches=2,
            max_new_tokens=NEW_TOKENS,
            temperature=TEMPERATURE,
            # Far more than one would take: the servers' weights have to follow visibly.
            learning_rate=1e-3 if weights == "lora" else 1e-4,
            schedule="constant",
            warmup_fraction=0.0,
            kl_stop=None,
        )
        sampler = VLLMSampler(
            RolloutConfig(engine="vllm", urls=(server.url,), weights=weights, timeout=120, patience=READY, in_flight=2),
            SamplingSettings(2, NEW_TOKENS, TEMPERATURE, end_id(tokenizer)),
            fill=pad_id(tokenizer),
            probe=probe_text(encoded),
            folder=tmp_path,
            seed=1,
            warn=print,
        )
        made.append(sampler)
        algorithm, reference = make_algorithm("p3o_v2"), frozen_copy(policy)
        run = OnlineTrainer(policy, reference, tokenizer, algorithm, vowels, PROMPTS, config, seed=2, sampler=sampler)
        return run, sampler

    yield make
    for sampler in made:
        sampler.close()


def steps_agree(run: OnlineTrainer, sampler: VLLMSampler, tokenizer: PreTrainedTokenizerBase, steps: int) -> None:
    """After every push: log-probs of responses as transformers has them, and not as before the push."""
    encoded = encode_prompts(tokenizer, PROMPTS)
    prompts = pad_left(encoded, pad_id(tokenizer))
    before: list[float] = []
    for _ in range(steps):
        metrics = run.step()
        assert metrics["mismatch_max"] < TOLERANCE
        assert metrics["mismatch_dropped"] == 0
        batch = sampler.sample(run.policy, prompts)
        difference = largest_difference(run.policy, encoded, batch)
        assert difference < TOLERANCE
        moved = max(abs(a - b) for a, b in zip(sampler.own, before, strict=True)) if before else float("inf")
        assert moved > 10 * TOLERANCE  # old weights would not pass
        before = sampler.own
        told = sampler.take_metrics()
        assert told["probe_difference"] < TOLERANCE
        print(
            f"{sampler.config.weights}: push and check {told['push_seconds']:.2f} s, log-probs moved by {moved:.2g}, differ "
            f"by {difference:.1e} (responses), {told['probe_difference']:.1e} (fixed text), in the step "
            f"{metrics['mismatch_max']:.1e}"
        )


def test_steps_with_an_adapter(
    trainer: Callable[..., Run], tokenizer: PreTrainedTokenizerBase, server: RealServer
) -> None:
    policy = add_adapter(load(), LoraSettings(rank=4), task="CAUSAL_LM", seed=0)
    run, sampler = trainer(policy, "lora")
    steps_agree(run, sampler, tokenizer, 3)


def test_steps_over_gloo(trainer: Callable[..., Run], tokenizer: PreTrainedTokenizerBase, server: RealServer) -> None:
    run, sampler = trainer(load(), "gloo")
    steps_agree(run, sampler, tokenizer, 3)


def test_a_server_killed_in_the_middle_and_started_again(
    trainer: Callable[..., Run],
    tokenizer: PreTrainedTokenizerBase,
    server: RealServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """kill -9 with two groups under way, all weights lost: the step is the one that would have been."""
    encoded = encode_prompts(tokenizer, PROMPTS)
    prompts = pad_left(encoded, pad_id(tokenizer))
    run, sampler = trainer(load(), "gloo")
    run.step()
    state = sampler.state_dict()
    undisturbed = sampler.sample(run.policy, prompts)
    sampler.generator.set_state(state["generator"])
    sampler.take_metrics()

    post, asked, killed = VLLMServer.post, [0], threading.Event()

    def posted(self: VLLMServer, path: str, body: object = None, **query: str) -> object:
        if path == "/v1/completions":
            asked[0] += 1
            if asked[0] == 2:
                threading.Timer(0.15, lambda: (server.kill(), server.start(), killed.set())).start()
        return post(self, path, body, **query)  # type: ignore[arg-type]

    monkeypatch.setattr(VLLMServer, "post", posted)
    started = time.monotonic()
    batch = sampler.sample(run.policy, prompts)
    assert killed.is_set()
    told = sampler.take_metrics()
    assert told["servers_lost"] == 1
    assert told["servers_rejoined"] == 1
    assert told["asked_again"] >= 1
    assert torch.equal(batch.tokens, undisturbed.tokens)
    assert torch.equal(batch.mask, undisturbed.mask)
    difference = largest_difference(run.policy, encoded, batch)
    assert difference < TOLERANCE
    print(
        f"killed and back: {time.monotonic() - started:.0f} s, {told['asked_again']} groups asked again, the same responses, "
        f"log-probs differ by {difference:.1e}"
    )
    monkeypatch.undo()
    steps_agree(run, sampler, tokenizer, 1)


def test_steps_by_files(trainer: Callable[..., Run], tokenizer: PreTrainedTokenizerBase, server: RealServer) -> None:
    run, sampler = trainer(load(), "disk")
    steps_agree(run, sampler, tokenizer, 3)


def test_stop_strings_end_responses_where_ours_would(
    trainer: Callable[..., Run], tokenizer: PreTrainedTokenizerBase, server: RealServer
) -> None:
    from p3o.models.stopping import StopStrings

    stops = (" the", "a", ".")
    _, sampler = trainer(load(), "disk")
    policy = load()
    encoded = encode_prompts(tokenizer, PROMPTS)
    sampler.settings = SamplingSettings(4, 24, 1.0, end_id(tokenizer), stops)
    batch = sampler.sample(policy, pad_left(encoded, pad_id(tokenizer)))
    stopping, stopped = StopStrings(tokenizer, stops), 0
    for tokens, mask, ended in zip(
        batch.tokens.flatten(0, 1), batch.mask.flatten(0, 1), batch.ended.flatten().tolist(), strict=True
    ):
        row = tokens[mask].tolist()
        found = [stopping.found([row[: t + 1]])[0] for t in range(len(row))]
        assert not any(found[:-1])
        assert ended == (found[-1] or row[-1] == end_id(tokenizer))
        stopped += found[-1]
    assert stopped > 4
