"""Sampling against transformers' own generate, and against the distribution that it claims to sample."""

from collections import Counter
from itertools import product

import pytest
import torch
from tests.chat_model import chat_tokenizer
from tests.models.conftest import EOS, FAMILIES, PAD, build
from transformers import PreTrainedModel

from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.errors import P3OError
from p3o.models.cache import PREFILL_TOKENS, PromptCache
from p3o.models.language import response_logprobs
from p3o.models.sampling import choose, sample_responses
from p3o.models.stopping import StopStrings, before_stop, split_stops
from p3o.models.tokens import PromptBatch, ResponseBatch, decode_responses, encode_prompts, pad_id, pad_left


def sample(model: PreTrainedModel, prompts: PromptBatch, seed: int = 0, **settings: object) -> ResponseBatch:
    defaults = {"responses_per_prompt": 2, "max_new_tokens": 9, "temperature": 1.0}
    return sample_responses(
        model, prompts, eos_id=EOS, pad_id=PAD, generator=torch.Generator().manual_seed(seed), **(defaults | settings)
    )


def test_greedy_equals_generate(model: PreTrainedModel, prompts: PromptBatch) -> None:
    greedy_equals_generate(model, prompts)


def test_greedy_equals_generate_with_windows_and_biases(other_model: PreTrainedModel, prompts: PromptBatch) -> None:
    greedy_equals_generate(other_model, prompts)


def test_greedy_equals_generate_with_a_prefill_by_length(
    model: PreTrainedModel, prompts: PromptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PREFILL_TOKENS, "cpu", 10)
    greedy_equals_generate(model, prompts)


def greedy_equals_generate(model: PreTrainedModel, prompts: PromptBatch) -> None:
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


