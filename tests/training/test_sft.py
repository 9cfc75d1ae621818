"""SFT: the loss by hand, response tokens only, micro-batches that change nothing."""

import pytest
import torch

from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.models.tokens import encode_prompts, encode_responses, pad_id
from p3o.training.loop import fit
from p3o.training.sft import SFTConfig, SFTTrainer, completion_logprobs, completion_loss

TOKENIZER = build_tokenizer()
FILL = pad_id(TOKENIZER)


def encoded(count: int) -> list[tuple[list[int], list[int]]]:
    rows = task.demonstrations(count, seed=0, split="train")
    prompts = encode_prompts(TOKENIZER, [row.prompt for row in rows])
    return list(zip(prompts, encode_responses(TOKENIZER, [row.completion for row in rows]), strict=True))


def test_the_loss_is_that_of_each_completion_token_alone() -> None:
    model, rows = build_model(TOKENIZER, seed=0).eval(), encoded(5)
    total, count = 0.0, 0
    for prompt, completion in rows:
        logprobs = torch.log_softmax(model(input_ids=torch.tensor([prompt + completion])).logits[0], -1)
        for t, token in enumerate(completion):
            total -= logprobs[len(prompt) + t - 1, token].item()
            count += 1
    assert completion_loss(model, rows, fill=FILL, batch_size=2) == pytest.approx(total / count, rel=1e-5)


def test_the_end_of_sequence_is_learned_and_the_prompt_is_not() -> None:
    rows = encoded(3)
    _, mask = completion_logprobs(build_model(TOKENIZER, seed=0), rows, fill=FILL)
    assert mask.sum(-1).tolist() == [len(completion) for _, completion in rows]
    assert all(completion[-1] == TOKENIZER.eos_token_id for _, completion in rows)


def test_micro_batches_change_nothing() -> None:
    weights = []
    for micro in (8, 3):
        model = build_model(TOKENIZER, seed=0).eval()
        config = SFTConfig(steps=3, batch_size=8, micro_batch_size=micro, learning_rate=1e-3)
        fit(SFTTrainer(model, encoded(16), config, fill=FILL, seed=1))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], atol=2e-4, rtol=0)


def test_training_lowers_the_held_out_loss() -> None:
    model, rows = build_model(TOKENIZER, seed=0).eval(), encoded(200)
    before = completion_loss(model, rows[:40], fill=FILL, batch_size=40)
    config = SFTConfig(steps=20, batch_size=16, learning_rate=4e-3)
    fit(SFTTrainer(model, rows[40:], config, fill=FILL, seed=1))
    assert completion_loss(model, rows[:40], fill=FILL, batch_size=40) < 0.7 * before
