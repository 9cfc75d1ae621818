"""Sampling against transformers' own generate, and against the distribution that it claims to sample."""

import pytest
import torch
from tests.models.conftest import EOS, PAD
from transformers import PreTrainedModel

from p3o.models.language import response_logprobs
from p3o.models.sampling import choose, sample_responses
from p3o.models.tokens import PromptBatch, ResponseBatch, pad_left


def sample(model: PreTrainedModel, prompts: PromptBatch, seed: int = 0, **settings: object) -> ResponseBatch:
    defaults = {"responses_per_prompt": 2, "max_new_tokens": 9, "temperature": 1.0}
    return sample_responses(
        model, prompts, eos_id=EOS, pad_id=PAD, generator=torch.Generator().manual_seed(seed), **(defaults | settings)
    )


def test_greedy_equals_generate(model: PreTrainedModel, prompts: PromptBatch) -> None:
    ours = sample(model, prompts, responses_per_prompt=1, temperature=0.0, max_new_tokens=12)
    theirs = model.generate(
        input_ids=prompts.tokens,
        attention_mask=prompts.mask.long(),
        do_sample=False,
        max_new_tokens=12,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )[:, prompts.tokens.shape[1] :]
    for row, mask, reference in zip(ours.tokens[:, 0], ours.mask[:, 0], theirs, strict=True):
        expected = reference.tolist()
        if EOS in expected:
            expected = expected[: expected.index(EOS) + 1]
        assert row[mask].tolist() == expected


def test_a_response_does_not_depend_on_the_rest_of_the_batch_finishing(
    model: PreTrainedModel, prompts: PromptBatch
) -> None:
    """Rows that end leave the batch; those that go on must be what they are when nothing ever ends."""
    generator = torch.Generator().manual_seed(3)
    never = sample_responses(
        model, prompts, responses_per_prompt=4, max_new_tokens=9, eos_id=-1, pad_id=PAD, generator=generator
    )
    ending = sample(model, prompts, seed=3, responses_per_prompt=4)
    assert ending.ended.any(), "the test needs rows that end"
    for tokens, mask, full in zip(
        ending.tokens.flatten(0, 1), ending.mask.flatten(0, 1), never.tokens.flatten(0, 1), strict=True
    ):
        length = int(mask.sum())
        assert tokens[:length].tolist() == full[:length].tolist()


def test_mask_ended_and_padding_agree(model: PreTrainedModel, prompts: PromptBatch) -> None:
    responses = sample(model, prompts, responses_per_prompt=8)
    for tokens, mask, ended in zip(
        responses.tokens.flatten(0, 1), responses.mask.flatten(0, 1), responses.ended.flatten(), strict=True
    ):
        kept = tokens[mask].tolist()
        assert EOS not in kept[:-1]
        assert (kept[-1] == EOS) == bool(ended)
        assert (tokens[~mask] == PAD).all()
        assert mask.tolist() == sorted(mask.tolist(), reverse=True), "padding is on the right"


def test_the_prompt_is_prefilled_once_for_all_its_responses(model: PreTrainedModel, prompts: PromptBatch) -> None:
    rows = []
    hook = model.register_forward_pre_hook(
        lambda _module, _args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sample(model, prompts, responses_per_prompt=4, max_new_tokens=3)
    hook.remove()
    assert rows[0] == tuple(prompts.tokens.shape)
    assert all(shape[1] == 1 for shape in rows[1:])


def test_choose_samples_the_softmax() -> None:
    """Frequencies of 40,000 draws within four standard errors of the probabilities, at a temperature of 0.7."""
    logits = torch.tensor([[2.0, -1.0, 0.5, -30.0, 1.0]])
    draws = 40_000
    uniforms = torch.rand(draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = choose(logits.expand(draws, -1), uniforms, 0.7)
    expected = torch.softmax(logits[0].double() / 0.7, -1)
    measured = torch.bincount(tokens, minlength=5) / draws
    error = (expected * (1 - expected) / draws).sqrt()
    assert ((measured - expected).abs() <= 4 * error + 1e-12).all()


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 1e-16])
def test_choose_never_picks_what_has_no_probability(uniform: float) -> None:
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]])
    assert choose(logits, torch.tensor([uniform], dtype=torch.float64), 1.0).item() in (1, 2)


def test_logprobs_are_those_of_each_response_alone(model: PreTrainedModel, prompts: PromptBatch) -> None:
    """Padding on the left, padding on the right and other rows leave a response's log-probs as they are."""
    responses = sample(model, prompts, responses_per_prompt=3)
    together = response_logprobs(model, prompts, responses, temperature=0.8)
    for g in range(3):
        prompt = prompts.tokens[g][prompts.mask[g]].tolist()
        for k in range(3):
            response = responses.tokens[g, k][responses.mask[g, k]].tolist()
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double() / 0.8
            alone = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
            expected = alone.gather(-1, torch.tensor(response).unsqueeze(-1)).squeeze(-1)
            # GPT-J attends in float32 whatever its dtype.
            tolerance = 1e-5 if model.config.model_type == "gptj" else 1e-12
            torch.testing.assert_close(together[g, k, : len(response)], expected, atol=tolerance, rtol=0)
            assert (together[g, k, len(response) :] == 0).all()


def test_one_token_responses(model: PreTrainedModel, prompts: PromptBatch) -> None:
    responses = sample(model, prompts, max_new_tokens=1)
    assert responses.tokens.shape == (3, 2, 1)
    assert response_logprobs(model, prompts, responses, temperature=1.0).shape == (3, 2, 1)


def test_pad_left_puts_the_prompt_at_the_end() -> None:
    batch = pad_left([[5, 6], [7]], PAD)
    assert batch.tokens.tolist() == [[5, 6], [PAD, 7]]
    assert batch.mask.tolist() == [[True, True], [False, True]]
