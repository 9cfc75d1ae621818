"""Rollouts by servers: the same responses as the learner's own, of the version that was pushed, and whole, whatever happens."""

import copy
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rollouts.conftest import ENCODED, PROMPTS, TOKENIZER
from tests.rollouts.fake import FakeVLLM
from torch import nn

from p3o.errors import P3OError
from p3o.functional.logprobs import token_logprobs
from p3o.models.adapters import LoraSettings, add_adapter
from p3o.models.sampling import sample_responses
from p3o.models.stopping import split_stops
from p3o.models.tokens import ResponseBatch, decode_responses, end_id, pad_id, pad_left
from p3o.rollouts.sampler import VLLMSampler
from p3o.rollouts.server import VLLMServer

Servers = Callable[..., FakeVLLM]
Samplers = Callable[..., VLLMSampler]
SOME = pad_left(ENCODED[:6], pad_id(TOKENIZER))


def learn(policy: nn.Module, size: float = 0.05) -> None:
    """What an update does."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))


def largest_difference(policy: nn.Module, batch: ResponseBatch, temperature: float = 1.0) -> float:
    """Between the batch's log-probs and the policy's, computed row by row without padding."""
    worst = 0.0
    assert batch.logprobs is not None
    for g, prompt in enumerate(ENCODED[: batch.tokens.shape[0]]):
        for tokens, mask, theirs in zip(batch.tokens[g], batch.mask[g], batch.logprobs[g], strict=True):
            ids = torch.tensor([prompt + tokens[mask].tolist()])
            with torch.no_grad():
                logits = policy(input_ids=ids).logits[:, len(prompt) - 1 : -1]
            own = token_logprobs(logits, ids[:, len(prompt) :], temperature=temperature)[0]
            worst = max(worst, (own - theirs[mask]).abs().max().item())
            assert theirs[~mask].eq(0).all()
    return worst


def same(a: ResponseBatch, b: ResponseBatch) -> bool:
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.mask, b.mask) and torch.equal(a.ended, b.ended)


@pytest.mark.parametrize("stop", [(), ("the", ".")])
def test_greedy_responses_are_the_learners_own(
    servers: Servers, sampler: Samplers, policy: nn.Module, stop: tuple[str, ...]
) -> None:
    learn(policy)
    found = sampler(servers(), temperature=0.0, stop=stop, max_new_tokens=12).sample(policy, SOME)
    own = sample_responses(
        policy,
        SOME,
        responses_per_prompt=2,
        max_new_tokens=12,
        eos_id=end_id(TOKENIZER),
        pad_id=pad_id(TOKENIZER),
        temperature=0.0,
        stop=stop,
        tokenizer=TOKENIZER,
    )
    assert same(found, own)
    assert decode_responses(TOKENIZER, found, stop=stop) == decode_responses(TOKENIZER, own, stop=stop)


def test_a_special_token_that_stops_ends_responses_of_servers_where_it_ends_our_own(
    servers: Servers, sampler: Samplers, policy: nn.Module
) -> None:
    """A word that the policy writes is made a special token; then what it wrote without a stop is cut by hand."""
    learn(policy)
    greedy: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 12}
    ids: dict[str, Any] = {"responses_per_prompt": 2, "eos_id": end_id(TOKENIZER), "pad_id": pad_id(TOKENIZER)}
    free = sample_responses(policy, SOME, **greedy, **ids)
    word = int(free.tokens[0, 0, 2])
    text = str(TOKENIZER.decode([word]))
    marked = copy.deepcopy(TOKENIZER)
    marked.add_special_tokens({"extra_special_tokens": [text]})
    assert marked.convert_tokens_to_ids(text) == word
    fake, stops = servers(), split_stops(marked, [text])
    fake.tokenizer = marked
    served = sampler(fake, stop=stops.texts, stop_ids=stops.ids, **greedy).sample(policy, SOME)
    own = sample_responses(policy, SOME, stop=[text], tokenizer=marked, **greedy, **ids)
    assert same(served, own)
    for found in (served, own):
        for g, k in itertools.product(range(free.tokens.shape[0]), range(2)):
            row = free.tokens[g, k][free.mask[g, k]].tolist()
            ends = word in row
            assert found.tokens[g, k][found.mask[g, k]].tolist() == (row[: row.index(word) + 1] if ends else row)
            assert bool(found.ended[g, k]) == (ends or bool(free.ended[g, k]))


def test_responses_depend_on_the_seed_and_not_on_the_number_of_servers(
    servers: Servers, sampler: Samplers, policy: nn.Module
) -> None:
    one, two = sampler(servers()), sampler(servers(), servers(), in_flight=1)
    first = one.sample(policy, SOME)
    assert same(two.sample(policy, SOME), first)
    second = one.sample(policy, SOME)
    assert not same(second, first)
    assert not same(sampler(servers(), seed=4).sample(policy, SOME), first)
    state = two.state_dict()
    assert same(two.sample(policy, SOME), second)
    two.load_state_dict(state)
    assert same(two.sample(policy, SOME), second)
    two.load_state_dict(state)
    two.divert(1)
    assert not same(two.sample(policy, SOME), second)


@pytest.mark.parametrize("weights", ["gloo", "disk"])
def test_after_every_push_the_log_probs_are_those_of_the_policy(
    servers: Servers, sampler: Samplers, policy: nn.Module, weights: str
) -> None:
    fakes = servers(), servers()
    ours = sampler(*fakes, weights=weights, temperature=0.7)
    versions = set()
    for step in range(3):
        batch = ours.sample(policy, SOME)
        assert largest_difference(policy, batch, temperature=0.7) < 1e-5
        assert fakes[0].version == fakes[1].version == ours.version
        versions.add(ours.version)
        learn(policy)
        ours.publish(policy)
        metrics = ours.take_metrics()
        assert metrics["policy_version"] == step + 2
        assert metrics["servers"] == 2
        assert metrics["probe_difference"] < 1e-5
    assert len(versions) == 3
    for fake in fakes:
        for name, parameter in policy.named_parameters():
            assert torch.equal(parameter, fake.model.get_parameter(name))


def test_an_adapter_goes_alone_and_the_old_one_goes_away(
    servers: Servers, sampler: Samplers, policy: nn.Module, tmp_path: Path
) -> None:
    fake = servers()
    base = fake.original.state_dict()
    policy.load_state_dict(base)
    adapted = add_adapter(policy, LoraSettings(rank=2), task="CAUSAL_LM", seed=0)
    ours = sampler(fake, weights="lora")
    for _ in range(3):
        learn(adapted, 0.1)
        ours.publish(adapted)
        assert largest_difference(adapted, ours.sample(adapted, SOME)) < 1e-5
        assert list(fake.adapters) == [ours.version]
        assert [folder.name for folder in (tmp_path / "weights").iterdir()] == [ours.version]
    assert all(torch.equal(value, base[name]) for name, value in fake.model.state_dict().items())
    ours.close()
    assert list((tmp_path / "weights").iterdir()) == []


@pytest.mark.parametrize("weights", ["gloo", "disk"])
def test_a_policy_with_an_adapter_goes_merged(
    servers: Servers, sampler: Samplers, policy: nn.Module, weights: str
) -> None:
    adapted = add_adapter(policy, LoraSettings(rank=2), task="CAUSAL_LM", seed=0)
    learn(adapted, 0.1)
    assert largest_difference(adapted, sampler(servers(), weights=weights).sample(adapted, SOME)) < 1e-5


def test_lora_without_an_adapter_is_refused(servers: Servers, sampler: Samplers, policy: nn.Module) -> None:
    with pytest.raises(P3OError, match=r"rl\.rollout\.weights: lora"):
        sampler(servers(), weights="lora").publish(policy)


@pytest.mark.parametrize("weights", ["gloo", "disk"])
def test_weights_that_do_not_arrive_are_noticed(
    servers: Servers, sampler: Samplers, policy: nn.Module, weights: str
) -> None:
    fake = servers()
    fake.ignores_weights = True
    with pytest.raises(
        P3OError, match=r"with weights p3o-\w+-1 the log-prob of token \d+ .* differ by .* may by 0.001"
    ):
        sampler(fake, weights=weights).publish(policy)


def test_adapters_that_do_not_arrive_are_noticed(servers: Servers, sampler: Samplers, policy: nn.Module) -> None:
    fake = servers()
    fake.ignores_weights = True
    policy.load_state_dict(fake.original.state_dict())
    adapted = add_adapter(policy, LoraSettings(rank=2), task="CAUSAL_LM", seed=0)
    ours = sampler(fake, weights="lora")
    ours.publish(adapted)  # a fresh adapter changes nothing, so nothing can be noticed
    learn(adapted, 0.1)
    with pytest.raises(P3OError, match="of the fixed text"):
        ours.publish(adapted)


def test_a_server_has_no_more_at_a_time_than_it_may(servers: Servers, sampler: Samplers, policy: nn.Module) -> None:
    fakes = servers(), servers()
    working, most, lock = [0, 0], [0, 0], threading.Lock()

    def watch(index: int) -> Callable[[dict[str, Any]], None]:
        def before(body: dict[str, Any]) -> None:
            if "prompt_logprobs" in body:
                return
            with lock:
                working[index] += 1
                most[index] = max(most[index], working[index])
            time.sleep(0.02)
            with lock:
                working[index] -= 1

        return before

    for index, fake in enumerate(fakes):
        fake.before = watch(index)
    sampler(*fakes, in_flight=2).sample(policy, pad_left(ENCODED[:12], pad_id(TOKENIZER)))
    assert most == [2, 2]


@pytest.mark.parametrize("fault", ["500", "429", "503", "garbage", "short", "aborted"])
def test_a_group_that_comes_back_wrong_is_asked_again_whole(
    servers: Servers, sampler: Samplers, policy: nn.Module, fault: str
) -> None:
    undisturbed = sampler(servers()).sample(policy, SOME)
    fake = servers()
    ours = sampler(fake)
    ours.publish(policy)
    fake.faults.extend([fault, fault])
    assert same(ours.sample(policy, SOME), undisturbed)
    metrics = ours.take_metrics()
    assert metrics["asked_again"] == 2
    assert metrics["busy" if fault in ("429", "503") else "broken"] == 2
    assert not ours.warnings  # type: ignore[attr-defined]


@pytest.mark.parametrize("fault", ["cut", "slow"])
def test_a_server_that_cuts_connections_or_is_slow_is_lost_and_taken_back(
    servers: Servers, sampler: Samplers, policy: nn.Module, fault: str
) -> None:
    undisturbed = sampler(servers()).sample(policy, SOME)
    fake = servers()
    ours = sampler(fake, timeout=0.5)
    ours.publish(policy)
    fake.faults.append(fault)
    assert same(ours.sample(policy, SOME), undisturbed)
    metrics = ours.take_metrics()
    assert metrics["servers_lost"] == metrics["servers_rejoined"] == 1
    assert [text.split()[1:3] for text in ours.warnings] == [["is", "lost:"], ["is", "back,"]]  # type: ignore[attr-defined]


def test_a_server_that_fails_three_times_in_a_row_is_lost(
    servers: Servers, sampler: Samplers, policy: nn.Module
) -> None:
    good, bad = servers(), servers()
    ours = sampler(good, bad, in_flight=1)
    ours.publish(policy)
    bad.faults.extend(["500"] * 3)
    ours.sample(policy, pad_left(ENCODED[:12], pad_id(TOKENIZER)))
    assert ours.take_metrics()["servers_lost"] == 1


def kill_in_the_middle(fake: FakeVLLM, after: int, back: bool) -> threading.Event:
    """Kills the server when it is asked for its ``after``-th group; starts it again a moment later."""
    asked, done = [0], threading.Event()

    def before(body: dict[str, Any]) -> None:
        if "prompt_logprobs" in body or done.is_set():
            return
        asked[0] += 1
        if asked[0] == after:
            done.set()
            fake.kill()
            if back:
                threading.Timer(0.1, fake.start).start()
            raise OSError("killed")

    fake.before = before
    return done


@pytest.mark.parametrize("weights", ["gloo", "disk", "lora"])
def test_a_server_killed_in_the_middle_and_back_loses_nothing(
    servers: Servers, sampler: Samplers, policy: nn.Module, weights: str
) -> None:
    fake = servers()
    if weights == "lora":
        policy.load_state_dict(fake.original.state_dict())
        policy = add_adapter(policy, LoraSettings(rank=2), task="CAUSAL_LM", seed=0)
    learn(policy, 0.1)
    many = pad_left(ENCODED[:12], pad_id(TOKENIZER))
    undisturbed = sampler(servers(), weights=weights).sample(policy, many)
    ours = sampler(fake, weights=weights, in_flight=3)
    ours.publish(policy)
    killed = kill_in_the_middle(fake, after=5, back=True)
    batch = ours.sample(policy, many)
    assert killed.is_set()
    assert same(batch, undisturbed)
    assert largest_difference(policy, batch) < 1e-5
    metrics = ours.take_metrics()
    assert metrics["servers_lost"] == metrics["servers_rejoined"] == 1
    assert metrics["asked_again"] >= 1


def test_when_one_of_two_dies_the_other_does_the_work(servers: Servers, sampler: Samplers, policy: nn.Module) -> None:
    many = pad_left(ENCODED[:12], pad_id(TOKENIZER))
    undisturbed = sampler(servers()).sample(policy, many)
    stays, dies = servers(), servers()
    ours = sampler(stays, dies, in_flight=2)
    ours.publish(policy)
    kill_in_the_middle(dies, after=2, back=False)
    assert same(ours.sample(policy, many), undisturbed)
    assert ours.take_metrics()["servers"] == 1
    learn(policy)
    ours.publish(policy)  # goes to the one that is left
    assert largest_difference(policy, ours.sample(policy, many)) < 1e-5
    dies.start()
    learn(policy)
    ours.publish(policy)
    assert dies.version == stays.version == ours.version
    assert ours.take_metrics()["servers"] == 2


def test_a_server_that_started_again_unnoticed_gives_nothing_that_counts(
    servers: Servers, sampler: Samplers, policy: nn.Module
) -> None:
    """It answers every request, with the weights of its start: only its version gives it away."""
    fake = servers()
    undisturbed = sampler(servers()).sample(policy, SOME)
    ours = sampler(fake, in_flight=1)
    ours.publish(policy)
    fake.kill()
    fake.start()
    assert same(ours.sample(policy, SOME), undisturbed)
    metrics = ours.take_metrics()
    assert metrics["wrong_version"] == 1
    assert metrics["asked_again"] == 1
    assert metrics["servers_rejoined"] == 1


def test_one_clear_error_when_no_server_is_left(servers: Servers, sampler: Samplers, policy: nn.Module) -> None:
    first, second = servers(), servers()
    ours = sampler(first, second, patience=0.3)
    ours.publish(policy)
    first.kill()
    second.kill()
    with pytest.raises(P3OError, match=r"rl.rollout.urls: no server is left after 0.3 s \(.*; .*\); start them again"):
        ours.sample(policy, SOME)


def test_no_server_at_the_start_is_told_at_once(servers: Servers, sampler: Samplers, policy: nn.Module) -> None:
    fake = servers()
    fake.kill()
    started = time.monotonic()
    with pytest.raises(P3OError, match=f"{fake.url}: GET /health"):
        sampler(fake, patience=60.0).sample(policy, SOME)
    assert time.monotonic() - started < 10


def test_a_server_that_is_always_wrong_ends_the_run(servers: Servers, sampler: Samplers, policy: nn.Module) -> None:
    fake = servers()
    ours = sampler(fake, attempts=4)
    ours.publish(policy)
    fake.faults.extend(["short"] * 1000)
    with pytest.raises(
        P3OError, match=r"asked 4 times in vain, the last time of http.*: responses \[0\] in the place of 2"
    ):
        ours.sample(policy, SOME)


def test_a_server_that_is_always_busy_ends_the_run(servers: Servers, sampler: Samplers, policy: nn.Module) -> None:
    fake = servers()
    ours = sampler(fake, attempts=1, patience=0.1, timeout=1.0)
    ours.publish(policy)
    fake.faults.extend(["429"] * 1000)
    with pytest.raises(P3OError, match=r"no responses for \d s, though servers are there"):
        ours.sample(policy, SOME)


def test_what_a_server_refuses_is_told_in_its_words(servers: Servers, sampler: Samplers, policy: nn.Module) -> None:
    ours = sampler(servers(), max_new_tokens=600)
    with pytest.raises(P3OError, match=r"refuses what it is asked: .* maximum context length is 512"):
        ours.sample(policy, SOME)


def test_a_key_is_sent_and_a_wrong_one_told(
    servers: Servers, sampler: Samplers, policy: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = servers(key="right")
    monkeypatch.setenv("VLLM_KEY", "right")
    assert sampler(fake, api_key_env="VLLM_KEY").sample(policy, SOME).ended.shape == (6, 2)
    monkeypatch.setenv("VLLM_KEY", "wrong")
    with pytest.raises(P3OError, match="401 'Unauthorized'"):
        sampler(fake, api_key_env="VLLM_KEY").sample(policy, SOME)
    with pytest.raises(P3OError, match="NO_SUCH_KEY is not set"):
        sampler(fake, api_key_env="NO_SUCH_KEY")


def test_a_server_whose_last_learner_died_in_the_middle_of_a_push_gets_the_weights(
    servers: Servers, sampler: Samplers, policy: nn.Module
) -> None:
    """vLLM begins no second update while one is open."""
    fake = servers()
    VLLMServer(fake.url, timeout=5).post("/pause", mode="wait")
    VLLMServer(fake.url, timeout=5).post("/start_weight_update")
    ours = sampler(fake, patience=1.0)
    learn(policy)
    ours.publish(policy)
    assert fake.version == ours.version
    assert largest_difference(policy, ours.sample(policy, SOME)) < 1e-5


def test_a_server_that_comes_back_gets_the_version_that_the_batch_is_of(
    servers: Servers, sampler: Samplers, policy: nn.Module
) -> None:
    """A later version has been made ready in the meantime, as it is with sampling ahead: it waits for its own batch."""
    fake, many = servers(), pad_left(ENCODED[:12], pad_id(TOKENIZER))
    undisturbed = sampler(servers()).sample(policy, many)
    ours = sampler(fake, in_flight=1)
    old = ours.take(policy)
    later = copy.deepcopy(policy)
    learn(later)
    write, new = ours.begin(old, many), ours.take(later)
    killed = kill_in_the_middle(fake, after=5, back=True)
    batch = ours.collect(write())
    assert killed.is_set()
    assert same(batch, undisturbed)
    assert fake.version == old.name
    assert largest_difference(later, ours.collect(ours.begin(new, many)())) < 1e-5
    assert fake.version == new.name


def test_a_batch_is_of_one_version(servers: Servers, sampler: Samplers, policy: nn.Module) -> None:
    """A push from another thread waits until the batch is whole."""
    fake = servers()
    ours = sampler(fake, in_flight=1)
    ours.publish(policy)
    started, seen = threading.Event(), []

    def before(body: dict[str, Any]) -> None:
        if "prompt_logprobs" not in body:
            seen.append(fake.version)
            started.set()

    fake.before = before
    publishing = threading.Thread(target=lambda: (started.wait(), ours.publish(policy)))
    publishing.start()
    ours.sample(policy, SOME)
    publishing.join()
    assert len(seen) == 6
    assert len(set(seen)) == 1
    assert fake.version == ours.version != seen[0]


def test_the_prompts_are_those_that_were_asked_for(servers: Servers, sampler: Samplers, policy: nn.Module) -> None:
    fake = servers()
    sampler(fake, in_flight=1).sample(policy, SOME)
    assert [body["prompt"] for body in fake.bodies] == ENCODED[:6]
    assert len({body["seed"] for body in fake.bodies}) == 6
    assert len(PROMPTS) == 24
