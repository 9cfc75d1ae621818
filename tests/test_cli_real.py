"""Stages by themselves on a model and files of one's own, without any configuration file; nothing is stubbed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.feedback.judge.server import prefer_longer, server
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from p3o.cli import main
from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.files import read_jsonl, write_jsonl

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained model, data files, and a reward in Python."""
    place = tmp_path_factory.mktemp("place")
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed=0).save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    rows = [(row.prompt, row.completion) for row in task.demonstrations(24, seed=0, split="train")]
    write_jsonl(place / "d.jsonl", [{"prompt": prompt, "completion": text} for prompt, text in rows])
    write_jsonl(
        place / "pairs.jsonl",
        [{"prompt": prompt, "chosen": text, "rejected": "No ."} for prompt, text in rows],
    )
    write_jsonl(place / "prompts.jsonl", [{"prompt": prompt} for prompt, _ in rows])
    (place / "rewards_of_the_doors.py").write_text(
        "def brief(prompts, responses):\n    return [-float(len(response)) for response in responses]\n"
    )
    return place


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


RL = (
    "rl --model model --prompts prompts.jsonl --reward-function rewards_of_the_doors:brief --steps 2 "
    "--prompts-per-step 2 "
    "--max-new-tokens 8 --learning-rate 1e-3 --set evaluation.every=1"
)


def _words(command: str) -> list[str]:
    return command.split()


def front_matter(folder: Path) -> dict:
    return ModelCard.load(folder / "README.md").data.to_dict()


def test_sft_then_rl_in_the_same_folder(place: Path) -> None:
    assert (
        main(
            [
                "sft",
                "--model",
                "model",
                "--demonstrations",
                "d.jsonl",
                "--steps",
                "2",
                "--batch-size",
                "4",
                "--name",
                "a",
                "--json",
                "a.json",
            ]
        )
        == 0
    )
    AutoModelForCausalLM.from_pretrained("runs/a/sft")
    figures = json.loads(Path("a.json").read_text())
    assert figures["status"] == "complete"
    assert {"loss", "heldout_loss"} <= set(figures["metrics"]["sft"])
    card = Path("runs/a/sft/README.md").read_text()
    assert front_matter(Path("runs/a/sft")) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["p3o", "sft", "arxiv:2310.00212"],
    }
    assert f"| {figures['metrics']['sft']['heldout_loss']:.4f} |" in card
    more = "rl --name a --prompts-per-step 2 --steps 1 --max-new-tokens 8 --reward-function rewards_of_the_doors:brief"
    assert main([*more.split(), "--set", "data.prompts=prompts.jsonl"]) == 0
    start = [
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in ("model", "runs/a/sft", "runs/a/rl/p3o_v2")
    ]
    moved = [sum((a[name] - b[name]).abs().sum().item() for name in a) for a, b in ((start[0], start[1]), start[1:])]
    assert moved[0] > 0
    assert 0 < moved[1] < moved[0], "RL began from the fine-tuned model"


def test_reward_by_itself() -> None:
    assert (
        main(
            [
                "reward",
                "--model",
                "model",
                "--preferences",
                "pairs.jsonl",
                "--steps",
                "2",
                "--batch-size",
                "4",
                "--name",
                "b",
            ]
        )
        == 0
    )
    assert AutoModelForSequenceClassification.from_pretrained("runs/b/reward_model").num_labels == 1
    assert front_matter(Path("runs/b/reward_model"))["pipeline_tag"] == "text-classification"
    assert "| accuracy labels |" in Path("runs/b/reward_model/README.md").read_text()


