"""The tokenizer loses nothing, and the model is small and depends on its seed alone."""

from pathlib import Path

import torch
from transformers import AutoTokenizer

from p3o.data.embedded import task
from p3o.data.embedded.language import MAX_POSITIONS, build_model, build_tokenizer


def _texts() -> list[str]:
    pairs = task.comparison_candidates(1000, seed=0)
    return [pair.prompt + response for pair in pairs for response in (pair.response_a, pair.response_b)]


def test_every_text_of_the_task_comes_back_as_it_was() -> None:
    tokenizer = build_tokenizer()
    for text in _texts():
        tokens = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens) == text


def test_prompt_and_completion_may_be_tokenised_apart() -> None:
    tokenizer = build_tokenizer()
    for row in task.demonstrations(300, seed=0):
        apart = tokenizer(row.prompt)["input_ids"] + tokenizer(row.completion)["input_ids"]
        assert apart == tokenizer(row.prompt + row.completion)["input_ids"]


def test_everything_that_writers_write_fits() -> None:
    tokenizer = build_tokenizer()
    responses = [row.completion for row in task.demonstrations(3000, seed=0)]
    assert max(len(tokenizer(response)["input_ids"]) for response in responses) + 1 <= task.MAX_RESPONSE_TOKENS
    assert max(len(tokenizer(text)["input_ids"]) for text in _texts()) + 1 <= MAX_POSITIONS


def test_special_tokens_are_three_different_ones() -> None:
    tokenizer = build_tokenizer()
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3
    assert tokenizer("zebra")["input_ids"] == [tokenizer.unk_token_id]
    ended = tokenizer(" Please don't.")["input_ids"] + [tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(ended, skip_special_tokens=True) == " Please don't."


def test_a_saved_tokenizer_loads_as_any_other(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = _texts()[0]
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.pad_token_id, loaded.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_the_model_is_tiny_and_drawn_from_its_seed() -> None:
    tokenizer = build_tokenizer()
    state = torch.get_rng_state()
    first, again, other = (build_model(tokenizer, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert 150_000 < first.num_parameters() < 250_000
    weights = [model.model.embed_tokens.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
