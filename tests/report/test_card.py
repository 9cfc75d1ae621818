"""Model cards: what they say is what the run recorded, and a person's own card stays."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from p3o.config import RunConfig
from p3o.report.card import MARK, write_model_cards

RECORD: dict[str, Any] = {
    "name": "first",
    "status": "complete",
    "seed": 4,
    "threads": 2,
    "versions": {"python": "3.12.1", "p3o": "0.1.0", "torch": "2.13.0"},
    "machine": {"system": "Linux", "processor": "A Processor", "processors": 2},
    "seconds": {"rl": 12.5},
}
ROWS: list[dict[str, Any]] = [
    {"stage": "evaluate", "policy": "p3o_v2", "step": step, "decoding": "sample", "prompts": 64, "length": 7.25}
    | {"reward": float(step), "reward_se": 0.5, "kl": 0.1 * step, "kl_se": 0.01}
    for step in (0, 8, 4)
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name, file in (("sft", "config.json"), ("reward_model", "config.json"), ("rl/p3o_v2", "config.json")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / file).write_text("{}")
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    comparison = {"a": "sft", "b": "p3o_v2", "wins": 10, "ties": 4, "losses": 50, "win_rate": 0.1875, "low": 0.125}
    (tmp_path / "head_to_head.json").write_text(json.dumps([comparison | {"high": 0.25, "by": "reward"}]))
    return tmp_path


def settings(**changed: Any) -> dict[str, Any]:
    values = {"model": "someone/model", "data": {"prompts": "p.jsonl"}, "reward": {"function": "r:f"}}
    return RunConfig(**(values | changed)).model_dump(mode="json")


def test_every_model_folder_gets_a_card(run: Path) -> None:
    assert write_model_cards(run, settings()) == [
        run / name / "README.md" for name in ("sft", "reward_model", "rl/p3o_v2")
    ]


def test_it_says_what_was_recorded(run: Path) -> None:
    write_model_cards(run, settings())
    path = run / "rl" / "p3o_v2" / "README.md"
    assert ModelCard.load(path).data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["p3o", "rlhf", "p3o_v2", "arxiv:2310.00212"],
        "base_model": "someone/model",
    }
    text = path.read_text()
    for line in (
        "# first/p3o_v2",
        "| reward | 8.00 ± 0.50 |",
        "| KL(policy ‖ start), nats per response | 0.80 ± 0.01 |",
        "| win rate against the starting model by the reward, 95 % interval | 81.2 % (75.0–87.5) |",
        "| tokens per response | 7.2 |",
        "| held-out prompts | 64 |",
        "- prompts: p.jsonl",
        "Seed 4. The resolved settings:",
        "python 3.12.1, p3o 0.1.0, torch 2.13.0. Computed on A Processor, 2 threads; rl 12.5 s.",
    ):
        assert line in text.replace("\N{NO-BREAK SPACE}", " ").splitlines(), line
    assert "journal = {arXiv preprint arXiv:2310.00212}" in text
    assert "No evaluation results yet." in (run / "sft" / "README.md").read_text()


def test_where_files_lie_is_not_published(run: Path) -> None:
    config = settings(model=str(run / "sft"), data={"prompts": "/home/someone/secret/p.jsonl"})
    write_model_cards(run, config)
    text = (run / "rl" / "p3o_v2" / "README.md").read_text()
    assert "secret" not in text
    assert str(run) not in text
    assert "- prompts: p.jsonl" in text
    assert "base_model" not in text, "a folder of this machine is no model of the hub"


def test_a_card_without_the_mark_is_a_persons_own(run: Path) -> None:
    write_model_cards(run, settings())
    path = run / "sft" / "README.md"
    path.write_text(path.read_text().replace(MARK, "") + "my words")
    kept = path.read_text()
    assert path not in write_model_cards(run, settings())
    assert path.read_text() == kept


def test_an_adapter_says_so_in_place_of_peft_s_form(run: Path) -> None:
    folder = run / "rl" / "p3o_v2"
    (folder / "config.json").rename(folder / "adapter_config.json")
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n[More Information Needed]\n")
    write_model_cards(run, settings())
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict()["library_name"] == "peft"
    assert "from peft import AutoPeftModelForCausalLM" in card.text
