"""SFT: the loss by hand, response tokens only, micro-batches that change nothing."""

from pathlib import Path

import pytest
import torch
from tests.models.families import FAMILIES
from torch import nn

from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.errors import P3OError
from p3o.models.adapters import LoraSettings, add_adapter
from p3o.models.language import load_language_model
from p3o.models.layouts import Padded
from p3o.models.recomputation import enable_gradient_checkpointing
from p3o.models.selection import LOGITS_BUDGET
from p3o.models.tokens import encode_prompts, encode_responses, pad_id
from p3o.training.loop import fit
from p3o.training.sft import SFTConfig, SFTTrainer, completion_logprobs, completion_loss

TOKENIZER = build_tokenizer()
FILL = pad_id(TOKENIZER)
VOCABULARY = len(TOKENIZER)


def encoded(count: int) -> list[tuple[list[int], list[int]]]:
    rows = task.demonstrations(count, seed=0, split="train")
    prompts = encode_prompts(TOKENIZER, [row.prompt for row in rows])
    return list(zip(prompts, encode_responses(TOKENIZER, [row.completion for row in rows]), strict=True))


def plain_loss(model: nn.Module, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Nats per completion token, by transformers and torch alone: row by row, no padding, the logits of every position."""
    logprobs = []
    for prompt, completion in rows:
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        logprobs.append(torch.log_softmax(logits, -1).gather(-1, torch.tensor(completion)[:, None]))
    return -torch.cat(logprobs).mean()


def some_rows(vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """Of unequal length, one completion of a single token."""
    draw = torch.Generator().manual_seed(3)
    sizes = [(4, 6), (7, 1), (1, 9), (3, 3)]
    ids = [torch.randint(0, vocabulary, (sum(size),), generator=draw).tolist() for size in sizes]
    return [(row[:start], row[start:]) for row, (start, _) in zip(ids, sizes, strict=True)]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("way", ["whole", "lora", "recomputed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_are_those_of_the_plain_form(tmp_path: Path, family: str, way: str) -> None:
    """Whole models, adapters and recomputed layers, with all predicted logits at once and with one row of them at a time."""
    model = load_language_model(FAMILIES[family].write(tmp_path), device=torch.device("cpu"))
    rows = some_rows(model.config.vocab_size)
    if way == "lora":
        model = add_adapter(model, LoraSettings(rank=2), task="CAUSAL_LM", seed=1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # starts at zero, where nothing reaches lora_A
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = plain_loss(model, rows)
    expected = torch.autograd.grad(loss, learning)
    # Some are 0 but for rounding: a softmax does not see what the bias of its keys adds to all of them.
    largest = max(float(want.abs().max()) for want in expected)
    if way == "recomputed":
        enable_gradient_checkpointing(model)
    chosen = SFTTrainer(model, rows, SFTConfig(steps=1, batch_size=4), fill=0, seed=0).layout
    assert (chosen.name, chosen.budget) == ("padded", LOGITS_BUDGET), "so chunks are right for this model"
    for budget in (None, 1):
        found = -completion_logprobs(model, rows, fill=0, layout=Padded(budget)).sum() / 19
        assert found.item() == pytest.approx(loss.item(), rel=1e-5)
        for got, want in zip(torch.autograd.grad(found, learning), expected, strict=True):
            torch.testing.assert_close(got, want, atol=2e-5 * float(want.abs().max()) + 1e-6 * largest, rtol=0)
        assert completion_loss(model, rows, fill=0, batch_size=3, layout=Padded(budget)) == pytest.approx(
            loss.item(), rel=1e-5
        )


@pytest.mark.parametrize(("budget", "chunks"), [(None, [19]), (5 * 4 * VOCABULARY, [5, 5, 5, 4])])
def test_the_head_reads_the_predicting_positions_only(budget: int | None, chunks: list[int]) -> None:
    model = build_model(TOKENIZER, seed=0).eval()
    read: list[int] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _module, _arguments, logits: read.append(logits.shape[:-1].numel()))
    with torch.no_grad():
        completion_logprobs(model, some_rows(VOCABULARY), fill=FILL, layout=Padded(budget))
    assert [count for count in read if count] == chunks


def test_a_prompt_without_tokens_is_told() -> None:
    with pytest.raises(P3OError, match="demonstration 2: its prompt has no tokens"):
        SFTTrainer(
            build_model(TOKENIZER, seed=0).eval(), [([3], [4]), ([], [4])], SFTConfig(steps=1), fill=FILL, seed=0
        )


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
    logprobs = completion_logprobs(build_model(TOKENIZER, seed=0), rows, fill=FILL)
    assert (logprobs < 0).sum(-1).tolist() == [len(completion) for _, completion in rows]
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
    with pytest.raises(P3OError, match=r"demonstration 2: 40 \+ 9 tokens are more than the model can read .48."):
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
    expected = torch.autograd.grad(plain_loss(model, rows), list(model.parameters()))
    trainer = SFTTrainer(model, rows, SFTConfig(steps=1, batch_size=5, micro_batch_size=2), fill=FILL, seed=0)
    found: list[torch.Tensor] = []

    def taken(where: object) -> bool:
        found.extend(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None)
        return True

    trainer.optimisation.update = taken
    trainer.step()
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, atol=2e-5 * float(want.abs().max()) + 1e-8, rtol=0)
