"""What a step of RL is exact about: ratios, masks, groups, the reference. On a GPT-2 as the hub has it: dropout in its
configuration, learned positions, and no padding token but its end of sequence."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.families import FAMILIES
from torch import Tensor, nn
from transformers import GenerationConfig

from p3o.algorithms import Algorithm, make_algorithm
from p3o.errors import P3OError
from p3o.models.language import frozen_copy, load_language_model
from p3o.models.tokens import GroupTokens, end_id, pad_id
from p3o.training.averages import MetricsAverage
from p3o.training.online import OnlineConfig, OnlineTrainer
from p3o.training.passes import Passes
from p3o.types import Experience, LossOutput

PROMPTS = ["a", "b c d e f g h", "i j", "k l m n o", "p", "a b c", "d e f g", "h i"]
CPU = torch.device("cpu")


def worth(response: str) -> float:
    """A reward that knows the text alone, different for nearly all of them."""
    return float(sum(ord(letter) * (i + 1) for i, letter in enumerate(response)) % 101)


def scored(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [worth(response) for response in responses]


@pytest.fixture
def policy(tmp_path: Path) -> nn.Module:
    return load_language_model(FAMILIES["gpt2"].write(tmp_path), device=CPU)


def trainer(
    policy: nn.Module,
    algorithm: str | Algorithm = "p3o_v2",
    prompts: Sequence[str] = PROMPTS,
    **training: object,
) -> OnlineTrainer:
    defaults = {
        "steps": 4,
        "prompts_per_step": 4,
        "responses_per_prompt": 3,
        "max_new_tokens": 12,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "warmup_fraction": 0.0,
    }
    return OnlineTrainer(
        policy,
        frozen_copy(policy),
        FAMILIES["gpt2"].tokenizer(),
        make_algorithm(algorithm) if isinstance(algorithm, str) else algorithm,
        scored,
        prompts,
        OnlineConfig(**(defaults | training)),
        seed=5,
    )


def logprobs_by_hand(policy: nn.Module, group: GroupTokens, temperature: float) -> list[Tensor]:
    """log π of each response's tokens from the whole logits of the row alone, without any padding."""
    found = []
    for response in group.responses:
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([group.prompt + response])).logits[0].double() / temperature
        rows = torch.log_softmax(logits, -1)[len(group.prompt) - 1 : -1]
        found.append(rows.gather(-1, torch.tensor(response).unsqueeze(-1)).squeeze(-1))
    return found


# Ratios


def test_the_ratio_is_one_before_the_first_update_with_dropout_in_the_configuration(policy: nn.Module) -> None:
    """Rows of many lengths, a temperature, a model whose dropout would act in training mode (trl #454; trlx #107, #508)."""
    assert policy.config.resid_pdrop == policy.config.attn_pdrop == policy.config.embd_pdrop == 0.1
    run = trainer(policy, prompts_per_step=8, temperature=0.7, epochs=1, minibatches=1, micro_batch_prompts=3)
    metrics = run.step()
    assert len({len(row) for group in run.buffer.rows() for row in group.responses}) > 2, "responses of several lengths"
    assert (metrics["ratio_mean"], metrics["ratio_max"], metrics["half_squared_log_ratio"]) == (1.0, 1.0, 0.0)
    assert metrics["kl_k1"] == 0.0


def test_a_policy_in_training_mode_is_refused(policy: nn.Module) -> None:
    with pytest.raises(P3OError, match=r"the policy is in training mode, where dropout .* call policy\.eval\(\)"):
        trainer(policy.train())


def test_log_probs_are_taken_at_the_sampling_temperature_and_nothing_is_cut_off(policy: nn.Module) -> None:
    """What a generation_config.json asks for (top-k 1 here) would change what is sampled, and not what is computed."""
    plain = trainer(policy, temperature=0.7).sample()
    policy.generation_config = GenerationConfig(
        do_sample=True, temperature=0.1, top_k=1, top_p=0.1, repetition_penalty=9.0
    )
    rollout = trainer(policy, temperature=0.7).sample()
    assert rollout.groups == plain.groups
    assert any(len({tuple(row) for row in group.responses}) > 1 for group in rollout.groups), "top-k 1 gives one text"
    for g, group in enumerate(rollout.groups):
        for k, expected in enumerate(logprobs_by_hand(policy, group, 0.7)):
            got = rollout.experience.behaviour_logprobs[g, k, : len(expected)]
            torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=0)


def test_with_one_update_per_batch_clipping_compares_nothing(policy: nn.Module) -> None:
    """trl #3120, #3757: V1, V2 and unclipped PPG are then one algorithm. With more updates they are not."""

    def weights_after(name: str, epochs: int) -> Tensor:
        twin = frozen_copy(policy).requires_grad_(True)
        settings = {"beta": 0.1} if name == "ppg" else {"beta": 0.1, "epsilon": 0.05}
        run = trainer(
            twin, make_algorithm(name, **settings), epochs=epochs, minibatches=1, kl_stop=None, learning_rate=1e-2
        )
        run.step()
        return torch.cat([parameter.detach().flatten() for parameter in twin.parameters()])

    once, often = ([weights_after(name, epochs) for name in ("ppg", "p3o_v1", "p3o_v2")] for epochs in (1, 3))
    for one, other in pairwise(once):
        # Adam's first step is the sign of the gradient: only where that is nothing but rounding may they differ.
        assert ((one - other).abs() > 1e-4).float().mean() < 0.01
    for one, other in pairwise(often):
        assert ((one - other).abs() > 1e-4).float().mean() > 0.2


