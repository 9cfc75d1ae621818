"""The RL loop: exact ratios, exact shift invariance, micro-batches that change nothing, errors that name the cause."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from transformers import LlamaForCausalLM

from p3o.algorithms import ALGORITHMS, make_algorithm
from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.errors import P3OError
from p3o.feedback.simulated import prompt_offsets
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy
from p3o.training.averages import MetricsAverage
from p3o.training.online import OnlineConfig, OnlineTrainer
from p3o.training.passes import Passes
from p3o.training.scoring import Scorer

TOKENIZER = build_tokenizer()
PROMPTS = task.prompts(24, seed=0, split="train")


def the_count(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A reward that a random model can climb at once: how often the word "the" comes."""
    return [float(response.split().count("the")) for response in responses]


def varied(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A reward with a full float32 mantissa, as a reward model gives."""
    return [torch.tensor(sum(map(ord, response)) / 977.0).sin().item() for response in responses]


def trainer(
    name: str = "p3o_v2", scorer: Scorer = varied, *, settings: dict[str, object] | None = None, **training: object
) -> OnlineTrainer:
    """A trainer on a random model, with small settings."""
    algorithm = make_algorithm(name, **(settings or {}))
    policy = build_model(TOKENIZER, seed=0).eval()
    defaults = {
        "steps": 4,
        "prompts_per_step": 4,
        "responses_per_prompt": 3,
        "max_new_tokens": 8,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "warmup_fraction": 0.0,
    }
    critic = None
    if algorithm.needs_critic:
        critic = Critic(build_model(TOKENIZER, seed=0).model)
    config = OnlineConfig(**(defaults | training))
    return OnlineTrainer(
        policy, frozen_copy(policy), TOKENIZER, algorithm, scorer, PROMPTS, config, seed=5, critic=critic
    )


def weights(run: OnlineTrainer) -> torch.Tensor:
    """All weights of the policy in one vector."""
    assert isinstance(run.policy, LlamaForCausalLM)
    return torch.cat([parameter.detach().flatten() for parameter in run.policy.parameters()])


def test_every_end_of_the_model_ends_a_response_and_only_that_is_no_end_counts_as_cut() -> None:
    """A word is made a second end; then what was sampled without it is cut by hand."""
    free = trainer().sample().groups
    word = Counter(token for group in free for row in group.responses for token in row[:-1]).most_common(1)[0][0]
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": [tokenizer.convert_ids_to_tokens(word)]})
    run = trainer()
    run.policy.generation_config.eos_token_id = [tokenizer.eos_token_id, word]
    run.rollouts.sampler.tokenizer = tokenizer
    changed = 0
    for group, before in zip(run.sample().groups, free, strict=True):
        for k, row in enumerate(before.responses):
            changed += word in row
            assert group.responses[k] == (row[: row.index(word) + 1] if word in row else row)
            assert group.ended[k] == (word in row or before.ended[k])
    assert 0 < changed < len(free) * 3


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_steps_and_changes_the_policy(name: str) -> None:
    run = trainer(name)
    before = weights(run)
    metrics = run.step()
    assert metrics["updates"] >= 1
    assert all(value == value for value in metrics.values()), "no NaN"
    assert not torch.equal(before, weights(run))


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "online_dpo"])
def test_the_first_ratio_is_exactly_one(name: str) -> None:
    metrics = trainer(name, epochs=1, minibatches=1).step()
    assert metrics["ratio_max"] == 1.0
    assert metrics["half_squared_log_ratio"] == 0.0


@pytest.mark.parametrize("name", ["p3o_v1", "p3o_v2", "ppg", "online_dpo", "rebel"])
def test_offsets_on_the_prompts_change_no_bit_of_a_relative_run(name: str) -> None:
    def shifted(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        offsets = prompt_offsets(prompts, standard_deviation=10.0, seed=0)
        return [reward + offset for reward, offset in zip(varied(prompts, responses), offsets, strict=True)]

    plain, moved = trainer(name, settings={"beta": 0.1}), trainer(name, shifted, settings={"beta": 0.1})
    for _ in range(3):
        plain.step()
        moved.step()
    assert torch.equal(weights(plain), weights(moved))


def test_offsets_on_the_prompts_do_change_ppo() -> None:
    """The negative control of the test above."""

    def shifted(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        offsets = prompt_offsets(prompts, standard_deviation=10.0, seed=0)
        return [reward + offset for reward, offset in zip(varied(prompts, responses), offsets, strict=True)]

    plain, moved = trainer("ppo"), trainer("ppo", shifted)
    plain.step()
    moved.step()
    assert not torch.equal(weights(plain), weights(moved))


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_change_nothing(name: str, size: int) -> None:
    """Gradients of micro-batches are weighted by their share, of groups or of tokens (responses differ in length)."""
    whole, parts = trainer(name), trainer(name, micro_batch_prompts=size)
    gradients = []
    for run in (whole, parts):
        rollout = run.sample()
        experience = run.prepared(rollout.experience, rollout.groups)
        chosen = torch.arange(experience.groups)
        run.accumulate(experience, rollout.groups, chosen, MetricsAverage(), first=True)
        gradients.append(torch.cat([p.grad.flatten() for p in run.policy.parameters() if p.grad is not None]))
    scale = gradients[0].abs().max()
    torch.testing.assert_close(gradients[1] / scale, gradients[0] / scale, atol=2e-5, rtol=0)


def test_kl_stop_ends_the_updates_of_a_step() -> None:
    free = trainer(epochs=4, kl_stop=None, learning_rate=3e-2).step()
    stopped = trainer(epochs=4, kl_stop=1e-4, learning_rate=3e-2).step()
    assert (free["updates"], free["stopped_early"]) == (8, 0)
    assert stopped["stopped_early"] == 1
    assert stopped["updates"] == 1, "the first update moves the policy, the check before the second one ends the step"


def test_replay_trains_on_earlier_groups_too() -> None:
    run = trainer(replay_batches=2)
    sizes = []
    for _ in range(4):
        run.step()
        sizes.append(len(run.buffer))
    assert sizes == [4, 8, 12, 12]


def test_critic_warm_up_leaves_the_policy_alone() -> None:
    run = trainer("ppo", critic_learning_rate=1e-2)
    before = weights(run)
    first = run.warm_up_critic()
    for _ in range(5):
        last = run.warm_up_critic()
    assert torch.equal(before, weights(run))
    assert last["value_loss"] < first["value_loss"]


def test_the_critic_warms_up_at_its_peak_rate_wherever_the_policys_schedule_stands() -> None:
    """A ramp over half the steps has hardly begun when the critic is warm: to the critic it is as if there were none."""
    with_ramp, without = (trainer("ppo", critic_learning_rate=1e-2, warmup_fraction=share) for share in (0.5, 0.0))
    for _ in range(2):
        assert with_ramp.warm_up_critic() == without.warm_up_critic()
    assert with_ramp.critic is not None
    assert without.critic is not None
    for ours, theirs in zip(with_ramp.critic.parameters(), without.critic.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_reward_is_climbed() -> None:
    run = trainer(
        scorer=the_count,
        steps=25,
        prompts_per_step=8,
        responses_per_prompt=4,
        learning_rate=3e-3,
        settings={"beta": 0.01},
    )
    rewards = [run.step()["reward"] for _ in range(25)]
    assert sum(rewards[-5:]) > 3 * sum(rewards[:5]) + 1


def test_a_reward_that_is_not_finite_stops_the_run() -> None:
    run = trainer(scorer=lambda prompts, responses: [float("nan")] * len(responses))
    with pytest.raises(P3OError, match=r"reward of a response is nan; prompt ['\"]Human"):
        run.step()


def test_a_cut_response_pays_the_penalty() -> None:
    plain, paying = trainer(), trainer(missing_eos_penalty=3.0)
    first, second = plain.sample(), paying.sample()
    cut = torch.tensor([[not ended for ended in group.ended] for group in first.groups])
    assert cut.any()
    assert first.experience.rewards is not None
    assert second.experience.rewards is not None
    torch.testing.assert_close(second.experience.rewards, first.experience.rewards - 3.0 * cut.double())


def test_too_few_prompts_are_told_at_the_start() -> None:
    with pytest.raises(P3OError, match=r"rl\.training\.prompts_per_step: 99 prompts per step, but there are only 24"):
        trainer(prompts_per_step=99)


def test_more_minibatches_than_prompts_are_told_at_the_start() -> None:
    with pytest.raises(P3OError, match=r"rl\.training\.minibatches: a step of 4 prompts cannot be divided into 5"):
        trainer(minibatches=5)


def passes_of_a_step(run: OnlineTrainer, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many training and log-prob passes of policy and reference a step takes."""
    counts = {"policy": 0, "reference": 0}
    one = Passes.one

    def counted(self: Passes, model: torch.nn.Module, *arguments: object) -> torch.Tensor:
        counts["policy" if model is run.policy else "reference"] += 1
        return one(self, model, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Passes, "one", counted)
        run.step()
    return counts


@pytest.mark.parametrize("name", ["p3o_v2", "p3o_r", "grpo", "online_dpo", "rebel"])
def test_a_batch_with_one_update_needs_no_behaviour_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is exact: the run with the pass has the same weights and metrics, bit for bit."""
    once = {"epochs": 1, "minibatches": 1}
    skipping, computing = trainer(name, **once), trainer(name, **once)
    assert passes_of_a_step(skipping, monkeypatch) == {"policy": 1, "reference": 1}
    with monkeypatch.context() as patch:
        patch.setattr(OnlineTrainer, "one_pass", False)
        assert passes_of_a_step(computing, monkeypatch) == {"policy": 2, "reference": 1}
    metrics = skipping.step()
    monkeypatch.setattr(OnlineTrainer, "one_pass", False)
    assert metrics == computing.step()
    assert torch.equal(weights(skipping), weights(computing))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("rloo", {}),
        ("p3o_v2", {"epochs": 2}),
        ("p3o_v2", {"minibatches": 2}),
        ("p3o_v2", {"replay_batches": 1}),
    ],
)
def test_the_behaviour_pass_stays_where_it_is_needed(name: str, settings: dict[str, int]) -> None:
    run = trainer(name, **({"epochs": 1, "minibatches": 1} | settings))
    assert not run.one_pass
    assert run.sample().experience.behaviour_logprobs.isfinite().all()


def test_layouts_train_alike() -> None:
    """Gradients of a step are the same in all three but for the last bits."""
    gradients = []
    for layout in ("shared", "split", "padded"):
        run = trainer(layout=layout)
        assert run.verdict.layout.name == layout
        rollout = run.sample()
        experience = run.prepared(rollout.experience, rollout.groups)
        run.accumulate(experience, rollout.groups, torch.arange(4), MetricsAverage(), first=True)
        gradients.append(torch.cat([p.grad.flatten() for p in run.policy.parameters() if p.grad is not None]))
    scale = gradients[0].abs().max()
    for other in gradients[1:]:
        torch.testing.assert_close(other / scale, gradients[0] / scale, atol=2e-5, rtol=0)


def test_micro_batches_of_tokens_hold_whole_groups() -> None:
    run = trainer(micro_batch_tokens=80)
    rollout = run.sample()
    lengths = [run.passes.layout.length(group) for group in rollout.groups]
    batches = run.passes.micro_batches(rollout.groups)
    assert sorted(i for batch in batches for i in batch) == [0, 1, 2, 3]
    assert len(batches) > 1
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 80 for batch in batches)
    whole = trainer().passes.logprobs(run.policy, rollout.groups, 8)
    torch.testing.assert_close(run.passes.logprobs(run.policy, rollout.groups, 8), whole, atol=1e-5, rtol=0)
