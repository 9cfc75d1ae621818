"""KL of one pass against the whole logits, both softmaxes written out."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from p3o.evaluation.divergence import divergences
from p3o.functional.kl import kl_policy_reference_full_vocabulary, kl_policy_reference_k1
from p3o.functional.logprobs import token_logprobs
from p3o.models.language import response_logits
from p3o.models.tokens import GroupTokens, collate_groups


@pytest.mark.parametrize("budget", [8 * 40 * 5, 2**28])
def test_divergences_equal_the_estimators_on_whole_logits(budget: int) -> None:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
    )
    policy, reference = (AutoModelForCausalLM.from_config(config).double().eval() for _ in range(2))
    groups = [
        GroupTokens([5, 6, 7], [[8, 9, 10, 11], [12]], [True, True]),
        GroupTokens([13], [[14, 15], [16, 17, 18]], [True, True]),
        GroupTokens([19, 20], [[21], [22, 23]], [True, True]),
    ]
    kl, k1 = divergences(policy, reference, groups, temperature=0.7, fill=0, budget=budget)
    prompts, responses = collate_groups(groups, 0, time=4)
    with torch.no_grad():
        one, two = (response_logits(model, prompts, responses) for model in (policy, reference))
    expected = kl_policy_reference_full_vocabulary(one, two, responses.mask, temperature=0.7)
    torch.testing.assert_close(kl, expected, atol=1e-6, rtol=0)
    logprobs = [token_logprobs(logits, responses.tokens, temperature=0.7) for logits in (one, two)]
    torch.testing.assert_close(k1, kl_policy_reference_k1(*logprobs, responses.mask), atol=1e-6, rtol=0)
