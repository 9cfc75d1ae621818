"""What a run reads of its sources: one text form for every stage, and every mistake told before the first stage."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.chat_model import CONTEXT, chat_tokenizer, save_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerBase

from p3o.config import RunConfig
from p3o.errors import P3OError
from p3o.feedback.reward_model import RewardModel
from p3o.inputs import Inputs, limits_of, read_inputs
from p3o.models.tokens import encode_prompts, encode_responses
from p3o.training.progress import Progress

PROMPTS = [{"prompt": f"What is {i}?"} for i in range(40)]


class Told:
    """A stream that keeps what is shown on it."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str, /) -> Any:
        self.text += text

    def flush(self) -> Any:
        pass


@pytest.fixture
def run(tmp_path: Path) -> "Run":
    return Run(tmp_path)


class Run:
    """A run whose sources are files of these rows."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told = folder, Told()
        self.model = save_tokenizer(folder / "model")
        self.tokenizer: PreTrainedTokenizerBase = chat_tokenizer()

    def read(self, *, data: dict[str, Any] | None = None, **sources: list[Any]) -> Inputs:
        files = {}
        for name, rows in ({"prompts": PROMPTS} | sources).items():
            files[name] = str(self.folder / f"{name}.jsonl")
            Path(files[name]).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        config = RunConfig.model_validate(
            {
                "model": str(self.model),
                "data": files | (data or {}),
                "sft": {"batch_size": 2} if "demonstrations" in sources else None,
                "reward": {"train": {"batch_size": 2}} if "preferences" in sources else {"function": "a:b"},
                "rl": {"training": {"prompts_per_step": 4, "max_new_tokens": 20}},
                "evaluation": {"prompts": 8},
            }
        )
        return read_inputs(config, self.tokenizer, progress=Progress(self.told, terminal=False))


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def test_sft_reward_model_and_rl_see_the_same_tokens_in_conversations(run: Run) -> None:
    inputs = run.read(
        prompts=[{"prompt": chat(f"What is {i}?")} for i in range(40)],
        demonstrations=[{"messages": [*chat("What is 1?"), {"role": "assistant", "content": "One"}]}] * 3,
        preferences=[{"prompt": chat("What is 1?"), "chosen": "One", "rejected": "Two"}] * 3,
    )
    tokenizer = run.tokenizer
    assert tokenizer.eos_token == "<|im_end|>"
    assert "the chat template ends a turn with <|im_end|>" in run.told.text
    whole = "<|im_start|>user\nWhat is 1?<|im_end|>\n<|im_start|>assistant\nOne<|im_end|>"
    expected = tokenizer(whole, add_special_tokens=False)["input_ids"]
    [prompt] = {prompt for prompt, _ in inputs.demonstrations}
    assert prompt in inputs.prompts + inputs.heldout_prompts
    [answer] = {answer for _, answer in inputs.demonstrations}
    assert inputs.preferences[0] == (prompt, answer, "Two")
    fine_tuning = encode_prompts(tokenizer, [prompt])[0] + encode_responses(tokenizer, [answer])[0]
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), num_labels=1, **sizes))
    reward_model = RewardModel(model, tokenizer).encode([prompt], [answer])[0]
    # RL samples ids until the end of sequence and hands the decoded text to the reward model.
    sampled = expected[len(encode_prompts(tokenizer, [prompt])[0]) :]
    rl = RewardModel(model, tokenizer).encode([prompt], [tokenizer.decode(sampled, skip_special_tokens=True)])[0]
    assert fine_tuning == reward_model == rl == expected


def test_texts_leave_the_end_of_sequence_alone(run: Run) -> None:
    run.read(demonstrations=[{"prompt": "a", "completion": " b"}] * 3)
    assert run.tokenizer.eos_token == "<|endoftext|>"
    assert run.told.text == ""


def test_skipped_rows_are_told_and_recorded(run: Run) -> None:
    bad = [{"prompt": "a", "completion": " "}, {"prompt": "a" * 300, "completion": "b"}]
    inputs = run.read(data={"bad_rows": "skip"}, demonstrations=[*bad, *[{"prompt": "a", "completion": " b"}] * 3])
    assert len(inputs.demonstrations) == 3
    assert "demonstrations: 3 of 5 rows of " in run.told.text
    assert "; dropped 1 empty, 1 too long" in run.told.text
    records = {report.kind: report.record() for report in inputs.reports}
    assert records["demonstrations"]["dropped"] == {"empty": 1, "too long": 1}
    assert records["prompts"]["kept"] == 40


@pytest.mark.parametrize(
    ("sources", "data", "told"),
    [
        ({"prompts": [*PROMPTS, {"prompt": "a" * (CONTEXT - 19)}]}, {}, "prompts.jsonl:41: a prompt of 237 tokens"),
        (
            {"demonstrations": [{"prompt": "a" * 200, "completion": "b" * 56}]},
            {},
            "demonstrations.jsonl:1: a row of 200 + 57 tokens exceeds the model's limit of 256",
        ),
        (
            {"preferences": [{"prompt": "a", "chosen": "b", "rejected": "c" * 9}]},
            {"max_completion_tokens": 9},
            "preferences.jsonl:1: an answer has 10 tokens (end of sequence included), more than data.max_completion_tokens 9",
        ),
        ({}, {"max_prompt_tokens": 10}, "prompts.jsonl:11: the prompt has 11 tokens, more than data.max_prompt_tokens"),
        ({"demonstrations": [{"prompt": "a"}]}, {}, "demonstrations.jsonl:1: no column 'completion'"),
        ({"demonstrations": [{"prompt": "a", "completion": ""}]}, {}, "demonstrations.jsonl:1: 'completion' is empty"),
    ],
)
def test_a_row_too_long_a_missing_column_or_an_empty_response_is_told_with_its_row(
    run: Run, sources: dict[str, Any], data: dict[str, Any], told: str
) -> None:
    with pytest.raises(P3OError) as caught:
        run.read(data=data, **sources)
    assert str(caught.value).startswith(f"{run.folder}/{told}")


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        (
            {"prompts": PROMPTS[:3], "heldout_prompts": PROMPTS[3:]},
            "3 training prompts are fewer than rl.training.prompts_per_step = 4",
        ),
        ({"prompts": PROMPTS[:3]}, "3 distinct prompts are too few to hold some out"),
        (
            {"demonstrations": [{"prompt": "a", "completion": "b"}]},
            "1 training demonstrations are fewer than sft.batch_size = 2",
        ),
        (
            {"preferences": [{"prompt": "a", "chosen": "b", "rejected": "c"}]},
            "1 pairs are fewer than reward.train.batch_size = 2",
        ),
    ],
)
def test_a_data_set_smaller_than_a_batch_is_told_at_start(run: Run, sources: dict[str, Any], told: str) -> None:
    with pytest.raises(P3OError) as caught:
        run.read(**sources)
    assert told in str(caught.value)


def test_a_single_held_out_prompt_is_told_at_start(run: Run) -> None:
    with pytest.raises(P3OError, match=r"data\.heldout_prompts .*: only one distinct prompt"):
        run.read(heldout_prompts=[{"prompt": "Another?"}] * 5)


def test_repeated_prompts_that_are_taken_once_are_counted(run: Run) -> None:
    inputs = run.read(prompts=[*PROMPTS, *PROMPTS[:7]])
    assert len(inputs.prompts) + len(inputs.heldout_prompts) == len(PROMPTS)
    assert "data.prompts: 7 rows repeat the prompt of another" in run.told.text
    inputs = run.read(prompts=[*PROMPTS, *PROMPTS[:7]], heldout_prompts=[{"prompt": "A?"}, {"prompt": "B?"}])
    assert len(inputs.prompts) == 47, "nothing is left out where nothing is split off"


def test_held_out_prompts_that_are_trained_on_are_told(run: Run) -> None:
    inputs = run.read(heldout_prompts=[*PROMPTS[:2], {"prompt": "Another?"}, {"prompt": "Another?"}])
    assert sorted(inputs.heldout_prompts) == ["Another?", "What is 0?", "What is 1?"]
    assert "held-out prompts: 2 of 3 are also in data.prompts; a model trained on those has seen them" in run.told.text


def test_held_out_prompts_that_other_stages_train_on_are_told(run: Run) -> None:
    """Also where p3o itself holds some of the prompts out: of RL, that is, not of the reward model."""
    prompts = [row["prompt"] for row in PROMPTS]
    run.read(preferences=[{"prompt": prompt, "chosen": "yes", "rejected": "no"} for prompt in prompts])
    assert "held-out prompts: 8 of 8 are also in data.preferences;" in run.told.text
    assert "data.prompts" not in run.told.text
    run.read(
        heldout_prompts=[{"prompt": "Another?"}, PROMPTS[3]],
        demonstrations=[{"prompt": prompts[3], "completion": "3."}] * 5,
    )
    assert "held-out prompts: 1 of 2 are also in data.demonstrations;" in run.told.text


def test_of_many_held_out_prompts_some_are_drawn_by_the_seed(run: Run) -> None:
    many = [{"prompt": f"Part {i}"} for i in range(100)]
    first = run.read(heldout_prompts=many).heldout_prompts
    assert len(set(first)) == 8
    assert first != [row["prompt"] for row in many[:8]], "not the first: parts of a data set stand one after another"
    assert run.read(heldout_prompts=many).heldout_prompts == first


def test_conversations_need_a_template(run: Run) -> None:
    run.tokenizer = chat_tokenizer(template=None)
    with pytest.raises(P3OError, match="no chat template; write the prompts as plain texts"):
        run.read(prompts=[{"prompt": chat("Hi")}] * 3)


def test_demonstrations_are_held_out_by_their_prompt(run: Run) -> None:
    """Four answers to each of 15 prompts in turn: three rows are wanted, so the four of one prompt are held out."""
    rows = [{"prompt": f"q{i}", "completion": f" {i * k}"} for i in range(15) for k in range(1, 5)]
    inputs = run.read(demonstrations=rows)
    [held] = {prompt for prompt, _ in inputs.heldout_demonstrations}
    assert (len(inputs.heldout_demonstrations), len(inputs.demonstrations)) == (4, 56)
    assert held not in {prompt for prompt, _ in inputs.demonstrations}
    assert run.told.text == ""


def test_demonstrations_are_held_out_of_all_parts_of_a_data_set(run: Run) -> None:
    """Parts stand one after another; the first rows alone would be a test of the first part."""
    rows = [{"prompt": f"{part}{i}", "completion": f" {i}"} for part in "abcd" for i in range(100)]
    inputs = run.read(demonstrations=rows)
    held = [prompt for prompt, _ in inputs.heldout_demonstrations]
    assert len(held) == 20
    assert {prompt[0] for prompt in held} == set("abcd")
    assert [prompt for prompt, _ in inputs.demonstrations] == [r["prompt"] for r in rows if r["prompt"] not in held]
    assert run.read(demonstrations=rows).heldout_demonstrations == inputs.heldout_demonstrations


def test_demonstrations_of_one_prompt_are_all_trained_on_and_that_is_told(run: Run) -> None:
    inputs = run.read(demonstrations=[{"prompt": "q", "completion": f" {i}"} for i in range(60)])
    assert (len(inputs.demonstrations), inputs.heldout_demonstrations) == (60, [])
    assert "data.demonstrations: none is held out, so there is no held-out loss" in run.told.text


def test_a_model_whose_configuration_is_code_is_read_where_code_is_trusted(run: Run) -> None:
    code = "class Own(PretrainedConfig):\n    model_type = 'own'\n    max_position_embeddings = 30\n"
    (run.model / "configuration_own.py").write_text(f"from transformers import PretrainedConfig\n\n\n{code}")
    own = {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.Own"}}
    (run.model / "config.json").write_text(json.dumps(own))
    settings = {"model": str(run.model), "rl": {"training": {"max_new_tokens": 20}}}
    with pytest.raises(P3OError, match="contains custom code"):
        limits_of(RunConfig.model_validate(settings), run.tokenizer)
    trusting = RunConfig.model_validate(settings | {"trust_remote_code": True})
    assert limits_of(trusting, run.tokenizer).context == 30