def test_rl_then_evaluation_with_tensorboard_beside_metrics() -> None:
    assert main([*RL.split(), "--name", "c", "--set", "tracking=[tensorboard]"]) == 0
    rows = read_jsonl(Path("runs/c/metrics.jsonl"))
    events = EventAccumulator("runs/c/tensorboard/rl/p3o_v2")
    events.Reload()
    trained = [row for row in rows if row["stage"] == "rl"]
    assert [event.step for event in events.Scalars("rl/reward")] == [1, 2]
    for name in ("reward", "kl_k1", "loss", "updates"):
        recorded = [event.value for event in events.Scalars(f"rl/{name}")]
        # Event files hold 32 bits.
        assert recorded == [torch.tensor(row[name], dtype=torch.float32).item() for row in trained]
    assert main(["evaluate", "--name", "c", "--json", "c.json"]) == 0
    figures = json.loads(Path("c.json").read_text())["metrics"]
    assert set(figures) == {"rl/p3o_v2", "evaluate/p3o_v2", "evaluate/sft", "evaluate/sft/greedy"} | {
        f"evaluate/sft/best_of_{n}" for n in (4, 16)
    }
    assert figures["rl/p3o_v2"]["step"] == 2
    card = Path("runs/c/rl/p3o_v2/README.md").read_text()
    assert front_matter(Path("runs/c/rl/p3o_v2"))["tags"] == ["p3o", "rlhf", "p3o_v2", "arxiv:2310.00212"]
    assert "win rate against the starting model by the reward" in card
    recipe = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert recipe["rl"]["training"]["steps"] == 2
    assert recipe["rl"]["runs"]["p3o_v2"]["algorithm"] == "p3o_v2"


def test_a_dry_run_writes_nothing_and_shows_the_masks(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*"))
    command = "sft --model model --demonstrations d.jsonl --batch-size 4 --name dry --dry-run"
    assert main(command.split()) == 0
    shown = capsys.readouterr().out
    assert sorted(place.rglob("*")) == before
    row = read_jsonl(Path("d.jsonl"))[0]  # another one is held out
    lines = shown.splitlines()
    [prompt] = [line.partition("│ ")[2] for line in lines if line.startswith("prompt   │")]
    [response] = [line.partition("┃ ")[2] for line in lines if line.startswith("response ┃")]
    assert prompt.replace("·", "").replace("↵", "\n") == row["prompt"]
    assert response.replace("·", "") == f"{row['completion']}<eos>"
    tokenizer = build_tokenizer()
    trained = len(tokenizer(row["completion"])["input_ids"]) + 1
    assert f"{trained} response tokens trained on" in shown
    assert len(response.split("·")) == trained
    assert "5 updates on 23 demonstrations" in " ".join(shown.split())


def test_a_dry_run_of_rl_tells_what_a_step_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RL.split(), "--responses-per-prompt", "4", "--dry-run", "--json", "dry.json"]) == 0
    figures = json.loads(Path("dry.json").read_text())
    [stage] = figures["outlooks"]
    assert stage["does"] == "steps: p3o_v2 2; on 20 prompts"
    # 2 prompts of 4 responses of at most 8 tokens; twice over them in a step.
    assert (stage["estimate"]["sampled_tokens"], stage["estimate"]["tokens"]) == (64, 128)
    # Weights, gradients and two moments of the policy, and the weights of the reference, 4 bytes each.
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained("model").parameters())
    assert figures["model"]["parameters"] == parameters
    assert stage["estimate"]["weight_bytes"] == parameters * 8
    assert stage["estimate"]["gradient_bytes"] == parameters * 4
    assert parameters * 8 < stage["estimate"]["optimiser_bytes"] < parameters * 8.1
    assert "the response is sampled" in capsys.readouterr().out


