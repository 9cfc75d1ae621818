"""The server's end of the gloo weight transfer, after vLLM's protocol for weight transfer engines (runs inside vLLM only).

The weights come in the form of a checkpoint, tensor by tensor, and go through the model's own ``load_weights``, within vLLM's
layerwise reload as for its nccl engine.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from p3o.rollouts.group import GlooGroup
from p3o.rollouts.worker import repack_heads


@dataclass
class GlooInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Where the learner waits: as ``p3o.rollouts.links.GlooLink`` sends it.

    Attributes:
        address: of the learner.
        port: of its store.
        world_size: the learner and all workers of all servers.
        rank_offset: the rank of this server's first worker.
        timeout: seconds for every transfer.
    """

    address: str
    port: int
    world_size: int
    rank_offset: int
    timeout: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """The tensors in the order in which they come."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooWeightTransferEngine(WeightTransferEngine):  # type: ignore[misc]
    """Receives what the learner, rank 0 of the group, broadcasts, and passes it on."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group: GlooGroup | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join the learner's group, leaving an earlier one."""
        self.shutdown()
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        self.group = GlooGroup.join(
            init_info.address, init_info.port, rank, init_info.world_size, timeout=init_info.timeout
        )

    def start_weight_update(self) -> None:
        """Prepare the model for weights in the form of a checkpoint."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As in the base class, without its wait for an accelerator: gloo's transfers are over when they return.

        After a transfer that broke off the group is left, so that nobody waits for what this worker would have passed on, and
        the layers are closed: vLLM leaves one that had received a part as it is, and would count that part as received in the
        next transfer, too.
        """
        try:
            self.receive_weights(self.parse_update_info(update_info))
        except BaseException:
            self.shutdown()
            self.finish_weight_update()
            raise

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Receive every tensor and hand it to the model.

        Raises:
            RuntimeError: if no group was joined, or the learner is gone or too slow.
        """
        if self.group is None:
            raise RuntimeError("init_weight_transfer_engine has not been called")
        self.model.load_weights(self._received(self.group, update_info))

    def _received(self, group: GlooGroup, update_info: GlooUpdateInfo) -> Iterator[tuple[str, torch.Tensor]]:
        for name, dtype_name, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            dtype: torch.dtype = getattr(torch, dtype_name)
            received = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
            group.broadcast(received)
            yield name, received.view(dtype).view(shape).to(self.device)

    def finish_weight_update(self) -> None:
        """Let the model process what it was given."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        repack_heads(self.model)

    def shutdown(self) -> None:
        """Leave the group."""
        if self.group is not None:
            self.group.close()
            self.group = None
