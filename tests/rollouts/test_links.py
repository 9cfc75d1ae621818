"""The learner's end of a link: gloo for real (test_sampler.py); nccl against stand-ins of vLLM's functions (no GPU)."""

import sys
import types
from typing import Any

import pytest
import torch

from p3o.errors import P3OError
from p3o.rollouts.http import ServerError
from p3o.rollouts.links import GlooLink, NcclLink
from p3o.rollouts.server import VLLMServer


class Server(VLLMServer):
    """Remembers what it was asked."""

    def __init__(self, refusal: str | None = None, *, workers: int = 4) -> None:
        super().__init__("http://127.0.0.1:9", timeout=1)
        self.asked: list[tuple[str, Any]] = []
        self.refusal, self.workers = refusal, workers

    def world_size(self) -> int:
        return self.workers

    def post(self, path: str, body: dict[str, Any] | None = None, **query: str) -> None:
        self.asked.append((path, body))
        if self.refusal is not None:
            raise ServerError("broken", self.refusal)


class Group:
    """Stands for vLLM's communicator."""

    disabled = False

    def __init__(self, meeting: dict[str, Any]) -> None:
        self.meeting, self.sent, self.destroyed = meeting, list[torch.Tensor](), False

    def broadcast(self, tensor: torch.Tensor, src: int, stream: object) -> None:
        assert (src, stream) == (0, Cuda.stream)
        self.sent.append(tensor)

    def destroy(self) -> None:
        self.destroyed = True


class Cuda:
    """Stands for torch's streams and events."""

    stream = "ours"
    arrives = True

    def record(self, stream: str) -> None:
        assert stream == Cuda.stream

    def query(self) -> bool:
        return Cuda.arrives


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """vLLM's functions, to be changed."""
    common, network = types.ModuleType("nccl_common"), types.ModuleType("network_utils")
    common.trainer_init = Group  # type: ignore[attr-defined]
    network.get_open_port = lambda: 1234  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.nccl_common", common)
    monkeypatch.setitem(sys.modules, "vllm.utils.network_utils", network)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Cuda.stream)
    monkeypatch.setattr(torch.cuda, "Event", Cuda)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    return common


@pytest.mark.usefixtures("nccl")
def test_over_nccl_the_learner_is_rank_0_and_the_workers_of_all_servers_follow() -> None:
    """As vLLM 0.32 counts them: a worker's rank is the offset and its number on its server."""
    servers = [Server(workers=4), Server(workers=2), Server(workers=1)]
    link = NcclLink(servers, "10.0.0.1", timeout=5.0)
    meeting = {"master_address": "10.0.0.1", "master_port": 1234, "world_size": 8}
    for server, offset in zip(servers, (1, 5, 7), strict=True):
        assert server.asked == [
            ("/shutdown_weight_transfer_engine", None),
            ("/init_weight_transfer_engine", {"init_info": meeting | {"rank_offset": offset, "packed": False}}),
        ]
    group = link._group
    assert group.meeting == meeting
    matrix = torch.randn(3, 2).T
    link.send(matrix)
    assert group.sent[0].is_contiguous()
    assert torch.equal(group.sent[0], matrix)
    link.close()
    assert group.destroyed


@pytest.mark.usefixtures("nccl")
def test_over_nccl_a_server_that_is_gone_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    link = NcclLink([Server()], "10.0.0.1", timeout=0.05)
    monkeypatch.setattr(Cuda, "arrives", False)
    with pytest.raises(RuntimeError, match=r"not received within 0\.05 s"):
        link.send(torch.zeros(2))
    assert link._group.destroyed, "what is under way would hold up all that the GPU is given afterwards"


def test_an_nccl_that_cannot_be_loaded_is_told(nccl: types.ModuleType) -> None:
    """vLLM's communicator then does nothing at all, and the server waits."""
    nccl.trainer_init = type("Disabled", (Group,), {"disabled": True})  # type: ignore[attr-defined]
    with pytest.raises(P3OError, match=r"rl\.rollout\.weights: nccl cannot be loaded"):
        NcclLink([Server()], "10.0.0.1", timeout=1.0)


def test_an_address_of_another_machine_is_told_for_nccl(nccl: types.ModuleType) -> None:
    def refuse(meeting: dict[str, Any]) -> None:
        raise OSError(99, "Cannot assign requested address")

    nccl.trainer_init = refuse  # type: ignore[attr-defined]
    with pytest.raises(P3OError, match=r"rl\.rollout\.address: this machine has no address '203\.0\.113\.7'"):
        NcclLink([Server()], "203.0.113.7", timeout=1.0)


def test_nccl_without_vllm_is_told() -> None:
    with pytest.raises(P3OError, match="nccl needs vllm in the learner's environment"):
        NcclLink([Server()], "127.0.0.1", timeout=1.0)


def test_an_address_that_is_not_ours_is_told() -> None:
    with pytest.raises(P3OError, match=r"rl\.rollout\.address: this machine has no address '203\.0\.113\.7'"):
        GlooLink([Server()], "203.0.113.7", timeout=1.0)


def test_a_server_that_refuses_to_meet_says_why() -> None:
    """Its reason is told, and not that it does not come."""
    with pytest.raises(ServerError, match="Weight transfer not configured"):
        GlooLink([Server("Weight transfer not configured")], "127.0.0.1", timeout=1.0)
