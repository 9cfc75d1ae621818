"""A folder as a reader has it: a model, files of the names that the pages use, functions in Python, runs that are done."""

import json
import shutil
from pathlib import Path

from tests.chat_model import CHATML, chat_tokenizer
from tests.docs.pages import ROOT
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM

from p3o.data.embedded import task
from p3o.files import write_jsonl

ROWS = 48
"""More than one batch of every stage."""

LABELLING = ("docs/labelling.md",)
"""Pages whose pairs.jsonl is to be labelled; elsewhere it is labelled."""

FUNCTIONS = {
    "rewards.py": "def brief(prompts, responses):\n    return [-float(len(response)) for response in responses]\n",
    "judges.py": (
        "def compare(prompts, responses_a, responses_b):\n"
        "    return [float(len(a) < len(b)) - float(len(a) > len(b)) for a, b in zip(responses_a, responses_b)]\n"
    ),
    "judge.yaml": "kind: function\nfunction: judges:compare\n",
    "mine.yaml": (
        "name: new\nmodel: path/to/model\nreward: {function: rewards:brief}\n"
        "data: {prompts: prompts.jsonl, demonstrations: demos.jsonl}\n"
    ),
}


def save_model(folder: Path, *, context: int = 4096) -> Path:
    """A causal model of 60 thousand weights, a token a byte, with a chat template."""
    tokenizer = chat_tokenizer(template=CHATML)
    tokenizer.add_tokens([AddedToken(" A", normalized=False), AddedToken(" B", normalized=False)])  # a judge needs them
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=context,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def furnish(place: Path, page: str, finished_run: Path) -> None:
    """Put everything that a page names into an empty folder.

    Args:
        place: the folder.
        page: whose files are wanted, where two pages have the same name for different files.
        finished_run: a run folder to copy to runs/demo and runs/mine.
    """
    model = save_model(place / "path" / "to" / "model")
    rows = [(row.prompt, row.completion) for row in task.demonstrations(ROWS, seed=0, split="train")]
    prompts = [{"prompt": prompt} for prompt, _ in rows]
    labels = [{"prompt": prompt, "chosen": text, "rejected": " No."} for prompt, text in rows]
    write_jsonl(place / "prompts.jsonl", prompts)
    write_jsonl(place / "heldout.jsonl", prompts[:8])
    write_jsonl(place / "demos.jsonl", [{"prompt": prompt, "completion": text} for prompt, text in rows])
    write_jsonl(place / "pairs.jsonl", labels)
    write_jsonl(place / "preferences.jsonl", labels)
    (place / "labels.json").write_text(json.dumps(labels[:8]))
    if page in LABELLING:
        compared = [{"prompt": prompt, "response_a": text, "response_b": " No."} for prompt, text in rows[:6]]
        write_jsonl(place / "pairs.jsonl", compared)
    for name, ending in (("mine", ""), ("theirs", " Truly.")):
        write_jsonl(place / f"{name}.jsonl", [{"prompt": p, "response": text + ending} for p, text in rows[:6]])
    for name, text in FUNCTIONS.items():
        (place / name).write_text(text)
    for run in ("demo", "mine", "demo-quick"):
        shutil.copytree(finished_run, place / "runs" / run)
        shutil.rmtree(place / "runs" / run / "sft", ignore_errors=True)
        shutil.copytree(model, place / "runs" / run / "sft")
    shutil.copytree(model, place / "models" / "smollm2")
    shutil.copytree(ROOT / "examples", place / "examples")
