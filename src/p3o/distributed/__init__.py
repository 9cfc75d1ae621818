"""Several processes that train together: meeting, agreeing, dividing work, sharding parameters. PyTorch only."""

from p3o.distributed.settings import ParallelConfig
from p3o.distributed.shares import shares
from p3o.distributed.start import started
from p3o.distributed.world import LostProcessError, World, alone, within, world

__all__ = ["LostProcessError", "ParallelConfig", "World", "alone", "shares", "started", "within", "world"]