def test_a_dry_run_counts_processes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of policy and reference in shards, halves; whole copies of both while they are evaluated; one process tells."""
    asked = [*RL.split(), "--dry-run", "--json", "dry.json", "--set", "parallel.processes=2"]
    assert main(asked) == 0
    assert (
        "rl: each of the 2 processes holds complete copies of the models; if all run on one host, it needs 2 times this memory"
        in capsys.readouterr().out
    )
    [whole] = json.loads(Path("dry.json").read_text())["outlooks"]
    assert main([*asked, "--set", "parallel.mode=fsdp"]) == 0
    shown = capsys.readouterr().out
    [shared] = json.loads(Path("dry.json").read_text())["outlooks"]
    assert shared["processes"] == {"count": 2, "sharded": True}
    assert 2 * shared["estimate"]["weight_bytes"] == pytest.approx(whole["estimate"]["weight_bytes"], rel=0.05)
    assert shared["estimate"]["gathered_bytes"] > 0 == whole["estimate"]["gathered_bytes"]
    assert shared["estimate"]["tokens"] == whole["estimate"]["tokens"]
    assert "rl: each of the 2 processes holds" in shown
    assert "of shards (1/2 of weights, gradients and moments)" in shown
    Path("dry.json").unlink()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(asked) == 0
    assert not Path("dry.json").exists()
    assert "dry run" not in capsys.readouterr().out
    assert main([*asked, "--set", "parallel.processes=4"]) == 2
    assert "but WORLD_SIZE is 2; make the two numbers equal" in capsys.readouterr().err


def test_a_dry_run_tells_what_is_not_there_yet_and_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "sft",
                "--model",
                "model",
                "--demonstrations",
                "d.jsonl",
                "--steps",
                "1",
                "--batch-size",
                "4",
                "--name",
                "e",
            ]
        )
        == 0
    )
    before = Path("runs/e/config.yaml").read_bytes()
    assert main(["sft", "--name", "e", "--dry-run"]) == 0
    assert "already done; --overwrite repeats it" in " ".join(capsys.readouterr().out.split())
    command = (
        "rl --name e --prompts-per-step 2 --dry-run --set data.prompts=prompts.jsonl --set data.preferences=pairs.jsonl"
    )
    assert main(command.split()) == 0
    assert "reward_model does not exist yet, run `p3o reward` first" in " ".join(capsys.readouterr().out.split())
    assert Path("runs/e/config.yaml").read_bytes() == before


def test_a_dry_run_counts_pairs_that_are_to_be_sampled(capsys: pytest.CaptureFixture[str]) -> None:
    """All pairs of 3 responses to 9 prompts, in batches of 5; a pair is its prompt and two responses of at most 8 tokens."""
    labeller = {"kind": "function", "function": "rewards_of_the_doors:brief"}
    sampling = json.dumps({"prompts": 9, "responses_per_prompt": 3, "labeller": labeller})
    start = "--model model --prompts prompts.jsonl --dry-run --json dry.json --set rl.training.prompts_per_step=2"
    asked = ["run", *start.split(), "--set", f"sampling={sampling}", "--set", "reward.train.batch_size=5"]
    assert main([*asked, "--set", "rl.training.max_new_tokens=8", "--set", "evaluation.prompts=4"]) == 0
    does = {stage["stage"]: stage for stage in json.loads(Path("dry.json").read_text())["outlooks"]}
    assert does["sample"]["does"] == "at most 27 pairs, labelled (function)"
    assert does["reward"]["does"] == "5 updates on 27 pairs at most"
    tokenizer = build_tokenizer()
    longest = max(len(tokenizer(row["prompt"])["input_ids"]) for row in read_jsonl(Path("prompts.jsonl")))
    assert does["reward"]["estimate"]["tokens"] == 5 * (longest + 16)
    sampling = json.dumps({"prompts": 100, "responses_per_prompt": 2})
    command = ["sample", "--model", "model", "--prompts", "prompts.jsonl", "--dry-run", "--set", f"sampling={sampling}"]
    assert main([*command, "--set", "evaluation.prompts=4", "--json", "dry.json"]) == 0
    [stage] = json.loads(Path("dry.json").read_text())["outlooks"]
    assert stage["does"] == "at most 20 pairs, to be labelled with p3o label"
    command = [
        "sample",
        "--set",
        "embedded={}",
        "--set",
        "sft={}",
        "--set",
        "reward.function=rewards_of_the_doors:brief",
    ]
    assert main([*command, "--dry-run"]) == 0
    assert "skipped: no reward model is trained (" in " ".join(capsys.readouterr().out.split())


def test_a_dry_run_reads_a_configuration_that_is_code_where_code_is_trusted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place / "with_code"
    shutil.copytree(place / "model", folder)
    code = "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n\n\n"
    code += "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    (folder / "own.py").write_text(f"from transformers import LlamaConfig, LlamaForCausalLM\n\n\n{code}")
    settings = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    settings |= {"model_type": "own", "architectures": ["Own"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(settings))
    asked = [*RL.replace("--model model", "--model with_code").split(), "--dry-run"]
    assert main([*asked, "--set", "trust_remote_code=true"]) == 0
    assert "steps: p3o_v2 2; on 20 prompts" in " ".join(capsys.readouterr().out.split())
    assert main(asked) == 2
    assert "contains custom code" in capsys.readouterr().err


def test_a_dry_run_refuses_what_the_run_would_refuse(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    assert main(_words("sft --model model --demonstrations broken.jsonl --name f --dry-run")) == 2
    assert capsys.readouterr().err.startswith("error: broken.jsonl:2: no column 'completion'")
    assert main([*RL.split(), "--max-new-tokens", "120", "--dry-run"]) == 2
    assert "exceed the model's limit of 128" in capsys.readouterr().err


def test_samples_over_the_steps(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*RL.split(), "--name", "g"]) == 0
    rows = read_jsonl(Path("runs/g/samples.jsonl"))
    monkeypatch.setenv("COLUMNS", "400")
    capsys.readouterr()
    assert main(["samples", "g"]) == 0
    shown = capsys.readouterr().out
    assert all(row["response"].strip() in shown for row in rows)
    assert main(_words("samples g --prompt 0 --export one.jsonl")) == 0
    assert [row["step"] for row in read_jsonl(Path("one.jsonl"))] == [0, 1, 2]
    assert main(["samples", "g", "--step", "9"]) == 2
    assert "--step 9: not among the samples of runs/g; recorded are 0, 1, 2" in capsys.readouterr().err


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder: its bytes, and when it was written."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


SFT = "sft --model model --demonstrations d.jsonl --steps 1 --batch-size 4"


def test_a_dry_run_writes_nothing_at_all(place: Path) -> None:
    """Not even what a run would mend or keep: half a line of a process that may still write, or a judge's answers."""
    assert main([*_words(SFT), "--name", "h"]) == 0
    with Path("runs/h/metrics.jsonl").open("a") as file:
        file.write('{"stage": "rl", "st')
    Path("runs/h/mine.jsonl").write_text(
        '{"prompt": "Human: a\\n\\nAssistant:"}\n{"prompt": "Human: b\\n\\nAssistant:"}'
    )
    before = contents(place)
    with server(lambda question, _: prefer_longer(question)) as (url, log):
        settings = {"kind": "openai", "model": "judge", "base_url": url, "backoff": 0.001}
        judged = ["--set", f"reward.judge={json.dumps(settings)}", "--set", "data.prompts=prompts.jsonl", "--dry-run"]
        assert main(["rl", "--name", "h", *judged]) == 0
        assert log.requests, "the judge is tried"
    assert main([*_words(SFT), "--name", "h", "--overwrite", "--dry-run"]) == 0
    assert main(["rl", "--name", "h", "--set", "data.prompts=nowhere.jsonl", "--dry-run"]) == 2
    assert contents(place) == before


