"""P3O as an advantage of verl: its numbers by hand and from our own losses; where verl is installed, through verl itself."""

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from p3o.algorithms.p3o import p3o_joint_clip_loss, p3o_separate_clip_loss, pairwise_policy_gradient_loss
from p3o.errors import P3OError
from p3o.functional.advantages import reward_gaps
from p3o.scale import verl as plugin

needs_verl = pytest.mark.skipif(
    plugin.installed_version() != plugin.VERSION or find_spec("ray") is None,
    reason=f"verl {plugin.VERSION} is not installed here (docs/verl.md says how)",
)
BETA = 0.3


def batch(groups: int, responses: int, time: int, seed: int = 0) -> dict[str, Any]:
    """Rows of whole groups in mixed order, as balancing leaves them: token log-probs, masks, rewards at the last token."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(groups * responses, generator=generator)
    uid = np.array([f"prompt {int(i) // responses}" for i in order], dtype=object)
    rows = groups * responses
    lengths = torch.randint(1, time + 1, (rows,), generator=generator)
    mask = (torch.arange(time) < lengths.unsqueeze(-1)).long()
    shape = (rows, time)
    old = -torch.rand(shape, generator=generator, dtype=torch.float64)
    reference = -torch.rand(shape, generator=generator, dtype=torch.float64)
    reward = torch.randn(rows, generator=generator, dtype=torch.float64)
    scores = torch.zeros(shape, dtype=torch.float64).scatter(1, lengths.unsqueeze(-1) - 1, reward.unsqueeze(-1))
    penalised = scores - BETA * (old - reference) * mask
    return {
        "uid": uid,
        "mask": mask,
        "old": old,
        "reference": reference,
        "reward": reward,
        "penalised": penalised,
        "groups": torch.stack([(torch.from_numpy(uid == f"prompt {g}")).nonzero().squeeze(-1) for g in range(groups)]),
    }


def surrogate_gradient(data: dict[str, Any], advantages: torch.Tensor) -> torch.Tensor:
    """Of −Σ_i A_i log π(y_i) / groups by the token log-probs, which is what one update of verl descends, times K."""
    logprobs = data["old"].clone().requires_grad_()
    loss = -(advantages.double() * data["mask"] * logprobs).sum() / len(data["groups"])
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return gradient


def p3o_gradient(data: dict[str, Any], loss: Any, **settings: float) -> torch.Tensor:
    logprobs = data["old"].clone().requires_grad_()
    rows = data["groups"]
    policy, old, reference = (
        ((values * data["mask"]).sum(-1))[rows] for values in (logprobs, data["old"], data["reference"])
    )
    output = loss(policy, old, reference, reward_gaps(data["reward"][rows]), beta=BETA, **settings)
    (gradient,) = torch.autograd.grad(output.loss, logprobs)
    return gradient


@pytest.mark.parametrize("responses", [2, 3, 5])
@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        (pairwise_policy_gradient_loss, {}),
        (p3o_separate_clip_loss, {"epsilon": 0.2}),
        (p3o_joint_clip_loss, {"epsilon": 0.2}),
    ],
)
def test_on_policy_its_gradient_is_that_of_every_p3o_loss(
    responses: int, loss: Any, settings: dict[str, float]
) -> None:
    data = batch(4, responses, 6)
    advantages, returns = plugin.p3o_advantages(data["penalised"], data["mask"], index=data["uid"])
    assert torch.equal(advantages, returns)
    wanted = p3o_gradient(data, loss, **settings)
    assert torch.allclose(surrogate_gradient(data, advantages), wanted, rtol=1e-12, atol=1e-14)
    assert wanted.abs().max() > 0.01


def test_two_responses_get_half_the_difference_by_hand() -> None:
    """R = (3, 1), (−1, 1): ±1 and ∓1; padding gets nothing."""
    rewards = torch.tensor([[0.0, 3.0], [-1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    mask = torch.tensor([[1, 1], [1, 0], [1, 0], [1, 1]])
    advantages, _ = plugin.p3o_advantages(rewards, mask, index=np.array(["a", "b", "a", "b"], dtype=object))
    assert advantages.tolist() == [[1.0, 1.0], [-1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]]


def test_four_responses_get_a_quarter_of_the_mean_difference_by_hand() -> None:
    rewards = torch.tensor([6.0, 2.0, 3.0, 1.0])
    wanted = [(6 - 2) / 4, (2 - 10 / 3) / 4, (3 - 3) / 4, (1 - 11 / 3) / 4]
    assert plugin.group_advantages(rewards, ["x"] * 4).tolist() == pytest.approx(wanted, abs=1e-15)


def test_a_shift_of_a_prompt_s_rewards_changes_nothing_and_a_group_sums_to_zero() -> None:
    data = batch(5, 4, 3)
    rewards = torch.round(data["reward"] * 1024) / 1024
    shift = torch.tensor([float(hash(name) % 1000 - 500) for name in data["uid"]], dtype=torch.float64)
    plain, shifted = (plugin.group_advantages(values, list(data["uid"])) for values in (rewards, rewards + shift))
    assert torch.equal(plain, shifted)
    assert plain[data["groups"]].sum(-1).abs().max() < 1e-15


def test_groups_that_are_not_whole_are_refused() -> None:
    rewards = torch.zeros(5)
    with pytest.raises(P3OError, match=r"1 of 2 groups are incomplete, the first \(b\) with 2 of 3 responses"):
        plugin.group_advantages(rewards, ["a", "b", "a", "b", "a"])
    with pytest.raises(P3OError, match=r"5 of 5 groups are incomplete.* 1 of 2"):
        plugin.group_advantages(rewards, list("abcde"))
    with pytest.raises(P3OError, match="not finite"):
        plugin.group_advantages(torch.tensor([1.0, float("nan")]), ["a", "a"])
    with pytest.raises(P3OError, match="no uid"):
        plugin.p3o_advantages(torch.zeros(2, 1), torch.ones(2, 1))


def settings() -> dict[str, Any]:
    actor = {"loss_agg_mode": "seq-mean-token-sum", "ppo_epochs": 1, "use_kl_loss": False, "entropy_coeff": 0}
    return {
        "data": {"train_batch_size": 64},
        "algorithm": {"adv_estimator": "p3o", "use_kl_in_reward": True, "kl_penalty": "kl"},
        "actor_rollout_ref": {"rollout": {"n": 2}, "actor": actor | {"ppo_mini_batch_size": 64}},
    }


def test_settings_that_are_p3o_s_pass_and_others_are_all_named() -> None:
    good = settings()
    plugin.check_settings(good)
    bad = settings()
    bad["algorithm"] |= {"use_kl_in_reward": False, "rollout_correction": {"bypass_mode": True}}
    bad["actor_rollout_ref"]["actor"] |= {"ppo_epochs": 2, "ppo_mini_batch_size": 32, "loss_agg_mode": "token-mean"}
    bad["actor_rollout_ref"]["rollout"]["n"] = 1
    with pytest.raises(P3OError) as raised:
        plugin.check_settings(bad)
    for part in ("use_kl_in_reward", "ppo_epochs", "ppo_mini_batch_size", "loss_agg_mode", "rollout.n", "bypass_mode"):
        assert part in str(raised.value)
    with pytest.raises(P3OError, match="adv_estimator is None"):
        plugin.check_settings({})


def test_without_verl_or_with_another_version_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "installed_version", lambda: None)
    with pytest.raises(P3OError, match="not installed"):
        plugin.register()
    monkeypatch.setattr(plugin, "installed_version", lambda: "0.8.0")
    with pytest.raises(P3OError, match=r"verl 0.8.0 is installed.*0\.9\.1"):
        plugin.register()


IN_VERL = """
import sys
import verl                                            # imports p3o.scale.verl_plugin, as the environment says
assert "p3o.scale.verl_plugin" in sys.modules
from tensordict import TensorDict
import torch
from verl import DataProto
from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla, get_adv_estimator_fn, register_adv_est
from verl.trainer.ppo.ray_trainer import apply_kl_penalty, compute_advantage
from verl.trainer.ppo.core_algos import FixedKLController
from verl.workers.config import ActorConfig
from p3o.scale import verl as plugin
from runpy import run_path
BETA, batch, p3o_gradient = (run_path(sys.argv[1])[name] for name in ("BETA", "batch", "p3o_gradient"))
from p3o.algorithms.p3o import p3o_joint_clip_loss

