"""P3O's three losses against hand-computed cases, each other and finite differences."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from p3o.algorithms.p3o import p3o_joint_clip_loss, p3o_separate_clip_loss, pairwise_policy_gradient_loss
from p3o.functional.advantages import reward_gaps

UNCLIPPED = 1e9
CLIPPED_LOSSES = [p3o_separate_clip_loss, p3o_joint_clip_loss]


def sequences(groups: int, responses: int, *, spread: float = 0.3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs of whole responses under policy, behaviour and reference, and reward gaps, in float64."""
    behaviour = -5.0 + torch.randn(groups, responses, dtype=torch.float64)
    policy = behaviour + spread * torch.randn_like(behaviour)
    reference = behaviour + torch.randn_like(behaviour)
    return policy, behaviour, reference, reward_gaps(torch.randn_like(behaviour))


def gradient(loss, policy: Tensor, *rest: Tensor, **settings: float) -> Tensor:
    leaf = policy.clone().requires_grad_()
    loss(leaf, *rest, **settings).loss.backward()
    assert leaf.grad is not None
    return leaf.grad


def pair(gap: float, ratios: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One pair with these importance ratios and this reward gap; the reference is the behaviour policy."""
    behaviour = torch.tensor([[-3.0, -4.0]], dtype=torch.float64)
    policy = behaviour + torch.tensor([ratios], dtype=torch.float64).log()
    return policy, behaviour, behaviour, torch.tensor([[[0.0, gap], [-gap, 0.0]]], dtype=torch.float64)


@pytest.mark.parametrize("responses", [2, 3, 5])
def test_unclipped_v1_v2_and_ppg_have_the_same_gradient_off_policy(responses: int) -> None:
    tensors = sequences(6, responses, spread=0.8)
    expected = gradient(pairwise_policy_gradient_loss, *tensors, beta=0.1)
    assert expected.abs().min() > 1e-6
    for loss in CLIPPED_LOSSES:
        torch.testing.assert_close(
            gradient(loss, *tensors, epsilon=UNCLIPPED, beta=0.1), expected, rtol=1e-12, atol=1e-14
        )


# Objective and its derivative by log π_θ(y_1), log π_θ(y_2), worked out by hand with ε = 0.2, ρ_2 = 1 unless shown.
SEPARATE_CASES = [
    # gap, (ρ1, ρ2), objective, gradient of the objective, share of the two terms that are cut
    (2.0, (1.5, 1.0), -0.3, (0.0, -1.5), 0.5),  # better and already likelier: its own term is cut at 1.2
    (2.0, (1.1, 1.0), 0.0, (1.1, -1.1), 0.0),
    (2.0, (0.5, 1.0), 0.0, (0.5, -0.5), 0.0),  # better but less likely: the min keeps the way back
    (-2.0, (1.5, 1.0), 0.0, (-1.5, 1.5), 0.0),
    (-2.0, (1.1, 1.0), 0.0, (-1.1, 1.1), 0.0),
    (-2.0, (0.5, 1.0), -0.3, (0.0, 0.5), 0.5),  # worse and already less likely: cut at 0.8
    (2.0, (1.5, 0.5), -0.6, (0.0, 0.0), 1.0),  # ½ (1·1.2 − 3·0.8): both terms are cut
    (0.0, (1.5, 0.5), 0.0, (0.0, 0.0), 0.0),
]


@pytest.mark.parametrize(("gap", "ratios", "objective", "slope", "cut"), SEPARATE_CASES)
def test_separate_clip_by_hand(gap, ratios, objective, slope, cut) -> None:
    tensors = pair(gap, ratios)
    output = p3o_separate_clip_loss(*tensors, epsilon=0.2, beta=0.3)
    assert output.loss.item() == pytest.approx(-objective, abs=1e-12)
    assert output.metrics["clip_fraction"].item() == cut
    assert output.metrics["partner_weight_max"].item() == pytest.approx(max(ratios))
    got = gradient(p3o_separate_clip_loss, *tensors, epsilon=0.2, beta=0.3)
    assert (-got[0]).tolist() == pytest.approx(list(slope), abs=1e-12)


E = math.exp
JOINT_CASES = [
    # gap, (log ρ1, log ρ2), objective, gradient of the objective, cut
    (2.0, (0.5, 0.0), 0.2 * E(0.5), (0.0, 0.0), 1.0),
    (2.0, (0.1, 0.0), 0.1 * E(0.1), (E(0.1), -E(0.1)), 0.0),
    (2.0, (-0.5, 0.0), -0.5 * E(-0.5), (E(-0.5), -E(-0.5)), 0.0),
    (-2.0, (0.5, 0.0), -0.5 * E(0.5), (-E(0.5), E(0.5)), 0.0),
    (-2.0, (-0.1, 0.0), 0.1 * E(-0.1), (-E(-0.1), E(-0.1)), 0.0),
    (-2.0, (-0.5, 0.0), 0.2 * E(-0.5), (0.0, 0.0), 1.0),
    (2.0, (0.5, 0.5), 0.0, (E(1.0), -E(1.0)), 0.0),  # both far away, but together: nothing to cut
    (2.0, (0.15, -0.15), 0.2, (0.0, 0.0), 1.0),  # neither would be cut alone, the pair is
    (0.0, (0.5, 0.0), 0.0, (0.0, 0.0), 0.0),
]


@pytest.mark.parametrize(("gap", "log_ratios", "objective", "slope", "cut"), JOINT_CASES)
def test_joint_clip_by_hand(gap, log_ratios, objective, slope, cut) -> None:
    tensors = pair(gap, (E(log_ratios[0]), E(log_ratios[1])))
    output = p3o_joint_clip_loss(*tensors, epsilon=0.2, beta=0.3)
    assert output.loss.item() == pytest.approx(-objective, abs=1e-12)
    assert output.metrics["clip_fraction"].item() == cut
    got = gradient(p3o_joint_clip_loss, *tensors, epsilon=0.2, beta=0.3)
    assert (-got[0]).tolist() == pytest.approx(list(slope), abs=1e-12)


def test_kl_penalty_enters_through_behaviour_against_reference() -> None:
    """r gap 1, log π_old/π_ref = (0.3, −0.2), β = 0.5: R gap 1 − 0.5·0.5 = 0.75, on-policy gradient of the objective ±0.375."""
    behaviour = torch.tensor([[-2.0, -3.0]], dtype=torch.float64)
    reference = behaviour - torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    gaps = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]], dtype=torch.float64)
    for loss, settings in [
        (pairwise_policy_gradient_loss, {}),
        (p3o_separate_clip_loss, {"epsilon": 0.2}),
        (p3o_joint_clip_loss, {"epsilon": 0.2}),
    ]:
        got = gradient(loss, behaviour, behaviour, reference, gaps, beta=0.5, **settings)
        assert got[0].tolist() == pytest.approx([-0.375, 0.375], abs=1e-14)


def objective_with_held_weights(
    version: str, moved: np.ndarray, held: np.ndarray, old: np.ndarray, ref: np.ndarray, gaps: np.ndarray
) -> float:
    """The objective written out pair by pair; the stop-gradient factors see ``held``, everything else ``moved``."""
    epsilon, beta = 0.2, 0.1
    groups, responses = moved.shape
    total = 0.0
    for g in range(groups):
        ratio, weight_ratio = np.exp(moved[g] - old[g]), np.exp(held[g] - old[g])
        kl = old[g] - ref[g]
        for i in range(responses):
            for j in range(i + 1, responses):
                gap = gaps[g, i, j] - beta * (kl[i] - kl[j])
                if version == "separate":
                    for a, b, signed in [(i, j, gap), (j, i, -gap)]:
                        w = signed * weight_ratio[b]
                        total += 0.5 * min(w * ratio[a], w * np.clip(ratio[a], 1 - epsilon, 1 + epsilon))
                else:
                    w = gap * weight_ratio[i] * weight_ratio[j]
                    ell = np.log(ratio[i] / ratio[j])
                    total += 0.5 * min(w * ell, w * np.clip(ell, -epsilon, epsilon))
    return total / groups / (responses * (responses - 1) / 2)


@pytest.mark.parametrize("responses", [2, 4])
@pytest.mark.parametrize(("version", "loss"), [("separate", p3o_separate_clip_loss), ("joint", p3o_joint_clip_loss)])
def test_value_and_gradient_against_finite_differences_with_weights_held(version, loss, responses) -> None:
    tensors = sequences(8, responses)
    output = loss(*tensors, epsilon=0.2, beta=0.1)
    assert 0.1 < output.metrics["clip_fraction"] < 0.9
    policy, *rest = (tensor.numpy() for tensor in tensors)
    assert output.loss.item() == pytest.approx(-objective_with_held_weights(version, policy, policy, *rest), abs=1e-13)
    numeric, h = np.zeros_like(policy), 1e-6
    for index in np.ndindex(policy.shape):
        up, down = policy.copy(), policy.copy()
        up[index] += h
        down[index] -= h
        higher = objective_with_held_weights(version, up, policy, *rest)
        numeric[index] = -(higher - objective_with_held_weights(version, down, policy, *rest)) / (2 * h)
    np.testing.assert_allclose(gradient(loss, *tensors, epsilon=0.2, beta=0.1).numpy(), numeric, atol=1e-9)


@pytest.mark.parametrize("loss", CLIPPED_LOSSES)
def test_more_responses_are_the_mean_over_pairs(loss) -> None:
    policy, behaviour, reference, gaps = sequences(3, 4)
    whole = loss(policy, behaviour, reference, gaps, epsilon=0.2, beta=0.1)
    pairs = [
        loss(
            *(t[:, [i, j]] for t in (policy, behaviour, reference)),
            gaps[:, [i, j]][:, :, [i, j]],
            epsilon=0.2,
            beta=0.1,
        )
        for i in range(4)
        for j in range(i + 1, 4)
    ]
    torch.testing.assert_close(whole.loss, torch.stack([p.loss for p in pairs]).mean(), rtol=1e-13, atol=1e-15)
    cut = torch.stack([p.metrics["clip_fraction"] for p in pairs]).mean()
    assert whole.metrics["clip_fraction"].item() == pytest.approx(cut.item())


@pytest.mark.parametrize("loss", [*CLIPPED_LOSSES, pairwise_policy_gradient_loss])
def test_a_single_response_is_refused(loss) -> None:
    settings = {"beta": 0.1} if loss is pairwise_policy_gradient_loss else {"beta": 0.1, "epsilon": 0.2}
    with pytest.raises(ValueError, match="at least 2 responses"):
        loss(*sequences(3, 1), **settings)
