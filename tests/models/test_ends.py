"""Models with several ends: the end of a turn, the end of a text."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.chat_model import chat_tokenizer
from tests.models.conftest import EOS, PAD
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from p3o.data.chat import adopt_turn_end
from p3o.models.adapters import LoraSettings, add_adapter
from p3o.models.ends import Ends, describe_ends, end_ids, find_ends, load_generation_config
from p3o.models.sampling import sample_responses
from p3o.models.sharded_loading import empty_model
from p3o.models.tokens import PromptBatch, ResponseBatch, decode_responses, encode_prompts, pad_left

END_OF_TEXT, TURN, TURN_END = (
    chat_tokenizer().convert_tokens_to_ids(text) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
)


def chat_model(ends: int | list[int] | None) -> PreTrainedModel:
    """A random model for the tokenizer of one token a byte."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(chat_tokenizer()), **sizes, initializer_range=0.3)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = ends
    return model


def test_the_tokenizers_end_comes_first_and_the_models_others_follow() -> None:
    """As in Qwen: generation_config.json lists both, and the tokenizer has one of them."""
    tokenizer = chat_tokenizer(eos="<|im_end|>")
    for given in ([TURN_END, END_OF_TEXT], [END_OF_TEXT, TURN_END], END_OF_TEXT, [END_OF_TEXT, END_OF_TEXT]):
        assert end_ids(chat_model(given), tokenizer) == (TURN_END, END_OF_TEXT)
    assert end_ids(chat_model(None), tokenizer) == end_ids(torch.nn.Linear(1, 1), tokenizer) == (TURN_END,)


def test_a_turn_end_that_was_adopted_does_not_replace_the_models_end() -> None:
    """As in Gemma: the template ends turns with a token that the tokenizer does not call its end."""
    tokenizer = chat_tokenizer()
    assert adopt_turn_end(tokenizer) is not None
    assert end_ids(chat_model(END_OF_TEXT), tokenizer) == (TURN_END, END_OF_TEXT)


def test_an_ordinary_token_is_no_end() -> None:
    """LlamaConfig's default is id 2, a letter in many vocabularies."""
    tokenizer = chat_tokenizer()
    model = AutoModelForCausalLM.from_config(chat_model(None).config)
    assert model.generation_config.eos_token_id == 2
    ends = find_ends(tokenizer, model.generation_config)
    assert ends == Ends((END_OF_TEXT,), (2,))
    assert (
        describe_ends(ends, tokenizer) == "not at id 2 of the model's generation settings, which is not a special token"
    )
    both = find_ends(tokenizer, chat_model([END_OF_TEXT, TURN_END]).generation_config)
    assert describe_ends(both, tokenizer) == "a response ends at <|endoftext|> or <|im_end|>"
    assert describe_ends(Ends((END_OF_TEXT,), ()), tokenizer) == ""


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """As Qwen's: config.json names one end, generation_config.json both."""
    model = chat_model([TURN_END, END_OF_TEXT])
    model.config.eos_token_id = END_OF_TEXT
    model.save_pretrained(tmp_path / "model")
    chat_tokenizer(eos="<|im_end|>").save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_what_a_folder_says_is_what_its_model_has(folder: str, tmp_path: Path) -> None:
    """Whole, sharded from the start, with an adapter, and without a generation_config.json."""

    def ends(path: str) -> object:
        found = load_generation_config(path).eos_token_id
        assert found == AutoModelForCausalLM.from_pretrained(path).generation_config.eos_token_id
        empty = empty_model(AutoModelForCausalLM, path, what="it", dtype=torch.float32)
        assert empty is not None
        assert empty.generation_config.eos_token_id == found
        return found

    assert ends(folder) == [TURN_END, END_OF_TEXT]
    adapted = add_adapter(AutoModelForCausalLM.from_pretrained(folder), LoraSettings(rank=2), task="CAUSAL_LM", seed=0)
    tokenizer = chat_tokenizer(eos="<|im_end|>")
    assert end_ids(adapted, tokenizer) == (TURN_END, END_OF_TEXT)
    adapted.save_pretrained(tmp_path / "adapter")
    assert load_generation_config(str(tmp_path / "adapter")).eos_token_id == [TURN_END, END_OF_TEXT]
    (Path(folder) / "generation_config.json").unlink()
    assert ends(folder) == END_OF_TEXT


def test_a_response_ends_at_the_first_of_several_and_keeps_it() -> None:
    """Against the same random numbers without any end: each response is cut behind the first of its ends."""
    tokenizer, model = chat_tokenizer(eos="<|im_end|>"), chat_model(None)
    prompts = pad_left(encode_prompts(tokenizer, ["ab", "c", "def", "g"]), TURN)
    # Every row is to meet ends: they are a hundred times as likely as random weights make them.
    model.lm_head.register_forward_hook(
        lambda _module, _inputs, logits: logits.index_add(
            -1, torch.tensor([END_OF_TEXT, TURN_END]), torch.full((*logits.shape[:-1], 2), 3.0)
        )
    )

    def sampled(ends: int | tuple[int, ...], **stop: Any) -> ResponseBatch:
        return sample_responses(
            model,
            prompts,
            responses_per_prompt=8,
            max_new_tokens=12,
            eos_id=ends,
            pad_id=TURN,
            generator=torch.Generator().manual_seed(0),
            **stop,
        )

    free = sampled(-1)
    assert free.mask.all()
    assert not free.ended.any()
    both = sampled((TURN_END, END_OF_TEXT))
    kinds = set()
    for g in range(4):
        for k in range(8):
            row = free.tokens[g, k].tolist()
            cut = next((t for t, token in enumerate(row) if token in (TURN_END, END_OF_TEXT)), None)
            expected = row if cut is None else row[: cut + 1]
            assert both.tokens[g, k][both.mask[g, k]].tolist() == expected
            assert bool(both.ended[g, k]) == (cut is not None)
            kinds.add(None if cut is None else expected[-1])
    assert kinds == {None, TURN_END, END_OF_TEXT}, "the test needs each kind of end, and a cut response"
    texts = decode_responses(tokenizer, both)
    assert not any("<|" in text for group in texts for text in group)
    # A stop string that is a special token is an end like the others, without a look at the text.
    stopped = sampled(TURN_END, stop=["<|endoftext|>"], tokenizer=tokenizer)
    assert torch.equal(stopped.tokens, both.tokens)
    assert torch.equal(stopped.ended, both.ended)


def test_greedy_equals_generate_with_several_ends(model: PreTrainedModel, prompts: PromptBatch) -> None:
    """The second end is a token that greedy responses do contain."""
    width = prompts.tokens.shape[1]
    inputs = {
        "input_ids": prompts.tokens,
        "attention_mask": prompts.mask.long(),
        "do_sample": False,
        "pad_token_id": PAD,
    }
    other = int(model.generate(**inputs, max_new_tokens=12, eos_token_id=EOS)[0, width + 3])
    theirs = model.generate(**inputs, max_new_tokens=12, eos_token_id=[EOS, other])[:, width:].tolist()
    ours = sample_responses(
        model, prompts, responses_per_prompt=1, max_new_tokens=12, eos_id=[EOS, other], pad_id=PAD, temperature=0.0
    )
    assert ours.ended[0, 0]
    for row, mask, ended, expected in zip(ours.tokens[:, 0], ours.mask[:, 0], ours.ended[:, 0], theirs, strict=True):
        cut = next((t for t, token in enumerate(expected) if token in (EOS, other)), None)
        assert row[mask].tolist() == (expected if cut is None else expected[: cut + 1])
        assert bool(ended) == (cut is not None)
