"""The loop: a training that was stopped at any step and resumed is the training that was never stopped."""

import os
import random
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.feedback.test_reward_model import reward_model

from p3o.algorithms import ALGORITHMS, make_algorithm
from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy
from p3o.models.tokens import encode_prompts, encode_responses, pad_id
from p3o.stopping import Stopped, stop_if_asked
from p3o.training.checkpoint import Checkpoints, State
from p3o.training.loop import Trainer, fit, random_state, restore_random_state, resume
from p3o.training.online import OnlineConfig, OnlineTrainer
from p3o.training.reward_model import RewardTrainer, RewardTrainingConfig
from p3o.training.sft import SFTConfig, SFTTrainer

TOKENIZER = build_tokenizer()
DEMONSTRATIONS = task.demonstrations(12, seed=0, split="train")
PROMPTS = [row.prompt for row in DEMONSTRATIONS]


def moody(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A user's reward that draws from global generators; not from Python's own, from which beartype draws here, too."""
    noise = np.random.rand() + torch.rand(()).item()
    return [noise * len(response) + index for index, response in enumerate(responses)]


def sft_trainer() -> SFTTrainer:
    prompts = encode_prompts(TOKENIZER, PROMPTS)
    rows = list(zip(prompts, encode_responses(TOKENIZER, [row.completion for row in DEMONSTRATIONS]), strict=True))
    config = SFTConfig(steps=7, batch_size=5, micro_batch_size=3, learning_rate=1e-3)
    return SFTTrainer(build_model(TOKENIZER, seed=0).eval(), rows, config, fill=pad_id(TOKENIZER), seed=1)


def reward_trainer() -> RewardTrainer:
    pairs = [(row.prompt, row.completion, "no") for row in DEMONSTRATIONS]
    config = RewardTrainingConfig(steps=7, batch_size=5, learning_rate=1e-3)
    return RewardTrainer(reward_model(), pairs, config, seed=1)


def online_trainer(name: str) -> OnlineTrainer:
    algorithm = make_algorithm(name)
    policy = build_model(TOKENIZER, seed=0).eval()
    config = OnlineConfig(
        steps=4,
        critic_warmup_steps=1,
        prompts_per_step=3,
        responses_per_prompt=2,
        max_new_tokens=4,
        learning_rate=2e-3,
        replay_batches=2,
        kl_target=0.5 if name == "p3o_v2" else None,
    )
    critic = Critic(build_model(TOKENIZER, seed=0).model) if algorithm.needs_critic else None
    return OnlineTrainer(
        policy, frozen_copy(policy), TOKENIZER, algorithm, moody, PROMPTS, config, seed=5, critic=critic
    )


MAKERS: dict[str, Callable[[], Trainer]] = {
    "sft": sft_trainer,
    "reward": reward_trainer,
    **{name: lambda name=name: online_trainer(name) for name in ALGORITHMS},  # type: ignore[misc]
}


def flat(state: object, path: str = "") -> dict[str, object]:
    """Every leaf of a state by its path, tensors as lists."""
    if isinstance(state, torch.Tensor):
        return {path: state.tolist()}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else None
    if items is None:
        return {path: state}
    return {key: value for name, item in items for key, value in flat(item, f"{path}/{name}").items()}


@pytest.mark.parametrize("name", MAKERS)
def test_stopped_and_resumed_equals_never_stopped(name: str, tmp_path: Path) -> None:
    whole: list[Mapping[str, int | float]] = []
    np.random.seed(1)
    torch.manual_seed(1)
    uninterrupted = MAKERS[name]()
    fit(uninterrupted, lambda step, metrics: whole.append(dict(metrics)))  # type: ignore[func-returns-value]

    parts: list[Mapping[str, int | float]] = []
    np.random.seed(1)
    torch.manual_seed(1)
    checkpoints = Checkpoints(tmp_path / name)
    for stop_after in (2, 3, None):  # killed twice; every attempt is a new trainer
        trainer = MAKERS[name]()
        if stop_after != 2:
            np.random.seed(99)
            torch.manual_seed(99)
            assert resume(trainer, checkpoints) == {"rows": len(parts)}

        def tell(step: int, metrics: Mapping[str, int | float], last: int | None = stop_after) -> None:
            parts.append(dict(metrics))
            if step == last:
                os.kill(os.getpid(), signal.SIGTERM)

        extra: Callable[[], State] = lambda: {"rows": len(parts)}  # noqa: E731
        if stop_after is None:
            fit(trainer, tell, checkpoints=checkpoints, extra_state=extra)
        else:
            with pytest.raises(Stopped, match=f"SIGTERM after step {stop_after}; everything is saved"):
                fit(trainer, tell, checkpoints=checkpoints, extra_state=extra)
            assert trainer.done == stop_after
    assert parts == whole
    assert flat(trainer.state_dict()) == flat(uninterrupted.state_dict())


class Counter:
    """A trainer that counts."""

    total = 10

    def __init__(self) -> None:
        self.done = 0

    def step(self) -> dict[str, int | float]:
        self.done += 1
        return {"done": self.done}

    def divert(self, attempt: int) -> None:
        raise AssertionError("nothing fails here")

    def state_dict(self) -> State:
        return {"done": self.done}

    def load_state_dict(self, state: State) -> None:
        self.done = state["done"]


def test_checkpoints_come_at_their_interval_and_a_callback_can_end_it(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    checkpoints = Checkpoints(tmp_path, keep=2)

    def watch(step: int, metrics: Mapping[str, int | float]) -> bool:
        seen.append([path.name.lstrip("0") for path in checkpoints.saved()])
        return step == 9

    trainer = Counter()
    fit(trainer, watch, checkpoints=checkpoints, every=3)
    assert trainer.done == 9
    # After step n the callback sees what was saved before it.
    assert seen == [[], [], [], ["3"], ["3"], ["3"], ["6", "3"], ["6", "3"], ["6", "3"]]


def test_a_callback_that_stops_loses_nothing(tmp_path: Path) -> None:
    """As one does that waits for people when a signal comes."""
    checkpoints = Checkpoints(tmp_path)

    def waiting(step: int, metrics: Mapping[str, int | float]) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            stop_if_asked("somebody was waited for")
            raise AssertionError("it was asked")

    stop_if_asked("nobody has asked")
    with pytest.raises(
        Stopped, match=r"^stopped by SIGTERM while somebody was waited for; everything is saved"
    ) as stopped:
        fit(Counter(), waiting, checkpoints=checkpoints)
    assert stopped.value.signal == signal.SIGTERM
    trainer = Counter()
    resume(trainer, checkpoints)
    assert trainer.done == 4
    stop_if_asked("the block that noted it is over")


@pytest.mark.usefixtures("interruptible")
def test_an_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trainer = Counter()
    fit(trainer, lambda step, metrics: os.kill(os.getpid(), signal.SIGINT), checkpoints=Checkpoints(tmp_path))
    assert trainer.done == trainer.total


@pytest.mark.usefixtures("interruptible")
def test_without_checkpoints_signals_are_left_alone() -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(Counter(), lambda step, metrics: os.kill(os.getpid(), signal.SIGINT))


@pytest.mark.usefixtures("interruptible")
def test_the_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    def impatient(step: int, metrics: Mapping[str, int | float]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(Counter(), impatient, checkpoints=Checkpoints(tmp_path))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_global_random_numbers_come_back() -> None:
    def draw() -> tuple[float, float, float, float]:
        return random.gauss(0, 1), random.random(), float(np.random.randn()), torch.rand(()).item()

    draw()
    state = random_state()
    first = draw()
    draw()
    restore_random_state(state)
    assert draw() == first
