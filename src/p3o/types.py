"""The words of the package: what a group of responses is, and what a loss returns.

Dimension names used in every signature:

- ``group``     one prompt with its K responses; never split, neither by shuffling nor by micro-batching;
- ``response``  the K responses of a group, sampled independently from the same policy;
- ``time``      positions of a response, padded on the right;
- ``vocab``     the vocabulary;
- ``hidden``    the width of the model.

Mask convention: ``response_mask`` is True where the token is a response token to train on, the end-of-sequence token
included, padding and prompt excluded. There is no other polarity.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import replace as dataclass_replace
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LossOutput:
    """What every loss returns.

    Attributes:
        loss: scalar to minimise, with its graph.
        metrics: detached scalars for the log, by name.
    """

    loss: Float[Tensor, ""]
    metrics: Mapping[str, Tensor]


@dataclass(frozen=True)
class Experience:
    """Groups as they were sampled and scored, all tensors detached. Algorithms learn from nothing else.

    Attributes:
        response_mask: True on response tokens.
        behaviour_logprobs: log π_old of each token, π_old being the policy that sampled the group, computed by the learner's
            own passes.
        reference_logprobs: log π_ref of each token.
        reward_gaps: r(y_i) − r(y_j), the only form in which relative algorithms see a reward.
        rewards: r(y_i) in float64, or None when the feedback is comparisons only.
        age: how many versions of the policy behind the one that the step begins with the one is that sampled the group; each
            step makes a version, and 0 is the policy as it is.
        values: the critic's estimates at sampling time, for algorithms that need one.
        advantages: per token from a critic, or one per response; written by ``Algorithm.prepare``.
        returns: regression targets of the critic, written by ``Algorithm.prepare``.
        weights: of each group in the loss, where another policy than π_old sampled it (``p3o.functional.mismatch``); None: 1.
        start_logprobs: log π of each token by the policy with which the step began, where groups come late, for ``kl_stop``.
    """

    response_mask: Bool[Tensor, "group response time"]
    behaviour_logprobs: Float[Tensor, "group response time"]
    reference_logprobs: Float[Tensor, "group response time"]
    reward_gaps: Float[Tensor, "group response response"]
    rewards: Float[Tensor, "group response"] | None
    age: Int[Tensor, " group"]
    values: Float[Tensor, "group response time"] | None = None
    advantages: Float[Tensor, "group response *per_token"] | None = None
    returns: Float[Tensor, "group response time"] | None = None
    weights: Float[Tensor, " group"] | None = None
    start_logprobs: Float[Tensor, "group response time"] | None = None

    @property
    def groups(self) -> int:
        """Number of prompts."""
        return self.response_mask.shape[0]

    def select(self, groups: Int[Tensor, " chosen"]) -> "Experience":
        """The experience of the groups with these indices, whole."""
        return self.map(lambda tensor: tensor[groups])

    def map(self, function: Callable[[Tensor], Tensor]) -> "Experience":
        """Apply ``function`` to every tensor present (fields that are None stay None)."""
        present = {name: value for name, value in vars(self).items() if value is not None}
        return dataclass_replace(self, **{name: function(value) for name, value in present.items()})

    def replace(self, **fields: Any) -> "Experience":
        """A copy with these fields changed."""
        return dataclass_replace(self, **fields)
