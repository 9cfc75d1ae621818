"""The policy as it was some steps ago: for whoever samples by it, and for the log-probs of what it sampled."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from p3o.distributed.sharding import is_sharded, local, settle
from p3o.models.language import frozen_copy


@runtime_checkable
class Past(Protocol):
    """A place in memory for the policy at one time; used for one time after another."""

    def remember(self) -> None:
        """Hold the policy as it is now, in the place of what was held before."""

    @property
    def source(self) -> nn.Module:
        """The module to sample by, or to take what samples from; right after ``remember`` it has the weights that are held."""

    def present(self) -> AbstractContextManager[nn.Module]:
        """Inside, a module with the weights that are held."""


class PastCopy:
    """Of a whole policy: modules of its own, of which one can sample in another thread. What is frozen is shared with the
    policy.
    """

    def __init__(self, policy: nn.Module) -> None:
        self._policy, self._copy = policy, frozen_copy(policy)
        # The same weights in other modules: a pass for log-probs hooks the head, which the sampling thread may be using.
        self._for_passes = frozen_copy(self._copy)
        # Nothing learns here, but autocast keeps its casts only of weights that could (p3o.models.precision.casting_once).
        learned = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
        for name, parameter in self._copy.named_parameters():
            parameter.requires_grad_(name in learned)

    def remember(self) -> None:
        """As ``Past``."""
        own = dict(self._copy.named_parameters())
        with torch.no_grad():
            for name, parameter in self._policy.named_parameters():
                if parameter.requires_grad:
                    own[name].copy_(parameter)

    @property
    def source(self) -> nn.Module:
        """The copy."""
        return self._copy

    @contextmanager
    def present(self) -> Iterator[nn.Module]:
        """A second module with the copy's weights."""
        yield self._for_passes


class PastShards:
    """Of a sharded policy: this process's shards of what is trained. For a pass they change places with the policy's own.

    Args:
        for_passes: whether ``present`` will be asked for; otherwise nothing is held.
    """

    def __init__(self, policy: nn.Module, *, for_passes: bool) -> None:
        self._policy, self._for_passes = policy, for_passes
        self._held = [torch.empty_like(shard) for shard in self._shards()]

    @torch.no_grad()
    def remember(self) -> None:
        """As ``Past``."""
        for held, own in zip(self._held, self._shards(), strict=True):
            held.copy_(own)

    @property
    def source(self) -> nn.Module:
        """The policy: what samples by it takes what it needs at once."""
        return self._policy

    @contextmanager
    def present(self) -> Iterator[nn.Module]:
        """The policy, with these shards in the place of its own until the end of the block."""
        self._change_places()
        try:
            yield self._policy
        finally:
            self._change_places()

    @torch.no_grad()
    def _change_places(self) -> None:
        for held, own in zip(self._held, self._shards(), strict=True):
            kept = own.clone()
            own.copy_(held)
            held.copy_(kept)

    @torch.no_grad()
    def _shards(self) -> list[Tensor]:
        settle(self._policy)  # a pass leaves some weights gathered, copies that would see no change
        return [local(p) for p in self._policy.parameters() if p.requires_grad and self._for_passes]


def past_of(policy: nn.Module, *, for_passes: bool) -> Past:
    """A place for this policy's past; ``for_passes``: whether for more than to be sampled from."""
    return PastShards(policy, for_passes=for_passes) if is_sharded(policy) else PastCopy(policy)
