"""The whole method in its quick form, through the command line, as a newcomer runs it."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from p3o.cli import main
from p3o.data.embedded import task
from p3o.files import read_jsonl, write_jsonl
from p3o.gate import best_gain, judge, largest_difference

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished quick demo, with shifted twins of its runs."""
    output = tmp_path_factory.mktemp("runs")
    assert main(["demo", "--quick", "--reward-shift", "10", "--output", str(output)]) == 0
    return output / "demo-quick"


def rows_of(run: Path, stage: str) -> list[dict]:
    return [row for row in read_jsonl(run / "metrics.jsonl") if row["stage"] == stage]


def test_it_writes_what_it_promises(demo: Path) -> None:
    names = {path.name for path in demo.iterdir()}
    assert {"config.yaml", "run.json", "metrics.jsonl", "samples.jsonl", "responses.jsonl", "report.html"} <= names
    record = json.loads((demo / "run.json").read_text())
    assert record["status"] == "complete"
    assert set(record["seconds"]) == {"sft", "sample", "reward", "rl", "evaluate", "report"}


def test_fine_tuning_learns(demo: Path) -> None:
    """The quick demo's 26 steps teach a reward model nothing that could be told from chance; that one learns is the gate's
    claim, and that of tests/feedback/test_reward_model.py."""
    losses = [row["loss"] for row in rows_of(demo, "sft") if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]


def test_kl_is_exactly_zero_before_the_first_step(demo: Path) -> None:
    for row in rows_of(demo, "evaluate"):
        if row["step"] == 0 and row["decoding"] == "sample":
            assert row["kl"] == 0.0
            assert row["kl_k1"] == 0.0


@pytest.mark.parametrize("policy", ["p3o_v1", "p3o_v2", "online_dpo"])
def test_offsets_on_every_prompt_leave_relative_curves_as_they_are(demo: Path, policy: str) -> None:
    rows = read_jsonl(demo / "metrics.jsonl")
    assert largest_difference(rows, policy) == 0.0
    training = [[row for row in rows_of(demo, "rl") if row["run"] == run] for run in (policy, f"{policy}_shifted")]
    assert len(training[0]) == 4
    for plain, shifted in zip(*training, strict=True):
        assert plain["kl_k1"] == shifted["kl_k1"]
        assert plain["reward"] != shifted["reward"], "the offsets did arrive"


def test_offsets_do_change_ppo(demo: Path) -> None:
    assert largest_difference(read_jsonl(demo / "metrics.jsonl"), "ppo") > 0.0


def test_all_runs_see_the_same_samples_first(demo: Path) -> None:
    """Equal budgets from an equal start: the first step of the runs without a critic samples the same responses."""
    first = {row["run"]: row for row in rows_of(demo, "rl") if row["step"] == 1}
    assert first["p3o_v1"]["length"] == first["p3o_v2"]["length"] == first["online_dpo"]["length"]


