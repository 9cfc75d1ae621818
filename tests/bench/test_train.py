"""The benchmark's loop: many policies in one program are many policies, and shifts hurt only those who look at them."""

from functools import partial

import pytest
import torch

from p3o.algorithms import ALGORITHMS, make_algorithm
from p3o.bench.bandit import ShiftedBandit
from p3o.bench.factorised import Factorised
from p3o.bench.train import Arm, Curves, Schedule, train

SHORT = Schedule(samples=256, batch=32, responses=2, epochs=2, minibatches=2, evaluations=4)
BANDIT = partial(ShiftedBandit, shift=0.0)


def run(
    name: str, schedule: Schedule = SHORT, *, shift: float = 0.0, seeds: tuple[int, ...] = (5,), rate: float = 0.1
) -> Curves:
    return train(partial(ShiftedBandit, shift=shift), [Arm(make_algorithm(name), 0.1)], (5,), schedule)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_of_the_package_runs_and_learns_something(name: str) -> None:
    curves = run(name, Schedule(samples=1280, batch=64, responses=4, evaluations=3))
    assert curves.kl[0, 0, 0].abs() < 1e-6
    assert curves.reward[0, 0, -1] > curves.reward[0, 0, 0]


def test_policies_in_one_program_do_not_see_each_other() -> None:
    algorithm, other = make_algorithm("p3o_v2", beta=0.1), make_algorithm("p3o_v2", beta=1.0)
    together = train(BANDIT, [Arm(algorithm, 0.1), Arm(algorithm, 0.02), Arm(other, 0.1)], (5, 6, 7), SHORT)
    alone = train(BANDIT, [Arm(algorithm, 0.02)], (6,), SHORT)
    assert torch.allclose(together.reward[1, 1], alone.reward[0, 0], atol=1e-6)
    assert torch.allclose(together.kl[1, 1], alone.kl[0, 0], atol=1e-6)
    assert not torch.allclose(together.kl[0, 1], alone.kl[0, 0], atol=1e-3)


@pytest.mark.parametrize("name", ["p3o_v1", "p3o_v2", "p3o_r", "online_dpo", "rebel"])
def test_relative_algorithms_do_not_see_shifts_at_all(name: str) -> None:
    replay = Schedule(samples=256, batch=32, responses=4, replay=3, minibatches=4, evaluations=4)
    assert torch.equal(run(name, replay).reward, run(name, replay, shift=100.0).reward)


def test_ppo_does() -> None:
    assert not torch.allclose(run("ppo").reward, run("ppo", shift=100.0).reward, atol=1e-2)


def test_the_kl_stop_ends_a_steps_updates() -> None:
    # One minibatch an epoch: of two, the second might hold other prompts, which a tabular policy has not moved on.
    schedule = Schedule(samples=256, batch=32, responses=2, epochs=4, minibatches=1)

    def updates(stop: float) -> float:
        arm = Arm(make_algorithm("p3o_v2"), 0.3, kl_stop=stop)
        return float(train(BANDIT, [arm], (5,), schedule).updates)

    assert updates(1e9) == schedule.batches * 4
    assert updates(0.0) == schedule.batches  # the first update of a step is at distance 0


def test_warm_up_moves_the_critic_alone() -> None:
    warm = Schedule(samples=256, batch=32, responses=2, warm_up=8, evaluations=2)
    curves = run("ppo", warm)
    assert torch.equal(curves.reward[..., 0], curves.reward[..., -1])
    assert curves.updates.item() == 0


def test_replay_uses_each_response_again() -> None:
    plain = Schedule(samples=256, batch=32, responses=2, epochs=1, minibatches=1)
    arm = Arm(make_algorithm("p3o_r"), 0.05)
    once = train(BANDIT, [arm], (5,), plain).responses_learned
    replayed = train(
        BANDIT, [arm], (5,), Schedule(samples=256, batch=32, responses=2, epochs=1, minibatches=1, replay=2)
    )
    assert once.item() == 256
    assert replayed.responses_learned.item() == 32 * (1 + 2 + 3 * 6)


def test_runs_repeat_bit_for_bit() -> None:
    arms = [Arm(make_algorithm("p3o_r"), 0.01)]
    build = partial(Factorised, length=8)
    schedule = Schedule(samples=256, batch=32, responses=4, replay=2, evaluations=3)
    assert torch.equal(train(build, arms, (5, 6), schedule).reward, train(build, arms, (5, 6), schedule).reward)
