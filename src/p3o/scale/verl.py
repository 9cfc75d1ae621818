"""P3O with one update per rollout, as an advantage estimator of verl (version 0.9.1).

verl's losses see one response at a time: neither rewards nor group ids reach them, and its default balancing puts the
responses of a prompt on different ranks. With one update per rollout nothing of that matters: π_θ = π_old, every ratio is 1,
no clip acts, and the gradient of P3O (V1, V2 and PPG alike) is that of Σ_i A_i log π_θ(y_i|x) with

    A_i = 1/(K(K−1)) Σ_j (R_i − R_j),   R_i = r_i − β log( π_old(y_i|x) / π_ref(y_i|x) )

summed over the K responses of a prompt: for K = 2, ±(R_1 − R_2)/2. It is 1/K of the RLOO advantage, so with Adam, whose step
does not see a constant factor, verl's own ``rloo`` with the same settings takes the same steps but for Adam's epsilon and the
clipping of gradients. What this estimator adds: gaps in float64, so that a shift of the rewards of a prompt cancels; an error
where a group is not whole, which ``rloo`` passes over in silence; and ``check_settings``, which says what in a configuration
makes it something else than P3O.

The several-update form is not here. It needs ρ_1·ρ_2 of a pair inside the loss, that is both responses of a pair in one
micro-batch with their rewards, and verl's engines hand over neither. p3o's own learner keeps groups whole.

docs/verl.md says how it is used.

    VERL_USE_EXTERNAL_MODULES=p3o.scale.verl_plugin python -m verl.trainer.main_ppo algorithm.adv_estimator=p3o …
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from p3o.errors import P3OError
from p3o.functional.advantages import leave_one_out_advantages

NAME = "p3o"
"""Of the estimator in verl's table: ``algorithm.adv_estimator``."""

VERSION = "0.9.1"
"""Of verl, whose table and dispatch this was written for."""

SETTINGS: Mapping[str, Any] = {
    "algorithm.adv_estimator": NAME,
    "algorithm.use_kl_in_reward": True,
    "algorithm.kl_penalty": "kl",
    "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-sum",
    "actor_rollout_ref.actor.ppo_epochs": 1,
    "actor_rollout_ref.actor.use_kl_loss": False,
    "actor_rollout_ref.actor.entropy_coeff": 0,
}
"""What verl's configuration must say for the step to be P3O's."""


def group_advantages(rewards: Float[Tensor, " row"], groups: Sequence[Any]) -> Float[Tensor, " row"]:
    """A_i of every response, in float64.

    Args:
        rewards: R_i, the KL penalty in it.
        groups: which prompt each is of; any values that can be told apart.

    Raises:
        P3OError: if a reward is not finite, or the groups are not all of one size of at least two.
    """
    if not bool(rewards.isfinite().all()):
        raise P3OError("verl: a reward is not finite; drop the complete group before advantages are computed")
    sizes = Counter(groups)
    wanted = max(sizes.values(), default=0)
    incomplete = [(group, size) for group, size in sizes.items() if size < max(wanted, 2)]
    if incomplete or len(groups) != len(rewards):
        group, size = incomplete[0] if incomplete else ("all", len(groups))
        raise P3OError(
            f"verl: {len(incomplete)} of {len(sizes)} groups are incomplete, the first ({group}) with {size} of "
            f"{max(wanted, 2)} responses; P3O needs whole groups: set actor_rollout_ref.rollout.n to 2 or more, and filter by "
            "group"
        )
    order = sorted(range(len(groups)), key=lambda i: str(groups[i]))
    advantages = torch.zeros(len(groups), dtype=torch.float64, device=rewards.device)
    if order:
        rows = torch.tensor(order, device=rewards.device)
        grouped = rewards.double()[rows].view(-1, wanted)
        advantages[rows] = (leave_one_out_advantages(grouped) / wanted).flatten()
    return advantages


def p3o_advantages(
    token_level_rewards: Float[Tensor, "row time"],
    response_mask: Tensor,
    index: Any = None,
    config: Any = None,  # noqa: ARG001 (verl hands it to every estimator)
    **_others: Any,
) -> tuple[Float[Tensor, "row time"], Float[Tensor, "row time"]]:
    """The estimator as verl calls it: advantages and returns, the same number at every token of a response.

    Args:
        token_level_rewards: with the KL penalty (``algorithm.use_kl_in_reward``).
        response_mask: 1 at response tokens, [row, time].
        index: the ``uid`` of each row's prompt.

    Raises:
        P3OError: without ``index``; and as of ``group_advantages``.
    """
    if index is None:
        raise P3OError("verl: the batch has no uid, so responses cannot be grouped by prompt")
    with torch.no_grad():
        rewards = (token_level_rewards.double() * response_mask).sum(-1)
        spread = group_advantages(rewards, list(index)).unsqueeze(-1) * response_mask
        advantages = spread.to(token_level_rewards.dtype)
    return advantages, advantages.clone()


def register() -> None:
    """Put the estimator into verl's table, and see that it is there.

    Raises:
        P3OError: if verl is not installed, has another version, or took something else.
    """
    found = installed_version()
    if found is None:
        raise P3OError(f"verl is not installed; install it with: pip install 'verl=={VERSION}'")
    if found != VERSION:
        raise P3OError(f"verl {found} is installed, and this estimator was tested with {VERSION} only; install that")
    from verl.trainer.ppo import core_algos

    core_algos.register_adv_est(NAME)(p3o_advantages)
    check_registered()


def check_registered() -> None:
    """See that verl would call our function, by the way in which verl itself finds it.

    Raises:
        P3OError: if it would not.
    """
    from verl.trainer.ppo import core_algos

    try:
        found = core_algos.get_adv_estimator_fn(NAME)
    except ValueError:
        found = None
    if found is not p3o_advantages:
        raise P3OError(
            f"verl's table of advantage estimators has {found} under {NAME!r}; set "
            "VERL_USE_EXTERNAL_MODULES=p3o.scale.verl_plugin in the environment of every process of verl"
        )


def check_settings(config: Mapping[str, Any]) -> None:
    """See that a configuration of verl makes steps of P3O.

    Args:
        config: the whole of it, as nested mappings (``OmegaConf.to_container(config, resolve=True)``).

    Raises:
        P3OError: naming every setting that is otherwise.
    """
    wrong = [
        f"{key} is {_at(config, key)!r}, not {value!r}" for key, value in SETTINGS.items() if _at(config, key) != value
    ]
    batch, mini = _at(config, "data.train_batch_size"), _at(config, "actor_rollout_ref.actor.ppo_mini_batch_size")
    if batch != mini:
        wrong.append(f"actor_rollout_ref.actor.ppo_mini_batch_size is {mini!r}, not data.train_batch_size ({batch!r})")
    responses = _at(config, "actor_rollout_ref.rollout.n")
    if not isinstance(responses, int) or responses < 2:
        wrong.append(f"actor_rollout_ref.rollout.n is {responses!r}, not 2 or more")
    if _at(config, "algorithm.rollout_correction.bypass_mode"):
        wrong.append(
            "algorithm.rollout_correction.bypass_mode is true: log π_old would be the sampler's, not the learner's"
        )
    if wrong:
        raise P3OError(f"verl: this would not be P3O: {'; '.join(wrong)}")


def installed_version() -> str | None:
    """Of verl; None if it is not installed."""
    try:
        return version("verl")
    except PackageNotFoundError:
        return None


def _at(config: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config