# Masks


def test_the_end_of_sequence_is_part_of_the_response_though_padding_is_the_same_token(policy: nn.Module) -> None:
    """trl #1623; transformers #48016: the mask comes from lengths; the end's own log-prob counts."""
    tokenizer = FAMILIES["gpt2"].tokenizer()
    end = end_id(tokenizer)
    assert pad_id(tokenizer) == end
    run = trainer(policy, prompts_per_step=8, responses_per_prompt=6)
    rollout = run.sample()
    ended = [row for group in rollout.groups for row in group.responses if row[-1] == end]
    assert 0 < len(ended) < 48, "the test needs responses of both kinds"
    assert all(row.count(end) == (row[-1] == end) for group in rollout.groups for row in group.responses)
    experience = rollout.experience
    for g, group in enumerate(rollout.groups):
        for k, expected in enumerate(logprobs_by_hand(policy, group, 1.0)):
            assert experience.response_mask[g, k].tolist() == [t < len(expected) for t in range(12)]
            total = experience.behaviour_logprobs[g, k][experience.response_mask[g, k]].sum()
            assert total.item() == pytest.approx(expected.sum().item(), abs=1e-4)


def test_responses_without_an_end_are_counted_and_pay(policy: nn.Module) -> None:
    free, paying = trainer(policy).sample(), trainer(policy, missing_eos_penalty=3.0).sample()
    end = end_id(FAMILIES["gpt2"].tokenizer())
    cut = torch.tensor([[row[-1] != end for row in group.responses] for group in free.groups])
    assert cut.any()
    assert not cut.all()
    assert free.ended == pytest.approx(1 - cut.float().mean().item())
    assert free.experience.rewards is not None
    torch.testing.assert_close(paying.experience.rewards, free.experience.rewards - 3.0 * cut.double())


@pytest.mark.parametrize("name", ["p3o_v1", "p3o_v2", "p3o_r", "grpo", "rloo"])
def test_an_empty_response_is_a_response_of_one_token(policy: nn.Module, name: str) -> None:
    """A policy that ends at once nearly always: its responses have an end and no text; nothing is divided by 0."""
    with torch.no_grad():
        policy.transformer.ln_f.weight *= 0.1
        policy.transformer.ln_f.bias.copy_(4.0 * policy.lm_head.weight[end_id(FAMILIES["gpt2"].tokenizer())])
    run = trainer(policy, name)
    metrics = run.step()
    empty = [row for group in run.buffer.rows() for row in group.responses if len(row) == 1]
    assert empty
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["updates"] > 0


# Groups


class Witness:
    """P3O, writing down what it is given."""

    def __init__(self) -> None:
        self.inner = make_algorithm("p3o_v2")
        self.seen: list[Experience] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    needs_critic, accepts_comparisons, prepares_from_logprobs = False, True, False
    averages_over = "groups"

    @property
    def config(self) -> object:
        return self.inner.config

    def prepare(self, experience: Experience) -> Experience:
        return self.inner.prepare(experience)

    def loss(self, policy_logprobs: Tensor, experience: Experience, values: Tensor | None = None) -> LossOutput:
        self.seen.append(experience)
        return self.inner.loss(policy_logprobs, experience, values)


