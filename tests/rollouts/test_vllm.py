"""The real vLLM server on a CPU with the real SmolLM2-135M: a judge's letters, steps, weights pushed three ways, a server
killed in the middle.

``make test-vllm`` makes the environment and runs this; it takes a few minutes and 3 GB of memory. What it measures is printed
(``-s``) and stands in docs/scale_vllm.md.
"""

import gc
import math
import os
import string
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from tests.rollouts.real import READY, RealServer, needs_vllm
from torch import nn
from transformers import PreTrainedTokenizerBase

from p3o.algorithms import make_algorithm
from p3o.cli import main
from p3o.feedback.judge.prompts import Question
from p3o.files import read_jsonl, write_jsonl
from p3o.functional.logprobs import token_logprobs
from p3o.models.adapters import LoraSettings, add_adapter
from p3o.models.language import frozen_copy, load_language_model, load_tokenizer
from p3o.models.stopping import StopStrings, split_stops
from p3o.models.tokens import ResponseBatch, encode_prompts, end_id, pad_id, pad_left
from p3o.rollouts.config import RolloutConfig
from p3o.rollouts.probe import probe_text
from p3o.rollouts.sampler import VLLMSampler
from p3o.rollouts.server import SamplingSettings, VLLMServer
from p3o.training.online import OnlineConfig, OnlineTrainer

MODEL = Path(os.environ.get("P3O_SMOLLM2") or Path(__file__).parents[2] / "models" / "smollm2")
TOLERANCE = 1e-3

PROMPTS = [
    "Write one sentence about a fox.",
    "Name three colours.",
    "What is the capital of France?",
    "Say something kind to a friend.",
]
TEMPERATURE, NEW_TOKENS = 0.8, 16

needs_model = pytest.mark.skipif(
    not (MODEL / "model.safetensors").exists(), reason="no models/smollm2; examples/smollm2/get_model.py makes it"
)
pytestmark = [pytest.mark.slow, needs_vllm, needs_model]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    arguments = [
        "--max-model-len",
        "512",
        "--logprobs-mode",
        "processed_logprobs",
        "--enable-lora",
        "--max-lora-rank",
        "8",
    ]
    arguments += ["--weight-transfer-config", '{"backend": "p3o_gloo"}']
    arguments += ["--worker-extension-cls", "p3o.rollouts.worker.Repacking"]
    real = RealServer(MODEL, tmp_path_factory.mktemp("vllm"), *arguments)
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


@torch.no_grad()
def own_lean(model: nn.Module, tokenizer: PreTrainedTokenizerBase, question: str) -> tuple[float, str]:
    """log p(A) − log p(B) where the model comes to a letter, and the candidates there."""
    messages = [{"role": "user", "content": question}]
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    for _ in range(4):
        logprobs = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        values, tokens = (found.tolist() for found in logprobs.topk(20))
        texts = [tokenizer.decode([token]).strip(string.punctuation + string.whitespace) for token in tokens]
        mass = {
            letter: sum(math.exp(value) for value, text in zip(values, texts, strict=True) if text == letter)
            for letter in "AB"
        }
        if any(mass.values()):
            a, b = (math.log(mass[letter] or math.exp(values[-1])) for letter in "AB")
            return a - b, " ".join(texts[:4])
        ids = [*ids, tokens[0]]
    raise AssertionError("no letter in four tokens")


# The first test: later ones leave their own weights on the server.
def test_a_judge_answers_in_letters_by_the_model_s_own_log_probs(
    server: RealServer, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """``p3o judge`` with ``answer: letter``: choices and preferences follow from what transformers says of the two letters."""
    good = ["A fox ran through the quiet forest.", "Red, green and blue.", "It is Paris."]
    bad = ["asdf asdf asdf", "Trees grow.", "Bananas are the capital of the sea."]
    for name, responses in (("good", good), ("bad", bad)):
        rows = [{"prompt": prompt, "response": response} for prompt, response in zip(PROMPTS, responses, strict=False)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    settings = ["--judge", "openai", "--model", str(MODEL), "--base-url", f"{server.url}/v1"]
    settings += ["--set", "answer=letter", "--set", "contradictions=average", "--set", "timeout=300"]
    files = ["--a", str(tmp_path / "good.jsonl"), "--b", str(tmp_path / "bad.jsonl"), "--output", str(tmp_path)]
    assert main(["judge", *files, *settings]) == 0
    model, question = load(), Question("helpfulness", "letter")
    rows = list(read_jsonl(tmp_path / "judgements.jsonl"))
    for row, prompt, a, b in zip(rows, PROMPTS, good, bad, strict=False):
        leans, candidates = zip(
            *(own_lean(model, tokenizer, question.fill(prompt, *pair)) for pair in ((a, b), (b, a))), strict=True
        )
        assert [answer["choice"] for answer in row["answers"]] == ["first" if x >= 0 else "second" for x in leans]
        assert {answer["served_by"] for answer in row["answers"]} == {str(MODEL)}
        wanted = (math.tanh(leans[0] / 2) - math.tanh(leans[1] / 2)) / 2
        assert row["preference"] == pytest.approx(wanted, abs=TOLERANCE)
        print(
            f"judge: log-odds of the first {leans[0]:+.3f} and {leans[1]:+.3f} by transformers (of {candidates[0]}), "
            f"preference {row['preference']:+.4f} by vLLM, {wanted:+.4f} by transformers"
        )
    assert len(rows) == len(good)
    assert len({round(row["preference"], 3) for row in rows}) > 1


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
    # Two gigabytes of weights and optimiser, in cycles.
    made.clear()
    gc.collect()


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
    steps_agree(run, sampler, tokenizer, 2)


def test_steps_over_gloo(trainer: Callable[..., Run], tokenizer: PreTrainedTokenizerBase, server: RealServer) -> None:
    run, sampler = trainer(load(), "gloo")
    steps_agree(run, sampler, tokenizer, 2)


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
    steps_agree(run, sampler, tokenizer, 2)


def test_stop_strings_end_responses_where_ours_would(
    trainer: Callable[..., Run], tokenizer: PreTrainedTokenizerBase, server: RealServer
) -> None:
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


def test_a_special_token_that_stops_ends_responses_as_the_end_of_sequence_does(
    trainer: Callable[..., Run], tokenizer: PreTrainedTokenizerBase, server: RealServer
) -> None:
    """The model ends its turns with <|im_end|>; here, as with a base model, that is not the end of sequence."""
    other, turn = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    stops = split_stops(tokenizer, ["<|im_end|>", " Rome"])
    assert stops == ((turn,), (" Rome",))
    _, sampler = trainer(load(), "disk")
    questions = [[{"role": "user", "content": text}] for text in PROMPTS]
    texts = [str(tokenizer.apply_chat_template(row, tokenize=False, add_generation_prompt=True)) for row in questions]
    encoded = encode_prompts(tokenizer, texts)
    sampler.settings = SamplingSettings(4, 40, TEMPERATURE, other, stops.texts, stops.ids)
    policy = load()
    batch = sampler.sample(policy, pad_left(encoded, pad_id(tokenizer)))
    assert largest_difference(policy, encoded, batch) < TOLERANCE
    turns = 0
    for tokens, mask, ended in zip(
        batch.tokens.flatten(0, 1), batch.mask.flatten(0, 1), batch.ended.flatten().tolist(), strict=True
    ):
        row = tokens[mask].tolist()
        assert turn not in row[:-1]
        assert ended or len(row) == 40
        turns += ended and row[-1] == turn
    assert turns > 4
    print(f"{turns} of 16 responses ended by <|im_end|>")
