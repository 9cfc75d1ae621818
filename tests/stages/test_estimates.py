"""Estimates against hand computation, and the parameters against the model itself."""

import pytest
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig

from p3o.stages.estimates import ModelShape, model_shape, online_step, supervised_step

SHAPE = ModelShape(parameters=1000, layers=2, hidden=10, key_value_width=4, vocabulary=50)


@pytest.mark.parametrize(
    ("config", "width"),
    [
        (
            LlamaConfig(
                vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2,
            ),
            16,
        ),
        (GPT2Config(vocab_size=40, n_embd=32, n_layer=3, n_head=4, n_positions=64), 32),
    ],
)  # fmt: skip
def test_the_shape_is_that_of_the_model(config: PretrainedConfig, width: int) -> None:
    parameters = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    assert model_shape(config) == ModelShape(parameters, layers=3, hidden=32, key_value_width=width, vocabulary=40)


def test_a_supervised_step() -> None:
    step = supervised_step(SHAPE, rows=8, rows_per_pass=2, row_tokens=5)
    assert (step.forward_tokens, step.tokens, step.sampled_tokens) == (10, 40, 0)
    # Weight, gradient and two moments, 4 bytes each.
    assert step.model_bytes == 1000 * 16
    # 10 tokens through 2 layers of 10 at 68 bytes; three float32 tensors of 50 logits for each token.
    assert step.pass_bytes == 10 * 2 * 10 * 68 + 10 * 50 * 12
    assert step.total_bytes == 16000 + 13600 + 6000
    assert supervised_step(SHAPE, rows=8, rows_per_pass=2, row_tokens=5, has_logits=False).pass_bytes == 13600


def test_an_online_step() -> None:
    shared = {"prompts": 6, "responses": 4, "epochs": 2, "prompt_tokens": 3, "response_tokens": 7}
    step = online_step(SHAPE, **shared, prompts_per_pass=3, has_critic=True, has_reward_model=True)
    assert (step.forward_tokens, step.tokens, step.sampled_tokens) == (3 * 4 * 10, 2 * 6 * 4 * 7, 6 * 4 * 7)
    # Policy and critic trained, reference and reward model frozen.
    assert step.model_bytes == 1000 * (16 + 16 + 4 + 4)
    assert step.pass_bytes == 120 * 2 * 10 * 68 + 3 * 4 * 7 * 50 * 12
    # One prompt a pass, but all of them are sampled at once: then the cache of keys and values is the larger part.
    wide = ModelShape(parameters=1000, layers=2, hidden=10, key_value_width=400, vocabulary=50)
    small = online_step(wide, **shared, prompts_per_pass=1, has_critic=False, has_reward_model=False)
    assert small.model_bytes == 1000 * (16 + 4)
    assert small.pass_bytes == 6 * 4 * 10 * 2 * 2 * 400 * 4
    # Sampled two versions ahead: two more copies, and the cache while the other tensors are there.
    ahead = online_step(wide, **shared, prompts_per_pass=1, has_critic=False, has_reward_model=False, max_staleness=2)
    assert ahead.model_bytes == 1000 * (16 + 4 + 2 * 4)
    assert ahead.pass_bytes == small.pass_bytes + 40 * 2 * 10 * 68 + 4 * 7 * 50 * 12