def test_nothing_shuffles_a_response_out_of_its_group(policy: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs, minibatches, micro-batches and replay, all at once: wherever a group's tokens go, its own gaps, masks and
    log-probs go with them (TRL's shuffling left 1 pair of 8 together)."""
    witness = Witness()
    run = trainer(policy, witness, epochs=3, minibatches=2, replay_batches=2, micro_batch_prompts=2, kl_stop=None)
    tokenizer = run.tokenizer
    rows: list[list[GroupTokens]] = []
    sampled: dict[str, set[tuple[tuple[int, ...], ...]]] = {}
    one, sample = Passes.one, run.sample

    def recorded(self: Passes, model: nn.Module, groups: list[GroupTokens], time: int) -> Tensor:
        if torch.is_grad_enabled():
            rows.append(groups)
        return one(self, model, groups, time)

    def remembered() -> object:
        rollout = sample()
        for group in rollout.groups:
            sampled.setdefault(str(group.prompt), set()).add(tuple(map(tuple, group.responses)))
        return rollout

    monkeypatch.setattr(Passes, "one", recorded)
    monkeypatch.setattr(run, "sample", remembered)
    for _ in range(3):
        run.step()
    assert len(rows) == len(witness.seen) > 20
    for groups, experience in zip(rows, witness.seen, strict=True):
        assert len(groups) == experience.groups <= 2
        for g, group in enumerate(groups):
            assert tuple(map(tuple, group.responses)) in sampled[str(group.prompt)], "as it was sampled, in its order"
            rewards = [worth(tokenizer.decode(row, skip_special_tokens=True)) for row in group.responses]
            expected = [[first - second for second in rewards] for first in rewards]
            assert experience.reward_gaps[g].tolist() == expected
            assert experience.response_mask[g].sum(-1).tolist() == list(map(len, group.responses))
            # The reference never moves, so its log-probs can be computed again at any time.
            for k, reference in enumerate(logprobs_by_hand(run.rollouts.reference, group, 1.0)):
                got = experience.reference_logprobs[g, k, : len(reference)].double()
                torch.testing.assert_close(got, reference, atol=2e-5, rtol=0)


# The reference


def test_the_reference_is_the_policy_as_handed_over_not_a_reload(tmp_path: Path) -> None:
    """TRL loads the name again: a policy that was changed in memory then starts away from its own reference."""
    folder = FAMILIES["gpt2"].write(tmp_path)
    policy = load_language_model(folder, device=CPU)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    run = trainer(policy)
    first = run.sample().experience
    assert torch.equal(first.reference_logprobs, first.behaviour_logprobs)
    rollout = run.sample()
    reload = load_language_model(folder, device=CPU)
    distance = max(
        float((by_reload - by_policy).abs().max())
        for group in rollout.groups
        for by_reload, by_policy in zip(
            logprobs_by_hand(reload, group, 1.0), logprobs_by_hand(policy, group, 1.0), strict=True
        )
    )
    assert distance > 0.1, "the folder holds another model by now"
    before = [parameter.clone() for parameter in run.rollouts.reference.parameters()]
    run.step()
    assert all(torch.equal(old, new) for old, new in zip(before, run.rollouts.reference.parameters(), strict=True))


def test_the_kl_of_a_step_has_its_standard_error(policy: nn.Module) -> None:
    """An estimate that may be negative by chance needs it (trl #1161, #1857): s/√n of the prompts' means, in nats."""
    run = trainer(policy, learning_rate=1e-2)
    run.step()
    metrics = run.step()
    fresh = run.buffer.experience()
    means = [
        np.mean(
            [
                float((p - q).sum())
                for p, q in zip(
                    (row[m] for row, m in zip(behaviour, mask, strict=True)),
                    (row[m] for row, m in zip(reference, mask, strict=True)),
                    strict=True,
                )
            ]
        )
        for behaviour, reference, mask in zip(
            fresh.behaviour_logprobs, fresh.reference_logprobs, fresh.response_mask, strict=True
        )
    ]
    assert metrics["kl_k1"] == pytest.approx(np.mean(means), rel=1e-4)
    assert metrics["kl_k1_se"] == pytest.approx(np.std(means, ddof=1) / 2, rel=1e-4)
    assert metrics["kl_k1_se"] > 0
    assert "kl_k1_se" not in trainer(policy, prompts_per_step=1, minibatches=1).step(), "one prompt has no error"


# Told at the start


def test_a_prompt_longer_than_the_context_is_told_at_the_start(policy: nn.Module) -> None:
    """GPT-2 reads 48 tokens: the limit itself is fine, one more is told and no index out of range in the middle of a run."""
    fits = " ".join("a" * 36)
    assert trainer(policy, prompts=[*PROMPTS, fits], prompts_per_step=9).step()["updates"] > 0
    with pytest.raises(
        P3OError, match=r"prompt 9 \(.*\): 37 tokens and max_new_tokens 12 exceed the model's limit of 48"
    ):
        trainer(policy, prompts=[*PROMPTS, f"{fits} b"])


def test_micro_batches_weigh_by_their_share_and_not_each_the_same(policy: nn.Module) -> None:
    """Three groups in passes of two and one: the gradient is the mean over the groups (TRL's online DPO adds them up)."""
    gradients = []
    for size in (2, 1):
        run = trainer(policy, prompts_per_step=3, micro_batch_prompts=size)
        rollout = run.sample()
        policy.zero_grad()
        if size == 2:
            run.accumulate(rollout.experience, rollout.groups, torch.arange(3), MetricsAverage(), first=True)
        else:
            for g in range(3):  # one group at a time, divided by their number by hand
                run.accumulate(rollout.experience, rollout.groups, torch.tensor([g]), MetricsAverage(), first=True)
        gradients.append(
            torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]) / (1 if size == 2 else 3)
        )
    scale = gradients[0].abs().max()
    assert scale > 0
    torch.testing.assert_close(gradients[0] / scale, gradients[1] / scale, atol=2e-5, rtol=0)


@pytest.mark.parametrize("most", [1, 3])
def test_how_many_prompts_are_sampled_together_changes_no_response(policy: nn.Module, most: int) -> None:
    whole = trainer(policy, prompts_per_step=8).sample()
    parts = trainer(policy, prompts_per_step=8, sampling_prompts=most).sample()
    assert parts.groups == whole.groups
    assert len({len(response) for group in whole.groups for response in group.responses}) > 2, "of unequal length"
