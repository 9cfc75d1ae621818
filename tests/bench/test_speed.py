"""The benchmark of speed: its work, its counting and its bookkeeping; nothing here is timed."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from p3o.bench import speed
from p3o.bench.speed_flops import forward_operations
from p3o.bench.speed_work import SETTINGS, Phases, Setting, end_responses, llama, prompt_texts, word_tokenizer
from p3o.bench.speed_workers import own_step
from p3o.errors import P3OError
from p3o.models.sampling import sample_responses
from p3o.models.tokens import encode_prompts, pad_left

TOKENIZER = word_tokenizer(200)
TINY = Setting("5,4", (5, 3), 4)


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, eos_token_id=1
    )
    return LlamaForCausalLM(config)


def test_prompts_have_the_lengths_asked_for() -> None:
    texts = prompt_texts(TOKENIZER, (7, 1, 30))
    assert [len(ids) for ids in encode_prompts(TOKENIZER, texts)] == [7, 1, 30]


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 9.0, 9.0), (0.5, 1.7, 2.3)])
def test_responses_end_as_often_as_asked(probability: float, low: float, high: float) -> None:
    """Never, or after 1/p tokens on average; and only while sampling: a pass with a graph sees the model's own logits."""
    model = tiny()
    plain = model(input_ids=torch.tensor([[5, 6]])).logits
    end_responses(model, TOKENIZER, probability)
    prompts = pad_left([[5, 6, 7]] * 20, 2)
    responses = sample_responses(
        model,
        prompts,
        responses_per_prompt=20,
        max_new_tokens=9,
        eos_id=1,
        pad_id=2,
        generator=torch.Generator().manual_seed(0),
    )
    assert low <= responses.mask.sum(-1).float().mean().item() <= high
    assert torch.equal(model(input_ids=torch.tensor([[5, 6]])).logits, plain)


def test_operations_by_hand() -> None:
    """Two prompts of 5 and 3, two responses of 4 each: 3 inputs and 4 predictions a response, the first shared."""
    model = tiny()
    layer = 4 * 16 * 16 + 3 * 16 * 24
    inputs, scored = 5 + 3 + 4 * 3, 2 + 4 * 3
    pairs = sum(prompt * (prompt + 1) / 2 + 2 * (3 * prompt + 1 + 2 + 3) for prompt in (5, 3))
    expected = 2 * inputs * 2 * layer + 2 * scored * 16 * 200 + 2 * 4 * 16 * pairs
    assert forward_operations(model, TINY, sampled=16) == expected


def test_the_shape_is_that_of_smollm2_135m() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in llama(quick=False).parameters()) == 134_515_008


def test_phases_count_the_innermost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("p3o.bench.speed_work.perf_counter", lambda: clock[0])

    class Work:
        def inner(self) -> None:
            clock[0] += 2.0

        def outer(self) -> None:
            clock[0] += 1.0
            self.inner()
            clock[0] += 4.0

    work, phases = Work(), Phases()
    phases.wrap(work, "inner", "inner", without_graph="inner, quietly")
    phases.wrap(work, "outer", "outer")
    work.outer()
    clock[0] += 8.0
    with torch.no_grad():
        work.inner()
    assert phases.take() == {"outer": 5.0, "inner": 2.0, "inner, quietly": 2.0, "other": 8.0}
    assert phases.take() == {"other": 0.0}


@pytest.mark.parametrize(
    ("algorithm", "passes"),
    [
        ("p3o_v2", {"forward", "reference pass"}),
        ("ppo", {"forward", "reference pass", "behaviour pass", "critic forward", "critic values"}),
    ],
)
def test_a_step_of_ours_reports_its_phases(algorithm: str, passes: set[str], tmp_path: Path) -> None:
    backward = torch.Tensor.backward
    tiny().save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    report = own_step(algorithm, TINY, str(tmp_path), 1, torch.device("cpu"))()
    assert set(report["phases"]) == passes | {"generation", "backward", "optimiser", "other"}
    assert torch.Tensor.backward is backward
    assert report["tokens"] == 16
    assert report["layout"] == "layout shared (a prompt and all its responses in one row)"


def result(seconds: float, peak: int) -> dict[str, object]:
    return {
        "step_seconds": seconds,
        "phases": {"forward": seconds},
        "response_tokens_per_second": 10.0,
        "peak_bytes": peak,
        "train_pass_gemm_share": 0.6,
        "step_gemm_share": 0.5,
    }


ROW = {
    "ratios": {"trl": 2.5, "ppo": 1.5},
    "contenders": {"p3o": result(1.0, 100), "trl": result(2.5, 200), "ppo": result(1.5, 150)},
}


def test_the_summary_names_what_the_benchmark_is_about() -> None:
    mixed = ROW | {"ratios": {"trl": 3.0, "ppo": 2.0}}
    assert speed.summary({"256,64": ROW, "mixed": mixed, "64,64": ROW}) == {
        "step_ratio_vs_trl": 2.5,
        "mixed_step_ratio_vs_trl": 3.0,
        "train_pass_gemm_share": 0.6,
        "step_gemm_share": 0.5,
        "peak_memory_ratio_vs_trl": 0.5,
        "ppo_step_ratio": 1.5,
    }
    assert set(speed.summary({}).values()) == {None}
    whole, parts = speed.tables({"256,64": ROW, "mixed": mixed})
    assert (whole.row_count, parts.row_count) == (6, 1)


def test_an_interrupted_run_goes_on_and_another_one_does_not(tmp_path: Path) -> None:
    path, run = tmp_path / "speed.json", {"command": "p3o bench speed", "commit": "abc"}
    assert speed.started(path, run)["settings"] == {}
    path.write_text(json.dumps({**run, "complete": False, "settings": {"256,64": ROW}}))
    assert list(speed.started(path, run)["settings"]) == ["256,64"]
    assert speed.started(path, run | {"commit": "def"})["settings"] == {}
    path.write_text(json.dumps({**run, "complete": True, "settings": {"256,64": ROW}}))
    assert speed.started(path, run)["settings"] == {}, "a complete run is repeated"


def test_without_trl_there_is_nothing_to_compare_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(P3OError, match=r"TRL, .* is not installed"):
        speed.main(None, quick=True, model=None)


def test_a_model_that_is_none_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(P3OError, match=r"no config\.json could be loaded"):
        speed.main(None, quick=True, model=tmp_path)


def test_settings_are_those_that_are_published() -> None:
    assert [(setting.name, len(setting.prompts), setting.responses) for setting in SETTINGS] == [
        ("256,64", 8, 2),
        ("mixed", 8, 2),
        ("350,53", 8, 2),
        ("64,64", 8, 2),
    ]
