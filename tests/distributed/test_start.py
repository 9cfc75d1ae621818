"""Which GPU each of several processes takes; there are none here, so torch is told that there are."""

import pytest
import torch

from p3o.distributed import ParallelConfig, started
from p3o.errors import P3OError


class TakenError(Exception):
    """In the place of going on with the GPU that was taken."""


def taken(monkeypatch: pytest.MonkeyPatch, local_rank: str, gpus: int) -> int:
    def take(device: int) -> None:
        raise TakenError(device)

    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", take)
    with pytest.raises(TakenError) as found, started(ParallelConfig()):
        pass
    return int(found.value.args[0])


def test_every_process_takes_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(monkeypatch, "5", 8) == 5


def test_a_process_that_sees_one_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Slurm gives each task a GPU of its own."""
    assert taken(monkeypatch, "5", 1) == 0


def test_more_processes_than_gpus_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(P3OError, match="this is process 5 on a host with 4 GPUs"):
        taken(monkeypatch, "4", 4)