plugin.check_registered()
assert get_adv_estimator_fn("p3o") is plugin.p3o_advantages
for responses in (2, 4):
    data = batch(4, responses, 6)
    scores = data["penalised"] + BETA * (data["old"] - data["reference"]) * data["mask"]
    tensors = {"token_level_scores": scores, "old_log_probs": data["old"], "ref_log_prob": data["reference"],
               "response_mask": data["mask"]}
    proto = DataProto(TensorDict(tensors, batch_size=len(scores)), {"uid": data["uid"]})
    proto, _ = apply_kl_penalty(proto, FixedKLController(BETA), kl_penalty="kl")
    proto = compute_advantage(proto, adv_estimator="p3o")
    logprobs = data["old"].clone().requires_grad_()
    config = ActorConfig(strategy="fsdp", rollout_n=responses, ppo_micro_batch_size_per_gpu=1)
    loss, _ = compute_policy_loss_vanilla(data["old"], logprobs, proto.batch["advantages"], data["mask"].bool(),
                                          loss_agg_mode="seq-mean-token-sum", config=config)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    wanted = p3o_gradient(data, p3o_joint_clip_loss, epsilon=0.2) / responses
    assert torch.allclose(gradient, wanted, rtol=1e-9, atol=1e-12), (gradient - wanted).abs().max()
    rloo = compute_advantage(proto, adv_estimator="rloo").batch["advantages"] / responses
    ours = compute_advantage(proto, adv_estimator="p3o").batch["advantages"]
    assert torch.allclose(rloo, ours, atol=1e-12)
from verl.trainer.ppo import core_algos
core_algos.ADV_ESTIMATOR_REGISTRY["p3o"] = print
try:
    plugin.check_registered()
except plugin.P3OError as error:
    assert "print" in str(error)
else:
    raise AssertionError("somebody else's function passed")
print("verl agrees")
"""


@needs_verl
@pytest.mark.slow
def test_through_verl_s_own_dispatch_and_loss() -> None:
    environment = os.environ | {"VERL_USE_EXTERNAL_MODULES": "p3o.scale.verl_plugin"}
    done = subprocess.run(
        [sys.executable, "-c", IN_VERL, __file__], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "verl agrees" in done.stdout
