"""SFT: the loss by hand, response tokens only, micro-batches that change nothing."""

from pathlib import Path

import pytest
import torch
from tests.models.families import FAMILIES

from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.errors import P3OError
from p3o.models.language import load_language_model
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


def test_a_demonstration_longer_than_the_context_is_told_at_the_start(tmp_path: Path) -> None:
    """GPT-2 reads 48 tokens; the next would be an index out of range in the middle of an epoch."""
    model = load_language_model(FAMILIES["gpt2"].write(tmp_path), device=torch.device("cpu"))
    config = SFTConfig(steps=1, batch_size=2)
    fits = ([3] * 40, [4] * 8)
    fit(SFTTrainer(model, [fits, fits], config, fill=0, seed=0))
    with pytest.raises(P3OError, match=r"demonstration 2: 40 \+ 9 tokens, and the model reads 48 at most"):
        SFTTrainer(model, [fits, ([3] * 40, [4] * 9)], config, fill=0, seed=0)


def test_no_rows_are_an_error_and_not_a_search_without_end() -> None:
    with pytest.raises(P3OError, match="there are no rows to train on"):
        SFTTrainer(build_model(TOKENIZER, seed=0).eval(), [], SFTConfig(steps=1), fill=FILL, seed=0)


def test_fewer_rows_than_a_batch_are_taken_again_and_never_no_step() -> None:
    """In Python nobody has compared the two sizes before: every row as often as any other, one step at least."""
    trainer = SFTTrainer(build_model(TOKENIZER, seed=0).eval(), encoded(3), SFTConfig(batch_size=6), fill=FILL, seed=0)
    assert trainer.total == 1
    assert sorted(trainer.order.next().tolist()) == [0, 0, 1, 1, 2, 2]


def test_gradients_of_micro_batches_are_weighted_by_their_tokens() -> None:
    """5 rows of different lengths in passes of 2, 2 and 1: the gradient of the mean over all tokens, taken at once."""
    model, rows = build_model(TOKENIZER, seed=0).eval(), encoded(5)
    assert len({len(completion) for _, completion in rows}) > 1
    logprobs, mask = completion_logprobs(model, rows, fill=FILL)
    expected = torch.autograd.grad(-logprobs[mask].mean(), list(model.parameters()))
    trainer = SFTTrainer(model, rows, SFTConfig(steps=1, batch_size=5, micro_batch_size=2), fill=FILL, seed=0)
    found: list[torch.Tensor] = []

    def taken(where: object) -> bool:
        found.extend(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None)
        return True

    trainer.optimisation.update = taken
    trainer.step()
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, atol=2e-5 * float(want.abs().max()) + 1e-8, rtol=0)