def test_models_load_with_plain_transformers(demo: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo / "rl" / "p3o_v2")
    policy = AutoModelForCausalLM.from_pretrained(demo / "rl" / "p3o_v2")
    reward_model = AutoModelForSequenceClassification.from_pretrained(demo / "reward_model")
    assert reward_model.config.num_labels == 1
    prompt = task.prompts(1, seed=3, split="heldout")[0]
    encoded = tokenizer(prompt, return_tensors="pt")
    generated = policy.generate(
        input_ids=encoded["input_ids"], max_new_tokens=20, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    score = reward_model(input_ids=generated).logits
    assert torch.isfinite(score).all()
    assert not list(demo.rglob("*.bin")), "safetensors only"


def test_the_same_seed_gives_the_same_metrics_file(demo: Path, tmp_path: Path) -> None:
    """Stage by stage into a second folder this time: the way must not matter either."""
    config = demo / "config.yaml"
    for stage in ("sft", "sample", "reward"):
        assert main([stage, "--config", str(config), "--name", "again", "--output", str(tmp_path)]) == 0
    first = [
        row for row in read_jsonl(demo / "metrics.jsonl") if row["stage"] in ("sft", "sample", "reward", "reward_test")
    ]
    assert read_jsonl(tmp_path / "again" / "metrics.jsonl") == first


SMALL = """
embedded: {demonstrations: 64, pairs: 64, prompts: 16}
threads: 1
device: cpu
sft: {steps: 6, learning_rate: 4.0e-3, evaluate_every: 2}
reward: {train: {steps: 5, learning_rate: 1.0e-3}}
rl:
  training: {steps: 3, prompts_per_step: 4, max_new_tokens: 8, learning_rate: 4.0e-4, replay_batches: 1}
  runs:
    p3o_r: {algorithm: p3o_r}
    ppo: {algorithm: ppo, training: {critic_warmup_steps: 2}}
evaluation: {prompts: 8, every: 1, best_of: [2], batch_size: 8}
checkpoints: {every: 2, best: true}
"""


@pytest.mark.slow
def test_killed_again_and_again_and_resumed_equals_never_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The death of the process is played by an exception that nothing handles, in every training and in the evaluation."""

    class Killed(BaseException):
        pass

    (tmp_path / "small.yaml").write_text(SMALL)
    arguments = ["run", "--config", str(tmp_path / "small.yaml"), "--output", str(tmp_path)]
    assert main([*arguments, "--name", "whole"]) == 0

    deaths = [("sft.SFTTrainer", 4), ("reward_model.RewardTrainer", 1), ("reward_model.RewardTrainer", 3)]
    deaths += [("online.OnlineTrainer", 2), ("online.OnlineTrainer", 5)]
    for attempt, (trainer, last) in enumerate(deaths):
        with monkeypatch.context() as patch:
            step = sys.modules[f"p3o.training.{trainer.split('.')[0]}"].__dict__[trainer.split(".")[1]].step
            left = [last]

            def dying(self: Any, step: Any = step, left: list[int] = left) -> Any:
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return step(self)

            patch.setattr(f"p3o.training.{trainer}.step", dying)
            with pytest.raises(Killed):
                main([*arguments, "--name", "killed", *(["--resume"] if attempt else [])])
            with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
                file.write('{"stage": "rl", "st')  # the line that was being written
    assert main(["run", "--name", "killed", "--output", str(tmp_path), "--resume"]) == 0
    assert "continuing after step" in capsys.readouterr().err

    def content(run: str) -> dict[str, bytes]:
        files = [path for path in (tmp_path / run).rglob("*") if path.suffix in (".safetensors", ".jsonl")]
        return {str(path.relative_to(tmp_path / run)): path.read_bytes() for path in files}

    whole = content("whole")
    assert {"best/sft/model.safetensors", "best/rl/ppo/model.safetensors", "metrics.jsonl"} <= whole.keys()
    assert content("killed") == whole
    assert not list((tmp_path / "killed" / "checkpoints").rglob("*.safetensors")), "removed once the results are saved"


def test_the_gate_judges_what_the_run_measured(demo: Path) -> None:
    rows = read_jsonl(demo / "metrics.jsonl")
    lines = {line.name: line for line in judge([rows])}
    test = rows_of(demo, "reward_test")[0]
    accuracy = lines["reward model accuracy on SFT samples"]
    assert accuracy.values == [test["accuracy_gold"]]
    assert accuracy.passed == (test["accuracy_gold"] >= 0.85)
    assert not lines["held-out prompts"].passed, "64 prompts are not 512"
    assert lines["p3o_v2: largest change of its curve under offsets"].passed


def test_the_gate_counts_standard_errors_only_in_the_kl_range() -> None:
    def row(step: int, gold: float, kl: float) -> dict:
        return {"stage": "evaluate", "policy": "p", "step": step, "gold": gold, "gold_se": 0.3, "kl": kl}

    rows = [row(0, 1.0, 0.0), row(1, 9.0, 1.9), row(2, 2.0, 2.0), row(3, 1.5, 5.0), row(4, 9.0, 6.1)]
    assert best_gain(rows, "p") == pytest.approx(1.0 / (0.3 * 2**0.5))
    assert best_gain(rows[:2], "p") == -1.0


# A run on one's own model and data


def short(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """A reward function as a user writes one."""
    return [-float(len(response)) for response in responses]


def own_files(demo: Path, folder: Path) -> list[str]:
    """Files of a user's run on the model of the demo, and the settings that name them."""
    shutil.copytree(demo / "sft", folder / "model")
    prompts = task.prompts(40, seed=5, split="train")
    write_jsonl(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    write_jsonl(
        folder / "demonstrations.jsonl",
        [{"prompt": row.prompt, "completion": row.completion} for row in task.demonstrations(40, seed=5)],
    )
    write_jsonl(
        folder / "preferences.jsonl",
        [
            {"prompt": pair.prompt, "chosen": pair.response_a, "rejected": pair.response_b}
            for pair in task.comparison_candidates(40, seed=5)
            if pair.response_a != pair.response_b
        ],
    )
    (folder / "config.yaml").write_text(
        f"""
name: mine
threads: 1
device: cpu
model: {folder}/model
data:
  prompts: {folder}/prompts.jsonl
rl:
  training: {{steps: 2, prompts_per_step: 4, max_new_tokens: 12, learning_rate: 1.0e-3}}
evaluation: {{every: 2, best_of: [2], followed_prompts: 2}}
""",
        encoding="utf-8",
    )
    return ["--config", str(folder / "config.yaml"), "--output", str(folder / "runs")]


def test_own_model_with_a_python_reward(demo: Path, tmp_path: Path) -> None:
    arguments = own_files(demo, tmp_path)
    assert main(["run", *arguments, "--set", "reward.function=tests.test_pipeline:short"]) == 0
    run = tmp_path / "runs" / "mine"
    evaluations = rows_of(run, "evaluate")
    assert {row["policy"] for row in evaluations} == {"p3o_v2", "sft"}
    assert all("gold" not in row for row in evaluations)
    assert evaluations[0]["prompts"] == 8, "a fifth of 40 prompts is held out"
    assert (run / "rl" / "p3o_v2" / "model.safetensors").exists()
    assert (run / "report.html").exists()


def test_own_data_through_all_stages(demo: Path, tmp_path: Path) -> None:
    arguments = own_files(demo, tmp_path)
    settings = [
        f"data.demonstrations={tmp_path}/demonstrations.jsonl",
        f"data.preferences={tmp_path}/preferences.jsonl",
        "sft={steps: 2, batch_size: 4, learning_rate: 1.0e-3}",
        "reward.train={steps: 2, batch_size: 4}",
    ]
    assert main(["run", *arguments, *(part for text in settings for part in ("--set", text))]) == 0
    assert (tmp_path / "runs" / "mine" / "reward_model" / "model.safetensors").exists()


def test_own_reward_model(demo: Path, tmp_path: Path) -> None:
    assert main(["run", *own_files(demo, tmp_path), "--set", f"reward.model={demo}/reward_model"]) == 0


BAD = {
    "a missing file": (
        ["data.prompts=nowhere.jsonl", "reward.function=tests.test_pipeline:short"],
        "nowhere.jsonl: cannot be read: no such file",
    ),
    "a missing model": (["model=no/such/model", "reward.function=tests.test_pipeline:short"], "model 'no/such/model'"),
    "an unknown key": (["rl.training.stepps=2"], "did you mean 'steps'"),
    "an unknown algorithm": (["rl.runs.x.algorithm=p4o"], "p4o"),
    "an unknown device": (["device=abacus", "reward.function=tests.test_pipeline:short"], "device: 'abacus'"),
    "no reward": ([], "reward: name a model (--reward-model), a function"),
    "a missing reward function": (["reward.function=tests.test_pipeline:shrt"], "did you mean 'short'"),
    "a reward that raises": (["reward.function=tests.test_pipeline:raises"], "raised ValueError: out of paper"),
    "a reward of the wrong count": (["reward.function=tests.test_pipeline:one"], "returned 1 rewards for 2 responses"),
    "a reward that is NaN": (["reward.function=tests.test_pipeline:nan"], "nan"),
    "prompts too long": (
        ["reward.function=tests.test_pipeline:short", "rl.training.max_new_tokens=120"],
        "exceed the model's limit of 128",
    ),
}


def raises(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    raise ValueError("out of paper")


def one(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [1.0]


def nan(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [float("nan")] * len(responses)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    case: str, demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, message = BAD[case]
    arguments = own_files(demo, tmp_path)
    assert main(["run", *arguments, *(part for text in settings for part in ("--set", text))]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not list(tmp_path.glob("runs/*/rl")), "nothing that looks like a result"


def test_a_malformed_row_is_named_with_its_line(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = own_files(demo, tmp_path)
    with (tmp_path / "prompts.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "half a row\n')
    assert main(["run", *arguments, "--set", "reward.function=tests.test_pipeline:short"]) == 2
    assert "prompts.jsonl:41:" in capsys.readouterr().err


def test_an_existing_run_is_not_overwritten(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (demo / "metrics.jsonl").read_bytes()
    arguments = ["run", "--config", str(demo / "config.yaml"), "--output", str(demo.parent)]
    assert main([*arguments, "--name", demo.name]) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert (demo / "metrics.jsonl").read_bytes() == before