RUN = (
    "run --model model --prompts prompts.jsonl --reward-function rewards_of_the_doors:brief --name i --overwrite "
    "--set rl.training.steps=1 --set rl.training.prompts_per_step=2 --set rl.training.max_new_tokens=8 "
    "--set evaluation.prompts=4 --set evaluation.best_of=[]"
)
CANNOT_START = {
    "--prompts nowhere.jsonl": "nowhere.jsonl: cannot be read",
    "--reward-function rewards_of_the_doors:breif": "did you mean 'brief'",
    "--set tracking=[wandb] --set tracking_online=true": "tracking_online: HF_HUB_OFFLINE is set",
    "--set rl.training.max_new_tokens=120": "exceed the model's limit of 128",
}
INSIDE = {
    "--set model=runs/i/rl/p3o_v2": "model: {place}/runs/i/rl/p3o_v2 is inside the folder that --overwrite would empty",
    "--set data.heldout_prompts=runs/i/mine.jsonl": "runs/i/mine.jsonl is inside the folder that --overwrite "
    "would empty",
}


@pytest.mark.slow
def test_a_run_that_cannot_start_replaces_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(_words(RUN)) == 0
    kept = place / "runs" / "i"
    write_jsonl(kept / "mine.jsonl", [{"prompt": f"Human: {i}\n\nAssistant:"} for i in range(4)])
    before = contents(kept)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for changed, told in (CANNOT_START | INSIDE).items():
        assert main([*_words(RUN), *_words(changed)]) == 2
        assert told.format(place=place) in capsys.readouterr().err
        assert contents(kept) == before, "not a byte of the earlier run"
    assert main(_words("rl --name i --overwrite --prompts nowhere.jsonl")) == 2
    assert contents(kept) == before, "nor its settings and its status"
    assert main([*_words(RUN), "--set", "model=runs/i/rl/p3o_v2", "--dry-run"]) == 2
    assert "is inside the folder that --overwrite would empty" in capsys.readouterr().err
    assert main([*_words(RUN), "--seed", "3"]) == 0
    assert not (kept / "mine.jsonl").exists()
    assert yaml.safe_load((kept / "config.yaml").read_text())["seed"] == 3
    assert (kept / "rl" / "p3o_v2" / "model.safetensors").exists()
