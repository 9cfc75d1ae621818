"""What a step's responses are worth: a reward for each, or a preference for each pair of a group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from p3o.distributed.shares import shares
from p3o.distributed.world import world
from p3o.errors import shorten
from p3o.feedback.comparison import Comparator, preference_matrix
from p3o.feedback.missing import rewards_may_be_missing
from p3o.functional.advantages import reward_gaps
from p3o.training.faults import NumericalError
from p3o.training.online_config import OnlineConfig

Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""A reward: ``(prompts, responses) -> one score per response``."""


@dataclass(frozen=True)
class Worth:
    """Feedback on groups of responses, in float64.

    Attributes:
        rewards: a score per response, or None where there are only comparisons.
        gaps: r(y_i) − r(y_j), or the preference of i over j.
        kept: the groups that it is about; others had feedback that is not finite and were dropped whole.
        faults: what was wrong with each group that was dropped, its prompt named.
    """

    rewards: Float[Tensor, "group response"] | None
    gaps: Float[Tensor, "group response response"]
    kept: Int[Tensor, " group"]
    faults: tuple[str, ...] = ()


class RewardFeedback:
    """Scores by a reward, less a penalty for responses that were cut at the length limit.

    Float64 keeps r + shift exact, so that the gaps of shifted rewards equal the unshifted ones.
    """

    relative = False

    def __init__(self, scorer: Scorer, *, missing_eos_penalty: float, drop_bad_groups: bool = False) -> None:
        self.scorer, self.penalty, self.drop = scorer, missing_eos_penalty, drop_bad_groups

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[Sequence[str]], ended: Bool[Tensor, "group response"]
    ) -> Worth:
        """The worth of ``responses[g][k]`` to ``prompts[g]``.

        Raises:
            NumericalError: if a score is not finite and bad groups are not to be dropped.
        """
        repeated = [prompt for prompt, group in zip(prompts, responses, strict=True) for _ in group]
        flat = list(chain.from_iterable(responses))
        with rewards_may_be_missing(self.drop):
            scored = list(self.scorer(repeated, flat))
        rewards = torch.tensor(scored, dtype=torch.float64).view(ended.shape)
        rewards = rewards - self.penalty * (~ended).double().cpu()
        kept, faults = _finite_groups(rewards, prompts, responses, drop=self.drop, what="reward")
        return Worth(rewards[kept], reward_gaps(rewards[kept]), kept, faults)


class ComparisonFeedback:
    """Preferences of a comparator between the responses of a group; a cut response loses by the penalty."""

    relative = True

    def __init__(
        self, comparator: Comparator, *, missing_eos_penalty: float = 0.0, drop_bad_groups: bool = False
    ) -> None:
        self.comparator, self.penalty, self.drop = comparator, missing_eos_penalty, drop_bad_groups

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[Sequence[str]], ended: Bool[Tensor, "group response"]
    ) -> Worth:
        """The preferences among ``responses[g]`` as answers to ``prompts[g]``.

        Raises:
            NumericalError: if a preference is not finite and bad groups are not to be dropped.
        """
        with rewards_may_be_missing(self.drop):
            gaps = preference_matrix(self.comparator, prompts, responses)
        gaps = gaps - reward_gaps(self.penalty * (~ended).double().cpu())
        kept, faults = _finite_groups(gaps.flatten(1), prompts, responses, drop=self.drop, what="preference")
        return Worth(None, gaps[kept], kept, faults)


def rate(
    feedback: "RewardFeedback | ComparisonFeedback",
    prompts: Sequence[str],
    responses: Sequence[Sequence[str]],
    ended: Bool[Tensor, "group response"],
) -> Worth:
    """The worth of the groups: each process asks for its share, and all know the whole.

    Raises:
        NumericalError: on all of them, if a score of one is not finite and bad groups are not to be dropped.
    """
    together = world()
    if together.size == 1:
        return feedback(prompts, responses, ended)
    sizes = [sum(map(len, group)) + len(prompt) for prompt, group in zip(prompts, responses, strict=True)]
    mine = shares(sizes, together.size, equal_counts=True)[together.rank]
    own = together.together(
        lambda: feedback([prompts[i] for i in mine], [responses[i] for i in mine], ended[mine]) if mine else None
    )
    told = None if own is None else {**vars(own), "kept": torch.tensor(mine)[own.kept]}
    found = [part for part in together.gather(told) if part is not None]
    kept = torch.cat([part["kept"] for part in found])
    order = kept.argsort()
    gaps = torch.cat([part["gaps"] for part in found])[order]
    rewards = None if found[0]["rewards"] is None else torch.cat([part["rewards"] for part in found])[order]
    faults = tuple(fault for part in found for fault in part["faults"])
    return Worth(rewards, gaps, kept[order], faults)


def rated_by(feedback: Scorer | ComparisonFeedback, config: OnlineConfig) -> RewardFeedback | ComparisonFeedback:
    """How a run rates its responses: a plain reward as the configuration says, comparisons as they are."""
    if isinstance(feedback, ComparisonFeedback):
        return feedback
    return RewardFeedback(
        feedback, missing_eos_penalty=config.missing_eos_penalty, drop_bad_groups=config.on_fault == "skip"
    )


def _finite_groups(
    values: Float[Tensor, "group value"],
    prompts: Sequence[str],
    responses: Sequence[Sequence[str]],
    *,
    drop: bool,
    what: str,
) -> tuple[Int[Tensor, " kept"], tuple[str, ...]]:
    """The groups all of whose values are finite, and what is wrong with the others.

    Raises:
        NumericalError: for the first other one, unless such groups are dropped.
    """
    finite = values.isfinite()
    faults = []
    for group in (~finite.all(-1)).nonzero().squeeze(-1).tolist():
        at = int((~finite[group]).nonzero()[0])
        told = f", response {shorten(responses[group][at])}" if what == "reward" else ""
        faults.append(f"the {what} of a response is {values[group, at].item()}; prompt {shorten(prompts[group])}{told}")
    if faults and not drop:
        raise NumericalError(
            f"{faults[0]}: a {what} must be a finite number (set on_fault: skip to drop such groups and count them)"
        )
    return finite.all(-1).nonzero().squeeze(-1), tuple(faults)
