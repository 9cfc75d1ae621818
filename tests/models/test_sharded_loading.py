"""Memory for the shards of a model whose parameters have none yet."""

import torch
from torch import nn

from p3o.models.sharded_loading import materialise, parameters_on_meta


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.arange(3.0), persistent=False)


def test_buffers_stay_where_the_model_computes() -> None:
    """With parallel.cpu_offload shards rest on one device and buffers are used on another; here the CPU is the other."""
    with parameters_on_meta():
        model = nn.Sequential(nn.Linear(2, 2), Rotary())
    materialise(model, torch.device("meta"))
    assert [buffer.tolist() for buffer in model.buffers()] == [[0.0, 1.0, 2.0]]
    assert "1.frequencies" not in model.state_dict()


def test_parameters_get_memory() -> None:
    with parameters_on_meta():
        model = nn.Sequential(nn.Linear(2, 2), Rotary())
    assert model[0].weight.is_meta
    materialise(model, torch.device("cpu"))
    assert model[0].weight.device.type == "cpu"
    assert [buffer.tolist() for buffer in model.buffers()] == [[0.0, 1.0, 2.0]]
