"""What the frontier benchmark asks of a problem, and what its three problems share.

All tensors carry a leading ``policy`` axis: many independent policies (every combination of seed, β and learning rate) live
in one tensor program, each with its own instance of the problem, drawn from its seed. Parameters of a policy are one row of a
``[policy, parameter]`` matrix. Exact quantities are in float64 and averaged over the evaluation prompts.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Rollout(NamedTuple):
    """Sampled responses: tokens and their mask."""

    tokens: Int[Tensor, "policy group response time"]
    response_mask: Bool[Tensor, "policy group response time"]


class Point(NamedTuple):
    """Exact expected reward and KL(policy ‖ reference) of every policy, in nats per response."""

    reward: Float[Tensor, " policy"]
    kl: Float[Tensor, " policy"]


@runtime_checkable
class Problem(Protocol):
    """A bandit over responses, small or regular enough for E[r], KL and the Gibbs policy to be exact."""

    seeds: Sequence[int]
    """The seed of each policy's instance; policies of the same seed share instance, prompts and sampling noise."""

    def initial_policy(self) -> Float[Tensor, "policy parameter"]:
        """Parameters of the reference policy, where every run begins."""
        ...

    def initial_critic(self) -> Float[Tensor, "policy critic"]:
        """Parameters of a fresh critic; its values are 0."""
        ...

    def prompts(self, groups: int) -> Tensor:
        """The next training prompts of each seed's stream, ``[policy, group, ...]``."""
        ...

    def sample(self, policy: Float[Tensor, "policy parameter"], prompts: Tensor, responses: int) -> Rollout:
        """``responses`` independent samples for each prompt."""
        ...

    def encode(self, prompts: Tensor, tokens: Int[Tensor, "policy group response time"]) -> Tensor:
        """What networks read of prompts and responses, ``[policy, group, ...]``: computed once, used at every update."""
        ...

    def logprobs(
        self,
        policy: Float[Tensor, "policy parameter"],
        inputs: Tensor,
        tokens: Int[Tensor, "policy group response time"],
    ) -> Float[Tensor, "policy group response time"]:
        """log π(y_t | x, y_<t) of each token; ``inputs`` are their encoding."""
        ...

    def values(
        self,
        critic: Float[Tensor, "policy critic"],
        inputs: Tensor,
        tokens: Int[Tensor, "policy group response time"],
    ) -> Float[Tensor, "policy group response time"]:
        """The critic's value of the state in which each token is chosen."""
        ...

    def rewards(self, prompts: Tensor, rollout: Rollout) -> Float[Tensor, "policy group response"]:
        """r(y|x) in float64."""
        ...

    def evaluate(self, policy: Float[Tensor, "policy parameter"]) -> Point:
        """Exact E[r] and KL on the evaluation prompts."""
        ...

    def gibbs(self, beta: float) -> Point:
        """Exact E[r] and KL of π* ∝ π_ref exp(r/β): the best reward that any policy has at that KL."""
        ...


class SeededNoise:
    """Uniform numbers from one generator per distinct seed, handed to every policy of that seed.

    A policy's numbers depend on its seed alone, not on what else is in the program: runs are paired across algorithms.
    """

    def __init__(self, seeds: Sequence[int], stream: int) -> None:
        distinct = sorted(set(seeds))
        self._generators = [torch.Generator().manual_seed(1_000_003 * stream + seed) for seed in distinct]
        self._row = torch.tensor([distinct.index(seed) for seed in seeds])

    def uniform(self, *shape: int) -> Float[Tensor, "policy ..."]:
        """Uniform on [0, 1), ``[policy, *shape]``."""
        return torch.stack([torch.rand(*shape, generator=generator) for generator in self._generators])[self._row]

    def normal(self, *shape: int) -> Float[Tensor, "policy ..."]:
        """Standard normal, ``[policy, *shape]``, in float64."""
        draws = [torch.randn(*shape, generator=generator, dtype=torch.float64) for generator in self._generators]
        return torch.stack(draws)[self._row]

    def integers(self, high: int, *shape: int) -> Int[Tensor, "policy ..."]:
        """Uniform on {0, …, high − 1}, ``[policy, *shape]``."""
        return torch.stack([torch.randint(high, shape, generator=generator) for generator in self._generators])[
            self._row
        ]


def choose(probabilities: Float[Tensor, "*batch vocab"], uniform: Float[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
    """Inverse-CDF sampling: the first index whose cumulated probability exceeds ``uniform``."""
    below = (probabilities.cumsum(-1) <= uniform.unsqueeze(-1)).sum(-1)
    return below.clamp(max=probabilities.shape[-1] - 1)


def on_grid(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Rounded to multiples of 2⁻¹⁰: sums of such numbers are exact, so a reward shift cancels bit for bit."""
    return torch.round(values * 1024.0) / 1024.0


def gibbs_point(
    reference_logprobs: Float[Tensor, "policy prompt outcome"],
    rewards: Float[Tensor, "policy prompt outcome"],
    beta: float,
) -> Point:
    """E[r] and KL of π_ref exp(r/β)/Z over enumerated outcomes, averaged over prompts."""
    return exact_point(torch.log_softmax(reference_logprobs + rewards / beta, -1), reference_logprobs, rewards)


def exact_point(
    logprobs: Float[Tensor, "policy prompt outcome"],
    reference_logprobs: Float[Tensor, "policy prompt outcome"],
    rewards: Float[Tensor, "policy prompt outcome"],
) -> Point:
    """E[r] and KL by enumeration of all outcomes, averaged over prompts."""
    probabilities = logprobs.exp()
    kl = (probabilities * (logprobs - reference_logprobs)).sum(-1).mean(-1)
    return Point((probabilities * rewards).sum(-1).mean(-1), kl)
