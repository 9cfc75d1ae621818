"""The token ids that go to a reward service end where the classifier reads its score, whichever id its padding is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.chat_model import chat_tokenizer
from tests.feedback.remote.service import service
from transformers import LlamaConfig, LlamaForSequenceClassification

from p3o.config import RunConfig
from p3o.config_feedback import RewardConfig
from p3o.feedback.reward_model import RewardModel, load_reward_model
from p3o.models.language import load_tokenizer
from p3o.stages.feedback import Feedback
from p3o.stages.models import Models

END, OTHER = "<|endoftext|>", "<|im_start|>"
PROMPTS = ["Question one?", "Question one?", "And two?"]
RESPONSES = ["yes", "no, never", ""]

PADDINGS = {
    "of its own": (OTHER, OTHER, True),
    "the end": (END, END, False),
    "in the configuration alone": (None, OTHER, True),
    "the end, in the configuration alone": (None, END, False),
    "nowhere": (None, None, False),
}
"""Of the tokenizer, of the configuration, and whether the end of sequence is read."""


@pytest.fixture
def classifier(tmp_path: Path) -> Callable[..., Path]:
    def make(tokenizers: str | None, configurations: str | None) -> Path:
        tokenizer = chat_tokenizer(eos=END)
        tokenizer.pad_token = tokenizers
        id_of = tokenizer.convert_tokens_to_ids
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_labels=1,
            bos_token_id=None,
            eos_token_id=id_of(END),
            pad_token_id=None if configurations is None else id_of(configurations),
        )
        LlamaForSequenceClassification(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return make


def served(folder: Path, url: str) -> Any:
    config = RewardConfig.model_validate({"service": {"url": url, "interface": "classify", "tokenizer": str(folder)}})
    models = Models(RunConfig(), torch.device("cpu"), adapter_seed=0)
    return Feedback(config, models, trained=lambda: "", conversations={}, references=dict).scorer()


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_server_that_reads_the_last_token_gives_the_scores_of_the_process(
    classifier: Callable[..., Path], padding: str
) -> None:
    """The server does as vLLM: its score is that of the last token, whatever it is."""
    of_tokenizer, of_config, end_is_read = PADDINGS[padding]
    folder = classifier(of_tokenizer, of_config)
    model = load_reward_model(str(folder), device=torch.device("cpu"), new_head=False)
    sent: list[list[int]] = []

    @torch.no_grad()
    def last(_path: str, body: dict[str, Any], _attempt: int) -> dict[str, Any]:
        sent.extend(body["input"])
        states = [model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] for ids in body["input"]]  # type: ignore[operator]
        scores = [model.score(state).item() for state in states]  # type: ignore[operator]
        return {"data": [{"index": i, "probs": [score]} for i, score in enumerate(scores)]}

    with service(last) as (url, _):
        rewards = served(folder, url)(PROMPTS, RESPONSES)
    tokenizer = load_tokenizer(str(folder))
    assert rewards == pytest.approx(RewardModel(model, tokenizer)(PROMPTS, RESPONSES), abs=1e-5)
    assert len(set(rewards)) == 3
    ends = [ids[-1] == tokenizer.eos_token_id for ids in sent]
    assert ends == [end_is_read] * 3


def test_a_tokenizer_alone_is_believed(tmp_path: Path) -> None:
    """Nothing says what the padding is, so the rows stay whole."""
    chat_tokenizer(eos=END).save_pretrained(tmp_path)
    sent: list[list[int]] = []

    def zero(_path: str, body: dict[str, Any], _attempt: int) -> dict[str, Any]:
        sent.extend(body["input"])
        return {"data": [{"index": i, "probs": [0.0]} for i in range(len(body["input"]))]}

    with service(zero) as (url, _):
        served(tmp_path, url)(PROMPTS, RESPONSES)
    assert all(ids[-1] == chat_tokenizer(eos=END).eos_token_id for ids in sent)
