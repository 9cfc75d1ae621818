"""Weights broadcast to several servers at once: sent once, whole for each that lives, whatever becomes of the others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.rollouts.conftest import TOKENIZER
from tests.rollouts.fake import FakeVLLM, RefusalError
from tests.rollouts.test_group import Counted
from tests.rollouts.test_sampler import SOME, kill_in_the_middle, largest_difference, learn
from torch import nn

from p3o.errors import P3OError
from p3o.models.tokens import pad_id, pad_left
from p3o.rollouts.publishing import Broadcast
from p3o.rollouts.sampler import VLLMSampler

Servers = Callable[..., FakeVLLM]
Samplers = Callable[..., VLLMSampler]


def pusher(ours: VLLMSampler) -> Broadcast:
    assert isinstance(ours.publisher, Broadcast)
    return ours.publisher


def at_work(ours: VLLMSampler) -> list[str]:
    assert ours.fleet is not None
    return [server.url for server in ours.fleet.pool.ready]


def has_it(fake: FakeVLLM, policy: nn.Module, ours: VLLMSampler) -> bool:
    """The whole version, and open for work."""
    same = [torch.equal(weight, fake.model.get_parameter(name)) for name, weight in policy.named_parameters()]
    return all(same) and fake.version == ours.version and not fake.paused and not fake.updating


def dies_while_it_receives(fake: FakeVLLM, after: int = 3) -> None:
    """Killed in its next push, after so many tensors."""
    left = [after]

    def received(name: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            fake.kill()
            raise OSError("killed")

    fake.received = received


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_learner_sends_every_tensor_once_however_many_servers_there_are(
    servers: Servers, sampler: Samplers, policy: nn.Module, count: int
) -> None:
    fakes = [servers() for _ in range(count)]
    ours = sampler(*fakes)
    ours.publish(policy)
    link: Any = pusher(ours).link
    link._group._group = counted = Counted(link._group._group)
    for _ in range(3):
        learn(policy)
        ours.publish(policy)
        assert all(has_it(fake, policy, ours) for fake in fakes)
    assert counted.sent == 3 * sum(weight.nbytes for weight in policy.parameters())
    assert pusher(ours).link is link
    assert {fake.seen["/init_weight_transfer_engine"] for fake in fakes} == {1}, "they met once for four pushes"
    assert {fake.seen["/update_weights"] for fake in fakes} == {4}


def test_every_worker_of_a_server_is_a_rank(servers: Servers, sampler: Samplers, policy: nn.Module) -> None:
    fakes = servers(workers=2), servers(), servers(workers=3)
    ours = sampler(*fakes)
    for _ in range(2):
        ours.publish(policy)
        assert all(has_it(fake, policy, ours) for fake in fakes)
        learn(policy)
    assert [len(fake.groups) for fake in fakes] == [2, 1, 3]
    assert [group.rank for fake in fakes for group in fake.groups] == [1, 2, 3, 4, 5, 6]
    assert {group.size for fake in fakes for group in fake.groups} == {7}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_when_one_dies_in_the_middle_the_others_have_the_whole_version(
    servers: Servers, sampler: Samplers, policy: nn.Module, number: int
) -> None:
    fakes = [servers() for _ in range(3)]
    ours = sampler(*fakes, timeout=30.0)
    ours.publish(policy)
    learn(policy)
    dead = fakes[number]
    left = [fake for fake in fakes if fake is not dead]
    dies_while_it_receives(dead)
    ours.publish(policy)
    assert all(has_it(fake, policy, ours) for fake in left)
    assert dead.version != ours.version
    assert at_work(ours) == [fake.url for fake in left]
    assert [text.split(" is lost")[0] for text in ours.warnings] == [dead.url]  # type: ignore[attr-defined]
    assert largest_difference(policy, ours.sample(policy, SOME)) < 1e-5
    learn(policy)
    ours.publish(policy)
    assert [fake.seen["/init_weight_transfer_engine"] for fake in left] == [2, 2], "they met again once, to stay"
    dead.received = lambda _: None
    dead.start()
    learn(policy)
    ours.publish(policy)
    assert all(has_it(fake, policy, ours) for fake in fakes)
    assert pusher(ours).linked == at_work(ours) == [fake.url for fake in fakes]


def test_when_one_dies_after_the_other_the_last_has_the_whole_version(
    servers: Servers, sampler: Samplers, policy: nn.Module
) -> None:
    fakes = [servers() for _ in range(3)]
    ours = sampler(*fakes, timeout=30.0)
    dies_while_it_receives(fakes[0], after=2)
    dies_while_it_receives(fakes[2], after=20)
    ours.publish(policy)
    assert has_it(fakes[1], policy, ours)
    assert at_work(ours) == [fakes[1].url]


def test_one_that_is_well_but_takes_no_weights_costs_the_others_nothing(
    servers: Servers, sampler: Samplers, policy: nn.Module
) -> None:
    """It has another model, say, and ends every push in the middle. Once that is known, it is tried by itself."""
    good, bad, fine = (servers() for _ in range(3))

    def refuse(name: str) -> None:
        raise RefusalError(500, "a tensor of another shape")

    bad.received = refuse
    ours = sampler(good, bad, fine)
    ours.publish(policy)
    assert has_it(good, policy, ours)
    assert has_it(fine, policy, ours)
    assert at_work(ours) == [good.url, fine.url]
    assert ours.fleet is not None
    assert "a tensor of another shape" in ours.fleet.pool.members[1].reason
    for _ in range(2):
        before = good.seen["/update_weights"]
        learn(policy)
        ours.publish(policy)
        assert has_it(fine, policy, ours)
        assert good.seen["/update_weights"] == before + 1
    bad.received = lambda _: None
    ours.publish(policy)
    assert has_it(bad, policy, ours)
    assert pusher(ours).linked == [bad.url], "by itself"
    ours.publish(policy)
    assert pusher(ours).linked == at_work(ours) == [good.url, bad.url, fine.url], "with the others from then on"


@pytest.mark.parametrize("path", ["init_weight_transfer_engine", "start_weight_update", "pause"])
def test_one_that_refuses_to_begin_costs_the_others_nothing(
    servers: Servers, sampler: Samplers, policy: nn.Module, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, fine = (servers() for _ in range(3))

    def refuse(body: dict[str, Any], query: dict[str, str]) -> None:
        raise RefusalError(500, "not configured")

    monkeypatch.setattr(bad, path, refuse)
    ours = sampler(good, bad, fine, timeout=60.0)
    ours.publish(policy)
    assert has_it(good, policy, ours)
    assert has_it(fine, policy, ours)
    assert at_work(ours) == [good.url, fine.url]
    assert ours.fleet is not None
    assert "500 'not configured'" in ours.fleet.pool.members[1].reason


def test_a_server_that_started_again_between_two_pushes_gets_the_weights_with_the_others(
    servers: Servers, sampler: Samplers, policy: nn.Module
) -> None:
    """Nobody has noticed, and it knows of no group."""
    fakes = [servers() for _ in range(3)]
    ours = sampler(*fakes, timeout=30.0)
    ours.publish(policy)
    fakes[1].kill()
    fakes[1].start()
    learn(policy)
    ours.publish(policy)
    assert all(has_it(fake, policy, ours) for fake in fakes)
    assert not ours.warnings  # type: ignore[attr-defined]


def test_a_server_that_is_back_in_a_batch_gets_its_weights_alone_and_the_next_with_the_others(
    servers: Servers, sampler: Samplers, policy: nn.Module
) -> None:
    stays, dies = servers(), servers()
    ours = sampler(stays, dies, in_flight=1)
    ours.publish(policy)
    learn(policy)
    ours.publish(policy)
    killed = kill_in_the_middle(dies, after=2, back=True)
    batches = 0
    while not ours.take_metrics().get("servers_rejoined"):
        batches += 1
        ours.sample(policy, pad_left([[5, 6, 7]] * 12, pad_id(TOKENIZER)))
        assert batches < 200
    assert killed.is_set()
    assert has_it(dies, policy, ours)
    assert stays.seen["/update_weights"] == 2
    assert pusher(ours).linked == [dies.url]
    learn(policy)
    ours.publish(policy)
    assert has_it(stays, policy, ours)
    assert has_it(dies, policy, ours)
    assert pusher(ours).linked == [stays.url, dies.url]


@pytest.mark.parametrize("weights", ["gloo", "disk"])
def test_weights_go_in_the_servers_dtype(servers: Servers, sampler: Samplers, policy: nn.Module, weights: str) -> None:
    """What arrives is what rounding makes of the weights, and half the bytes; the learner keeps its own."""
    fake, own = servers(), {name: weight.clone() for name, weight in policy.named_parameters()}
    ours = sampler(fake, weights=weights, push_dtype="bfloat16", probe_tolerance=0.2)
    ours.publish(policy)
    if weights == "gloo":
        assert fake.dtypes == {"bfloat16"}
        link: Any = pusher(ours).link
        link._group._group = counted = Counted(link._group._group)
        ours.publish(policy)
        assert counted.sent == sum(weight.numel() * 2 for weight in own.values())
    for name, weight in policy.named_parameters():
        assert torch.equal(weight, own[name])
        assert torch.equal(fake.model.get_parameter(name), weight.bfloat16().float())
    assert 1e-6 < ours.take_metrics()["probe_difference"] < 0.2


def test_rounding_beyond_the_tolerance_is_told(servers: Servers, sampler: Samplers, policy: nn.Module) -> None:
    with pytest.raises(P3OError, match=r"may by 1e-06 .*another dtype \(rl\.rollout\.push_dtype rounds, too\)"):
        sampler(servers(), push_dtype="float16", probe_tolerance=1e-6).publish(policy)


def test_an_adapter_is_not_rounded(servers: Servers, sampler: Samplers) -> None:
    with pytest.raises(ValueError, match="push_dtype: with weights: lora the adapter goes as it is"):
        sampler(servers(), weights="lora", push_dtype="bfloat16")
