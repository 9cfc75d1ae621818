"""Numbers that are none: each kind is recognised, named with its step and prompt, and handled as configured."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from p3o.algorithms import make_algorithm
from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.errors import P3OError
from p3o.functional.advantages import reward_gaps
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy
from p3o.models.tokens import encode_prompts, encode_responses, pad_id
from p3o.training.averages import MetricsAverage
from p3o.training.checkpoint import Checkpoints, State
from p3o.training.faults import MAX_SKIPPED_STEPS, NumericalError, Watch
from p3o.training.loop import fit, resume
from p3o.training.online import OnlineConfig, OnlineTrainer
from p3o.training.rollouts import tie_fraction
from p3o.training.scoring import ComparisonFeedback, Scorer
from p3o.training.sft import SFTConfig, SFTTrainer
from p3o.types import LossOutput

TOKENIZER = build_tokenizer()
PROMPTS = task.prompts(8, seed=0, split="train")


def letters(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Whole numbers that differ from response to response, whatever a random model writes."""
    return [float(sum(map(ord, response)) % 17) for response in responses]


def online(
    feedback: Scorer | ComparisonFeedback = letters, name: str = "p3o_v2", *, critic: bool = False, **training: object
) -> OnlineTrainer:
    policy = build_model(TOKENIZER, seed=0).eval()
    defaults = {"steps": 4, "prompts_per_step": 4, "max_new_tokens": 6, "learning_rate": 1e-3, "warmup_fraction": 0.0}
    return OnlineTrainer(
        policy,
        frozen_copy(policy),
        TOKENIZER,
        make_algorithm(name),
        feedback,
        PROMPTS,
        OnlineConfig(**(defaults | training)),
        seed=5,
        critic=Critic(build_model(TOKENIZER, seed=1).model) if critic else None,
    )


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_reward_that_is_no_number_stops_with_its_prompt(bad: float) -> None:
    def broken(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [bad if prompt == PROMPTS[0] else 1.0 for prompt in prompts]

    with pytest.raises(NumericalError, match=r"the reward of a response is .*prompt") as error:
        online(broken, prompts_per_step=8).step()
    assert PROMPTS[0][:20] in str(error.value)
    assert str(error.value).startswith("step 1: ")


def test_groups_with_such_rewards_are_left_out_whole_and_counted() -> None:
    """One response of each of two prompts has no reward: six prompts are learned from."""

    def broken(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        scores = letters(prompts, responses)
        first = [prompts.index(prompt) == i for i, prompt in enumerate(prompts)]  # one response of each bad group
        return [float("nan") if prompt in PROMPTS[:2] and first[i] else scores[i] for i, prompt in enumerate(prompts)]

    run = online(broken, prompts_per_step=8, on_fault="skip")
    told: list[str] = []
    run.rollouts.notice = told.append
    metrics = run.step()
    assert len(told) == 1
    assert told[0].startswith("step 1: left out 2 of 8 groups: the reward of a response is nan; prompt ")
    assert all(prompt[:20] in told[0] for prompt in PROMPTS[:2])
    assert metrics["dropped_groups"] == 2
    assert run.buffer.experience().groups == 6
    kept = {TOKENIZER.decode(group.prompt) for group in run.buffer.rows()}
    assert kept.isdisjoint({TOKENIZER.decode(ids) for ids in encode_prompts(TOKENIZER, PROMPTS[:2])})


def test_a_step_without_any_feedback_is_an_error_even_so() -> None:
    with pytest.raises(NumericalError, match="step 1: the feedback on every prompt"):
        online(lambda prompts, responses: [float("nan")] * len(responses), on_fault="skip").step()


def test_damaged_weights_are_told_with_step_and_prompt() -> None:
    run = online()
    run.step()
    with torch.no_grad():
        next(iter(run.policy.parameters())).fill_(float("nan"))
    with pytest.raises(NumericalError, match="step 2: a behaviour log-prob is not finite, prompt"):
        run.step()


class Poison(torch.autograd.Function):
    """Passes values on, and gradients that are no numbers back."""

    @staticmethod
    def forward(ctx: object, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * float("nan")


def poison(model: torch.nn.Module, times: int) -> None:
    """The next backward passes through this model give NaN gradients."""
    left = [times]

    def hook(module: torch.nn.Module, arguments: object, output: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and left[0] > 0:
            left[0] -= 1
            return Poison.apply(output)
        return output

    model.model.norm.register_forward_hook(hook)


def sft(**settings: object) -> SFTTrainer:
    prompts = encode_prompts(TOKENIZER, PROMPTS)
    rows = list(zip(prompts, encode_responses(TOKENIZER, ["An answer."] * len(PROMPTS)), strict=True))
    defaults = {"steps": 6, "batch_size": 4, "learning_rate": 1e-3}
    config = SFTConfig(**(defaults | settings))
    return SFTTrainer(build_model(TOKENIZER, seed=0).eval(), rows, config, fill=pad_id(TOKENIZER), seed=1)


def test_a_gradient_that_is_no_number_stops_before_it_reaches_the_weights() -> None:
    trainer = sft()
    before = weights(trainer.model)
    poison(trainer.model, 1)
    with pytest.raises(NumericalError, match=r"the gradient is not finite in step 1 \(loss \d"):
        fit(trainer)
    assert torch.equal(before, weights(trainer.model))


def test_skipped_updates_change_nothing_and_are_counted() -> None:
    trainer = sft(on_fault="skip")
    before = weights(trainer.model)
    poison(trainer.model, 2)
    assert trainer.step() == trainer.step() == {"skipped_updates": 1}
    assert torch.equal(before, weights(trainer.model))
    assert trainer.step()["loss"] > 0
    assert weights(trainer.model).isfinite().all()


def test_skipping_has_an_end() -> None:
    trainer = sft(on_fault="skip", steps=50)
    poison(trainer.model, 100)
    with pytest.raises(NumericalError, match=f"{MAX_SKIPPED_STEPS} steps in a row"):
        fit(trainer)
    assert trainer.done == MAX_SKIPPED_STEPS


def test_rolling_back_goes_on_from_the_checkpoint_in_another_order(tmp_path: Path) -> None:
    trainer = sft(on_fault="rollback")
    checkpoints = Checkpoints(tmp_path)
    seen: list[tuple[int, float]] = []
    told: list[tuple[str, int]] = []

    def tell(step: int, metrics: Mapping[str, int | float]) -> None:
        seen.append((step, metrics["loss"]))
        if len(seen) in (3, 5):
            poison(trainer.model, 1)

    def roll_back(fault: NumericalError, attempt: int) -> None:
        told.append((str(fault), attempt))
        state: State | None = resume(trainer, checkpoints)
        assert state is not None

    fit(trainer, tell, checkpoints=checkpoints, every=2, roll_back=roll_back)
    assert [step for step, _ in seen] == [1, 2, 3, 3, 4, 5, 6]
    assert seen[2][1] != seen[3][1], "other rows than the first time"
    assert [attempt for _, attempt in told] == [1, 2]
    assert trainer.done == 6


def test_a_watch_tells_each_sign_once_until_it_is_gone() -> None:
    watch = Watch()
    healthy = {"distinct": 0.9, "ended": 0.5, "log_ratio_clamped": 0.0}
    assert watch.notice(healthy) == []
    assert [text.split(":")[0] for text in watch.notice({"distinct": 0.05, "ended": 0.0})] == [
        "only 5% of the responses differ from each other",
        "no response ended within max_new_tokens",
    ]
    assert watch.notice({"distinct": 0.05, "ended": 0.0}) == []
    assert watch.notice(healthy) == []
    assert len(watch.notice({"distinct": 0.05, "log_ratio_clamped": 2.0})) == 2


def test_a_policy_of_one_answer_is_told_also_in_a_small_step() -> None:
    """Four responses in the step, all the same: a quarter of them differ, which is no small share."""
    run = online(prompts_per_step=2)
    with torch.no_grad():  # whatever the state, token 5 follows
        run.policy.lm_head.weight = torch.nn.Parameter(torch.zeros_like(run.policy.lm_head.weight))
        run.policy.lm_head.register_forward_hook(
            lambda m, a, logits: logits + 50.0 * (torch.arange(len(TOKENIZER)) == 5)
        )
    metrics = run.step()
    assert (metrics["distinct"], metrics["repeated_groups"], metrics["tie_fraction"]) == (0.25, 1.0, 1.0)
    signs = Watch().notice(metrics)
    assert any(sign.startswith("all responses to each prompt are identical") for sign in signs)
    assert any(sign.startswith("no response ended") for sign in signs)


def test_feedback_that_tells_nothing_apart_is_told() -> None:
    metrics = online(lambda prompts, responses: [1.0] * len(responses)).step()
    assert metrics["tie_fraction"] == 1.0
    assert [sign.split(":")[0] for sign in Watch().notice(metrics)] == [
        "the feedback rates all responses to each prompt as equal",
        "no response ended within max_new_tokens",
    ][: 1 + (metrics["ended"] == 0.0)]


def test_ties_are_counted_over_the_pairs_of_a_prompt() -> None:
    """Rewards 1, 1, 0 and 2, 3, 4: one of six pairs ties."""
    rewards = torch.tensor([[1.0, 1.0, 0.0], [2.0, 3.0, 4.0]], dtype=torch.float64)
    assert tie_fraction(reward_gaps(rewards)) == pytest.approx(1 / 6)


def prefer(prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
    """An antisymmetric preference: the sign of the difference."""
    left, right = letters(prompts, a), letters(prompts, b)
    return [float((x > y) - (x < y)) for x, y in zip(left, right, strict=True)]


@pytest.mark.parametrize("name", ["p3o_v1", "p3o_v2", "p3o_r", "ppg", "online_dpo", "rebel"])
def test_relative_algorithms_learn_from_comparisons_alone(name: str) -> None:
    run = online(ComparisonFeedback(prefer), name, steps=1, responses_per_prompt=3)
    before = weights(run.policy)
    metrics = run.step()
    assert "reward" not in metrics
    assert run.buffer.experience().rewards is None
    assert not torch.equal(before, weights(run.policy))


@pytest.mark.parametrize("name", ["rloo", "grpo", "reinforce"])
def test_the_others_refuse_and_say_why(name: str) -> None:
    with pytest.raises(P3OError, match="needs a reward for every response and cannot learn from comparisons alone"):
        online(ComparisonFeedback(prefer), name)


def test_comparisons_that_are_reward_differences_give_the_run_of_the_reward() -> None:
    """Bradley–Terry log-odds are reward gaps: the weights are the same to the bit."""

    def log_odds(prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> list[float]:
        return [x - y for x, y in zip(letters(prompts, a), letters(prompts, b), strict=True)]

    by_reward = online(missing_eos_penalty=0.5)
    by_comparison = online(ComparisonFeedback(log_odds, missing_eos_penalty=0.5))
    for run in (by_reward, by_comparison):
        run.step()
        run.step()
    assert torch.equal(weights(by_reward.policy), weights(by_comparison.policy))


def spoil_losses(run: OnlineTrainer, monkeypatch: pytest.MonkeyPatch, spoilt: Callable[[int], bool]) -> None:
    """The losses of these numbers are NaN, as from an overflow."""
    honest, number = run.algorithm.loss, count()

    def loss(*arguments: Any) -> LossOutput:
        output = honest(*arguments)
        return LossOutput(output.loss * float("nan"), output.metrics) if spoilt(next(number)) else output

    monkeypatch.setattr(run.algorithm, "loss", loss)


def test_a_loss_that_is_no_number_is_skipped_and_leaves_no_trace_in_the_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second of four updates of a step: the step tells of the other three."""
    run = online(minibatches=2, epochs=2, kl_stop=None, on_fault="skip", prompts_per_step=8)
    spoil_losses(run, monkeypatch, lambda number: number == 1)
    metrics = run.step()
    assert (metrics["updates"], metrics["skipped_updates"]) == (3, 1)
    assert all(math.isfinite(value) for value in metrics.values())
    assert weights(run.policy).isfinite().all()


def test_a_critics_warm_up_counts_what_it_skips_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    run = online(name="ppo", on_fault="skip", critic=True, critic_warmup_steps=30)
    spoil_losses(run, monkeypatch, lambda _: True)
    assert run.warm_up_critic() == {"updates": 0, "skipped_updates": run.config.epochs * run.config.minibatches}
    with pytest.raises(NumericalError, match=f"{MAX_SKIPPED_STEPS} steps in a row"):
        fit(run)


@pytest.mark.parametrize("name", ["p3o_v1", "p3o_v2", "p3o_r", "rloo", "grpo", "online_dpo"])
def test_a_masked_response_does_not_feed_its_partners_baseline(name: str) -> None:
    """One bad response of three: the two others of its prompt teach nothing, and the other prompts what they do alone."""

    def broken(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return [float("inf"), *letters(prompts, responses)[1:]]

    def gradient(feedback: Scorer, groups: slice) -> torch.Tensor:
        run = online(feedback, name, responses_per_prompt=3, on_fault="skip")
        rollout = run.sample()
        rows = rollout.groups[groups]
        chosen = torch.arange(rollout.experience.groups)[groups]
        experience = run.prepared(rollout.experience.select(chosen), rows)
        run.accumulate(experience, rows, torch.arange(len(rows)), MetricsAverage(), first=True)
        return torch.cat([p.grad.flatten() for p in run.policy.parameters() if p.grad is not None])

    without_the_first = gradient(letters, slice(1, None))
    assert torch.equal(gradient(broken, slice(None)), without_the_first)
    assert not torch.equal(gradient(letters, slice(None)), without_the_first), (
        "the first prompt would have taught something"
    )
