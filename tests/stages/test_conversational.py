"""What a run of conversations writes for people and programs: the messages that were given, and the same training from them."""

import json
from pathlib import Path

import pytest
import torch
from tests.chat_model import chat_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from p3o.cli import main
from p3o.config import RunConfig
from p3o.data.chat import ChatFormat
from p3o.data.formats import Example, Message
from p3o.data.reading import read_examples
from p3o.data.sources import SourceConfig
from p3o.files import read_jsonl, write_jsonl
from p3o.labeling.pairs import read_pairs
from p3o.labeling.store import Store
from p3o.stages import labelling
from p3o.stages.context import RunContext
from p3o.stages.reward import labelled_pairs
from p3o.training.progress import Nowhere, Progress
from p3o.training.tracking import RunFolder

TALKS = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {i}?"}] for i in range(20)]
LONGER = "def longer(prompts, a, b):\n    return [float((len(x) > len(y)) - (len(x) < len(y))) for x, y in zip(a, b)]\n"


@pytest.fixture
def chatty(here: Path) -> Path:
    """model/ with a ChatML template whose turns do not end with its end of sequence, and prompts.jsonl: two texts, the others
    conversations."""
    tokenizer = chat_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **shape)).save_pretrained(
        here / "model"
    )
    tokenizer.save_pretrained(here / "model")
    write_jsonl(here / "prompts.jsonl", [{"prompt": text} for text in ("A text.", "Another text.", *TALKS)])
    (here / "labels_of_chats.py").write_text(LONGER)
    return here


def rendered(messages: list[dict[str, str]]) -> str:
    return ChatFormat(chat_tokenizer()).render(Example(tuple(Message(**one) for one in messages), ()))[0]


def sample(*settings: str) -> int:
    asked = ["sample", "--model", "model", "--prompts", "prompts.jsonl", "--name", "own", "--set", "device=cpu"]
    asked += ["--set", "rl.training.max_new_tokens=6", "--set", "evaluation.prompts=4"]
    return main([*asked, *(part for setting in settings for part in ("--set", setting))])


def test_what_was_sampled_is_written_as_it_was_given(chatty: Path) -> None:
    assert sample("sampling={labeller: {kind: function, function: 'labels_of_chats:longer'}}") == 0
    pairs, preferences = (read_jsonl(chatty / "runs/own" / name) for name in ("pairs.jsonl", "preferences.jsonl"))
    given = [json.dumps(prompt) for prompt in ("A text.", "Another text.", *TALKS)]
    for row in (*pairs, *preferences):
        assert json.dumps(row["prompt"]) in given
    assert sum(isinstance(row["prompt"], list) for row in pairs) > 10
    assert "<|im_start|>" not in (chatty / "runs/own/pairs.jsonl").read_text()
    # The labelling page takes the one, data.preferences of any run the other.
    assert [pair.prompt for pair in read_pairs(chatty / "runs/own/pairs.jsonl")] == [row["prompt"] for row in pairs]
    examples, _ = read_examples(SourceConfig(path=str(chatty / "runs/own/preferences.jsonl")), "preferences")
    assert len(examples) == len(preferences)


def test_the_reward_stage_alone_reads_what_the_policy_reads(chatty: Path) -> None:
    """In a command of its own it opens no file of prompts: the end of a turn and the rendering come from what was sampled."""
    assert sample("sampling={labeller: {kind: function, function: 'labels_of_chats:longer'}}") == 0
    rows = read_jsonl(chatty / "runs/own/preferences.jsonl")
    config = RunConfig.model_validate({"model": "model", "device": "cpu", "sampling": {}})
    run = RunContext(config, RunFolder.open(chatty / "runs", "own"), Progress(Nowhere()), ["reward"])
    pairs = labelled_pairs(run)
    for (prompt, better, worse), row in zip(pairs, rows, strict=True):
        assert prompt == (row["prompt"] if isinstance(row["prompt"], str) else rendered(row["prompt"]))
        assert (better, worse) == (row["chosen"], row["rejected"])
    assert run.tokenizer.eos_token == "<|im_end|>"
    assert run.encode([("p", "r")])[0][1][-1] == run.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_people_are_shown_messages_and_the_run_gets_its_own_prompts_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from p3o.labeling.judging import label_with_judge

    class First:
        def compare(self, prompts: list[str], a: list[str], b: list[str]) -> list[object]:
            assert prompts == ["System: Be brief.\n\nUser: Question 0?", "A text."]
            return [type("Verdict", (), {"preference": 1.0}) for _ in a]

    store = tmp_path / "labels.db"
    monkeypatch.setattr(labelling.time, "sleep", lambda _: label_with_judge(Store.open(store), First(), name="ada"))
    talk = rendered(TALKS[0])
    found = labelling.label(
        labelling.LabellerConfig(kind="people", store=str(store)),
        [(talk, "x", "y"), ("A text.", "v", "w")],
        gold=None,
        scale=1.0,
        seed=0,
        folder=tmp_path,
        progress=Progress(Nowhere()),
        conversations={talk: tuple(Message(**one) for one in TALKS[0])},
    )
    assert found.preferences == [(talk, "x", "y"), ("A text.", "v", "w")]


def test_a_run_ends_responses_at_the_turn_s_end_and_at_the_text_s(
    chatty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The template's end of turn is adopted, and the ends of generation_config.json stay; a letter among them is none."""
    ends = [*chat_tokenizer().convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]), 2]
    (chatty / "model/generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    (chatty / "reward_of_chats.py").write_text(
        "def count(prompts, responses):\n    return [float(len(x)) for x in responses]\n"
    )
    asked = ["rl", "--model", "model", "--prompts", "prompts.jsonl", "--reward-function", "reward_of_chats:count"]
    settings = ["device=cpu", "rl.training.steps=1", "rl.training.prompts_per_step=4", "rl.training.max_new_tokens=4"]
    settings += ["evaluation.prompts=4", "evaluation.best_of=[]"]
    assert main([*asked, "--name", "talks", *(part for text in settings for part in ("--set", text))]) == 0
    told = capsys.readouterr().err
    assert (
        "rl p3o_v2: a response ends at <|im_end|> or <|endoftext|>, not at id 2 of the model's generation settings, which is "
        "not a special token\n"
    ) in told
