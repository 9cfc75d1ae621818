"""The evaluation: KL against enumeration, best of n by the reward, the same numbers every time."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaForCausalLM

from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.errors import P3OError
from p3o.evaluation.policy import EvaluationConfig, Evaluator, mean_and_error
from p3o.evaluation.winrate import wilson_interval

TOKENIZER = build_tokenizer()
PROMPTS = task.prompts(6, seed=0, split="heldout")


def length(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [float(len(response)) for response in responses]


def evaluator(reference: LlamaForCausalLM, *, prompts: Sequence[str] = PROMPTS, max_new_tokens: int = 6) -> Evaluator:
    return Evaluator(
        TOKENIZER,
        reference,
        prompts,
        length,
        gold=lambda prompts, responses: [-value for value in length(prompts, responses)],
        max_new_tokens=max_new_tokens,
        temperature=0.7,
        missing_eos_penalty=2.0,
        batch_size=4,
        seed=3,
    )


def test_the_kl_of_a_policy_to_itself_is_exactly_zero() -> None:
    model = build_model(TOKENIZER, seed=0).eval()
    result = evaluator(model).sampled(model)
    assert result.kl == [0.0] * 6
    assert result.kl_k1 == [0.0] * 6


def test_the_kl_of_one_token_is_that_of_the_two_distributions() -> None:
    policy, reference = build_model(TOKENIZER, seed=1).eval(), build_model(TOKENIZER, seed=2).eval()
    result = evaluator(reference, max_new_tokens=1).sampled(policy)
    assert result.kl is not None
    for prompt, kl in zip(PROMPTS, result.kl, strict=True):
        ids = torch.tensor([TOKENIZER(prompt)["input_ids"]])
        p, q = (
            torch.softmax(model(input_ids=ids).logits[0, -1].detach().double() / 0.7, -1)
            for model in (policy, reference)
        )
        assert kl == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-4)


def test_k1_and_the_full_vocabulary_estimate_the_same_kl() -> None:
    policy, reference = build_model(TOKENIZER, seed=1).eval(), build_model(TOKENIZER, seed=2).eval()
    prompts = task.prompts(300, seed=1, split="heldout")
    row = evaluator(reference, prompts=prompts, max_new_tokens=4).sampled(policy).summary()
    assert abs(row["kl"] - row["kl_k1"]) < 4 * row["kl_k1_se"]
    assert row["kl_se"] < row["kl_k1_se"], "the full-vocabulary estimate is the quieter one"


def test_best_of_n_is_best_by_the_reward_and_not_by_the_gold() -> None:
    model = build_model(TOKENIZER, seed=0).eval()
    run = evaluator(model)
    one, eight = run.best_of(model, 1), run.best_of(model, 8)
    assert sum(eight.reward) > sum(one.reward)
    assert eight.gold is not None
    assert one.gold is not None
    assert sum(eight.gold) < sum(one.gold)


def test_cut_responses_pay_the_penalty_in_both_rewards() -> None:
    model = build_model(TOKENIZER, seed=0).eval()
    result = evaluator(model).sampled(model)
    assert not any(result.ended), "a random model does not end within six tokens"
    assert result.gold is not None
    for text, reward, gold in zip(result.responses, result.reward, result.gold, strict=True):
        assert reward == len(text) - 2.0
        assert gold == -len(text) - 2.0


def test_mean_and_error_by_hand() -> None:
    mean, error = mean_and_error([1.0, 2.0, 6.0])
    assert mean == 3.0
    assert error == pytest.approx((7.0 / 3) ** 0.5)
    for few in ([], [1.0]):
        with pytest.raises(ValueError, match=f"needs two values, got {len(few)}"):
            mean_and_error(few)


def test_a_policy_without_probabilities_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(TOKENIZER, seed=0).eval()
    nothing = torch.full((4, 1), torch.nan, dtype=torch.float64)
    monkeypatch.setattr("p3o.evaluation.policy.divergences", lambda _p, _r, groups, **_: (nothing[: len(groups)],) * 2)
    with pytest.raises(P3OError, match="fewer than two responses have a finite KL"):
        evaluator(model).sampled(model)


def test_the_reported_kl_is_a_sum_over_the_response_never_negative_and_has_its_error() -> None:
    """Single log-ratios (k1) are negative now and then; the full-vocabulary estimate never is (trl #1161, #1857)."""
    policy, reference = build_model(TOKENIZER, seed=1).eval(), build_model(TOKENIZER, seed=2).eval()
    prompts = task.prompts(40, seed=1, split="heldout")
    result, longer = (evaluator(reference, prompts=prompts, max_new_tokens=n).sampled(policy) for n in (1, 12))
    assert result.kl is not None
    assert result.kl_k1 is not None
    assert longer.kl is not None
    assert min(result.kl) >= 0.0 > min(result.kl_k1)
    assert sum(longer.kl) > 4 * sum(result.kl), "nats per response, and not per token"
    row = result.summary()
    assert row["kl"] == pytest.approx(np.mean(result.kl))
    assert row["kl_se"] == pytest.approx(np.std(result.kl, ddof=1) / np.sqrt(40))


def test_an_evaluation_takes_500_prompts_or_more_where_the_data_allow() -> None:
    """At n = 500 the 95 % interval of a win rate is at most 9 points wide (Wilson); at 256 it is 12."""
    n = EvaluationConfig().prompts
    assert n >= 500
    low, high = wilson_interval(n // 2, n)
    assert high - low < 0.09


@pytest.mark.parametrize("best_of", [(0,), (4, -1)])
def test_the_best_of_none_is_refused(best_of: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        EvaluationConfig(best_of=best_of)
