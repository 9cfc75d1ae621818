"""What is loaded is whole, of the right kind, not pickled, and runs no code that came with it."""

import json
import os
from pathlib import Path

import pytest
import torch
from tests.models.families import FAMILIES
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from p3o.errors import P3OError
from p3o.feedback.reward_model import load_reward_model
from p3o.models.adapters import LoraSettings, add_adapter
from p3o.models.heads import Critic
from p3o.models.language import load_language_model, load_tokenizer, save_model

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    FAMILIES["llama"].write(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("load", [load_language_model, load_reward_model, Critic.from_pretrained])
def test_pickled_weights_are_refused(folder: Path, load: object) -> None:
    model = load_language_model(str(folder), device=CPU)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    load(str(folder), device=CPU)  # safetensors are there too, and they are what is read
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        P3OError, match=r"model'?: only pickled weights \(pytorch_model\.bin\), and loading a pickle can"
    ):
        load(str(folder), device=CPU)


def test_a_pickled_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    model = load_language_model(str(folder), device=CPU)
    adapted = add_adapter(model, LoraSettings(rank=2), task="CAUSAL_LM", seed=0)
    save_model(adapted, load_tokenizer(str(folder)), tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(P3OError, match=r"only pickled weights \(adapter_model\.bin\)"):
        load_language_model(str(tmp_path / "adapter"), device=CPU)


@pytest.mark.parametrize("load", [load_language_model, load_reward_model, load_tokenizer])
def test_code_in_a_model_folder_is_not_run(tmp_path: Path, load: object) -> None:
    FAMILIES["llama"].write(tmp_path)
    for name, classes in (
        ("config.json", {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "evil.T"]}),
    ):
        content = json.loads((tmp_path / name).read_text())
        content |= {"auto_map": classes, "model_type": "evil", "tokenizer_class": "Evil"}
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    settings = {} if load is load_tokenizer else {"device": CPU}
    with pytest.raises(P3OError):
        load(str(tmp_path), **settings)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_a_tokenizer_is_told_as_that(folder: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "bare")
    with pytest.raises(P3OError, match=r"bare': the folder has no tokenizer; save the model's tokenizer there too"):
        load_tokenizer(str(tmp_path / "bare"))


def test_a_classifier_is_not_a_language_model(folder: Path, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).save_pretrained(tmp_path / "classifier")
    with pytest.raises(P3OError, match=r"its files lack lm_head\.weight, which would be initialised at random"):
        load_language_model(str(tmp_path / "classifier"), device=CPU)


def test_a_classifier_with_several_labels_is_no_reward_model(folder: Path, tmp_path: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).save_pretrained(tmp_path / "classifier")
    with pytest.raises(
        P3OError, match=r"classifier': a classifier with 3 labels; a reward model must have exactly one"
    ):
        load_reward_model(str(tmp_path / "classifier"), device=CPU)


def test_an_adapter_of_a_reward_model_is_no_policy(folder: Path, tmp_path: Path) -> None:
    adapted = add_adapter(load_reward_model(str(folder), device=CPU), LoraSettings(rank=2), task="SEQ_CLS", seed=0)
    save_model(adapted, load_tokenizer(str(folder)), tmp_path / "adapter")
    with pytest.raises(P3OError, match=r"an adapter for the task SEQ_CLS, not for CAUSAL_LM"):
        load_language_model(str(tmp_path / "adapter"), device=CPU)


def test_a_half_written_file_is_one_line(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(P3OError, match=r"model '.*': cannot be loaded as a causal language model \("):
        load_language_model(str(folder), device=CPU)


def test_a_hub_model_without_safetensors_is_neither_unpickled_nor_sent_to_be_converted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []

    def hub(path: str, **settings: object) -> None:
        asked.append((settings["use_safetensors"], os.environ["DISABLE_SAFETENSORS_CONVERSION"]))
        raise OSError("x/y has no file named model.safetensors. Please do not set `use_safetensors=True`.")

    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", hub)
    with pytest.raises(P3OError, match=r"\(it has no safetensors weights, and p3o does not load pickled ones\); give"):
        load_language_model("x/y", device=CPU)
    assert asked == [(True, "1")]
    assert "DISABLE_SAFETENSORS_CONVERSION" not in os.environ


def test_generation_stops_where_the_tokenizer_ends(folder: Path, tmp_path: Path) -> None:
    """After fine-tuning on a chat template whose turns end otherwise than the model's old end of sequence."""
    model, tokenizer = load_language_model(str(folder), device=CPU), load_tokenizer(str(folder))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    before = tokenizer.eos_token_id
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(7)
    for _ in range(2):  # saved twice, it is there once
        save_model(model, tokenizer, tmp_path / "saved")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").generation_config.eos_token_id == [7, before]
