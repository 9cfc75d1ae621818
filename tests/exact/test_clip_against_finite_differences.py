"""The clipped objectives of P3O, averaged over every pair, against finite differences by the policy's own parameters.

The objective is written a second time, in NumPy and as in print, with the stop-gradient factors taken at ``held`` while the
policy moves.
"""

import numpy as np
import pytest
import torch
from tests.exact.enumeration import Enumeration, logprobs_of_responses, random_rewards, random_table

from p3o.algorithms import make_algorithm

BETA, EPSILON = 0.3, 0.2
REFERENCE = random_table(11)
BEHAVIOUR = REFERENCE + 0.5 * random_table(12)
MOVED = BEHAVIOUR + 0.4 * random_table(13)
REWARDS = random_rewards(14)


def responses(table: np.ndarray) -> np.ndarray:
    return logprobs_of_responses(torch.from_numpy(table)).numpy()


def expected_objective(version: str, moving: np.ndarray, held: np.ndarray) -> float:
    """Mean over prompts of Σ_{y1, y2} π_old(y1) π_old(y2) · objective(y1, y2)."""
    old, reference = responses(BEHAVIOUR.numpy()), responses(REFERENCE.numpy())
    penalised = REWARDS.numpy() - BETA * (old - reference)
    ratio, held_ratio = np.exp(responses(moving) - old), np.exp(responses(held) - old)
    total = 0.0
    for prompt in range(len(old)):
        probability = np.exp(old[prompt])[:, None] * np.exp(old[prompt])[None, :]
        gap = penalised[prompt][:, None] - penalised[prompt][None, :]
        if version == "p3o_v1":
            weight = gap * held_ratio[prompt][None, :]
            rho = ratio[prompt][:, None]
            first = np.minimum(weight * rho, weight * np.clip(rho, 1 - EPSILON, 1 + EPSILON))
            pair = 0.5 * (first + first.T)
        else:
            weight = gap * held_ratio[prompt][:, None] * held_ratio[prompt][None, :]
            ell = np.log(ratio[prompt])[:, None] - np.log(ratio[prompt])[None, :]
            pair = 0.5 * np.minimum(weight * ell, weight * np.clip(ell, -EPSILON, EPSILON))
        total += (probability * pair).sum()
    return total / len(old)


@pytest.mark.parametrize("version", ["p3o_v1", "p3o_v2"])
def test_gradient_of_the_policy_table(version: str) -> None:
    whole = Enumeration(BEHAVIOUR, REFERENCE, REWARDS, 2)
    algorithm = make_algorithm(version, beta=BETA, epsilon=EPSILON)
    got = whole.expected_ascent(algorithm, MOVED).numpy()
    held, step = MOVED.numpy(), 1e-6
    numeric = np.zeros_like(held)
    for index in np.ndindex(held.shape):
        up, down = held.copy(), held.copy()
        up[index] += step
        down[index] -= step
        numeric[index] = (expected_objective(version, up, held) - expected_objective(version, down, held)) / (2 * step)
    np.testing.assert_allclose(got, numeric, atol=2e-9)
    assert np.abs(got).max() > 1e-2
    # Both the clip and the stop-gradients matter here.
    unclipped = whole.expected_ascent(make_algorithm(version, beta=BETA, epsilon=1e9), MOVED).numpy()
    assert np.abs(got - unclipped).max() > 1e-2