@pytest.mark.parametrize("budget", [1, 10, 1000])
def test_the_prefill_sees_each_prompt_once(
    model: PreTrainedModel, prompts: PromptBatch, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever K is, and however the prompts are bucketed: every token once, and one token a row from then on."""
    monkeypatch.setitem(PREFILL_TOKENS, "cpu", budget)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append((kwargs["input_ids"], kwargs["attention_mask"])), with_kwargs=True
    )
    sample(model, prompts, responses_per_prompt=4, max_new_tokens=3)
    hook.remove()
    passes = {1: 3, 10: 2, 1000: 1}[budget]
    prefilled = [tokens[n][mask[n].bool()].tolist() for tokens, mask in seen[:passes] for n in range(len(tokens))]
    assert sorted(prefilled) == sorted(
        tokens[mask].tolist() for tokens, mask in zip(prompts.tokens, prompts.mask, strict=True)
    )
    assert all(tokens.shape[1] == 1 for tokens, _ in seen[passes:])
    if budget == 1:
        assert sum(tokens.numel() for tokens, _ in seen[:passes]) == int(prompts.mask.sum()), "and no padding"


def test_finished_rows_leave_the_batch(model: PreTrainedModel, prompts: PromptBatch) -> None:
    rows = []
    hook = model.register_forward_pre_hook(
        lambda _module, _args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    responses = sample(model, prompts, responses_per_prompt=8)
    hook.remove()
    lengths = responses.mask.sum(-1).flatten()
    assert rows[1:] == [int((lengths > t + 1).sum()) for t in range(int(lengths.max()) - 1)]
    assert len(set(rows[1:])) > 2, "the test needs rows that end"


def test_prefill_by_length_samples_the_same(
    model: PreTrainedModel, prompts: PromptBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sample(model, prompts, responses_per_prompt=3)
    monkeypatch.setitem(PREFILL_TOKENS, "cpu", 1)
    assert torch.equal(sample(model, prompts, responses_per_prompt=3).tokens, whole.tokens)


def test_the_cache_grows_in_place(prompts: PromptBatch) -> None:
    model = build(FAMILIES["llama"](), torch.float32)
    prefilled = PromptCache(model, prompts, responses=2, room=4)
    assert prefilled.preallocated
    (layer, _) = prefilled.cache.layers
    address, before = layer.keys.data_ptr(), layer.keys.clone()
    new = torch.ones(6, 4, 1, 8)
    keys, _ = layer.update(new, new)
    assert (keys.data_ptr(), keys.shape) == (address, (6, 4, 8, 8))
    assert torch.equal(keys[:, :, :7], before)
    assert torch.equal(keys[:, :, 7:], new)
    order = prefilled.keep(torch.tensor([True, False, True, False, True, True]))
    assert order.tolist() == [0, 4, 2, 5], "the last rows move into the gaps"
    assert layer.keys.data_ptr() == address
    assert torch.equal(layer.keys[:, :, :7], before[order])
    assert prefilled.cache.get_seq_length() == 8


def test_windows_keep_the_cache_of_transformers(other_model: PreTrainedModel, prompts: PromptBatch) -> None:
    plain = other_model.config.model_type in ("mpt", "bloom")
    assert PromptCache(other_model, prompts, responses=2, room=4).preallocated == plain


TOKENIZER = build_tokenizer()


def test_stop_strings_end_a_response() -> None:
    """Tokens to the one that completes the string are kept, the text ends before it, and other rows are what they were."""
    model = build_model(TOKENIZER, seed=0).eval()
    prompts = pad_left(encode_prompts(TOKENIZER, task.prompts(4, seed=0, split="train")), pad_id(TOKENIZER))
    settings = {"responses_per_prompt": 6, "max_new_tokens": 12, "eos_id": -1, "pad_id": pad_id(TOKENIZER)}

    def run(**stopping: object) -> ResponseBatch:
        return sample_responses(model, prompts, generator=torch.Generator().manual_seed(0), **settings, **stopping)

    free = run()
    texts = decode_responses(TOKENIZER, free)
    pairs = Counter(
        pair for group in texts for text in group for pair in {text[i : i + 2] for i in range(4, len(text))}
    )
    stop = sorted(pair for pair, count in pairs.items() if count == 6)[:2]
    stopped = run(stop=stop, tokenizer=TOKENIZER)
    cut = decode_responses(TOKENIZER, stopped, stop=stop)
    assert 0 < int(stopped.ended.sum()) < stopped.ended.numel(), "the test needs responses of both kinds"
    for g, k in product(range(4), range(6)):
        kept = stopped.tokens[g, k][stopped.mask[g, k]].tolist()
        assert kept == free.tokens[g, k, : len(kept)].tolist()
        before, whole = (TOKENIZER.decode(row, skip_special_tokens=True) for row in (kept[:-1], kept))
        assert not any(text in before for text in stop)
        assert any(text in whole for text in stop) == bool(stopped.ended[g, k])
        assert len(kept) == 12 or stopped.ended[g, k]
        expected = whole
        for text in stop:
            expected = expected.split(text)[0]
        assert cut[g][k] == expected


def test_a_stop_string_may_span_tokens_and_special_tokens_are_no_text() -> None:
    hello, special = TOKENIZER("Human: How", add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id
    assert len(hello) >= 3
    stopping = StopStrings(TOKENIZER, ["Human: H", "zzz"])
    prefixes = [hello[:n] for n in range(1, len(hello) + 1)]
    expected = ["Human: H" in TOKENIZER.decode(prefix) for prefix in prefixes]
    assert stopping.found(prefixes) == expected
    assert expected[-1]
    assert not expected[0]
    assert stopping.found([[hello[0], special, special, *hello[1:]]]) == [True]


@pytest.mark.parametrize("listed", [False, True], ids=["added", "added and listed among the special ones"])
def test_a_special_token_as_stop_string_ends_a_response_by_its_id(listed: bool) -> None:
    tokenizer = chat_tokenizer()
    if listed:
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_end|>"]})
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    stopping = StopStrings(tokenizer, ["<|im_end|>"])
    a = tokenizer("a", add_special_tokens=False)["input_ids"]
    assert stopping.found([[*a, end], [*a, start], a, [end, *a]]) == [True, False, False, False]
    ended = ResponseBatch(torch.tensor([[[*a, end]]]), torch.tensor([[[True, True]]]), torch.tensor([[True]]))
    assert decode_responses(tokenizer, ended, stop=["<|im_end|>"]) == [["a"]]


def test_special_tokens_among_the_stop_strings_are_told_apart() -> None:
    tokenizer = chat_tokenizer()
    end, eos = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    stop = ["<|im_end|>", "two", "<|endoftext|>", "<|im_end|>", "<|im"]
    assert split_stops(tokenizer, stop) == ((end, eos), ("two", "<|im"))
    assert split_stops(tokenizer, ()) == ((), ())
    with pytest.raises(P3OError, match="an empty stop string"):
        split_stops(tokenizer, [""])


def test_the_characters_of_a_special_token_are_not_the_token() -> None:
    """No server that is given its id would end a response there, and what is not ended is not cut either."""
    tokenizer = chat_tokenizer()
    spelled = [token for char in "a<|im_end|>b" for token in tokenizer(char, add_special_tokens=False)["input_ids"]]
    stopping = StopStrings(tokenizer, ["<|im_end|>", "b"])
    found = [stopping.found([spelled[: t + 1]])[0] for t in range(len(spelled))]
    assert found == [False] * 11 + [True]
    whole = torch.tensor([[spelled]])
    batch = ResponseBatch(whole, torch.ones_like(whole, dtype=torch.bool), torch.tensor([[True]]))
    assert decode_responses(tokenizer, batch, stop=["<|im_end|>", "b"]) == [["a<|im_end|>"]]


def test_stop_strings_that_cannot_be_used() -> None:
    with pytest.raises(P3OError, match="an empty stop string"):
        StopStrings(TOKENIZER, ["a", ""])
    with pytest.raises(ValueError, match="need the tokenizer"):
        sample(build(FAMILIES["llama"](), torch.float32), pad_left([[5]], PAD), stop=["a"])


@pytest.mark.parametrize(
    ("text", "expected"), [("one two three", "one "), ("three two", ""), ("none", "none"), ("", "")]
)
def test_before_stop(text: str, expected: str) -> None:
    assert before_stop(text, ["two", "three"]) == expected
    assert before_stop(text, []) == text


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


def test_some_rows_at_a_time_choose_what_all_at_once_do(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, uniforms = torch.randn(7, 40), torch.rand(7, dtype=torch.float64)
    whole = choose(logits, uniforms, 0.7)
    monkeypatch.setattr("p3o.models.sampling.LOGITS_BUDGET", 2 * 8 * 40)
    assert torch.equal(choose(logits, uniforms, 0.7), whole)
