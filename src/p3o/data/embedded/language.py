"""A tokenizer for exactly the embedded world, and a tiny Llama to speak in it.

A token is a word or a punctuation mark together with the white space before it (" Clara", ",", "\n\nAssistant"), so decoding is
plain concatenation and gives back the text as it was, capitals and line breaks included. Every word of the grammar is in the
vocabulary; any other text becomes ``<unk>``. There is no beginning-of-sequence token: every prompt begins with "Human".
"""

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from p3o.data.embedded.answers import SENTENCES, render_answer
from p3o.data.embedded.grammar import all_requests, render_prompt

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"

_TOKEN = r"\s*(?:[A-Za-z]+(?:'[a-z]+)?|[^A-Za-z\s])|\s+"

MAX_POSITIONS = 128


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer of the embedded task; ``save_pretrained`` writes an ordinary tokenizer folder."""
    splitter = pre_tokenizers.Split(Regex(_TOKEN), behavior="isolated")
    words = dict.fromkeys(
        word
        for text in [*(render_prompt(request) for request in all_requests()), render_answer(SENTENCES)]
        for word, _ in splitter.pre_tokenize_str(text)
    )
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, UNK, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    """A Llama of two layers and about 0.2 million parameters in float32, freshly initialised from the seed alone.

    The initialiser's range is three times the usual one: at this width it learns faster.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
