"""The options that stand for settings: held to the schema, resolved as they read, and shown without importing torch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import p3o
from p3o.algorithms import ALGORITHMS
from p3o.algorithms.p3o import P3OConfig
from p3o.cli import main
from p3o.cli.options import ALGORITHM_SETTINGS, STAGE_OPTIONS, SettingOption
from p3o.config import DATA_READ_BY, DataConfig, RunConfig
from p3o.config_keys import models_in, schema_keys
from p3o.pipeline import STAGES
from p3o.stages.context import STAGE_ORDER

SCHEMA = {key.dotted: key for key in schema_keys(RunConfig)}
WORDS = {int: "integer", float: "number", str: "text"}
KEYED = [(stage, option) for stage, options in STAGE_OPTIONS.items() for option in options if option.key]


@pytest.mark.parametrize(("stage", "option"), KEYED, ids=[f"{stage} --{option.flag}" for stage, option in KEYED])
def test_every_option_is_a_key_with_the_schema_s_type_and_default(stage: str, option: SettingOption) -> None:
    key = SCHEMA[option.key]
    if option.flag == "schedule":
        assert option.help.rstrip(".").endswith(f": {key.type.replace(', cosine', ' or cosine')}")
    elif option.flag == "engine":
        assert f": {key.type.replace(', ', ', or ')} " in option.help
    elif key.kind == "value":
        assert key.type.startswith(WORDS[option.type])
    else:
        assert key.dotted.startswith("data.")
    assert option.default == (None if key.default is None else str(key.default))


def test_options_of_algorithms_show_the_defaults_of_p3o() -> None:
    assert {option.flag: option.default for option in ALGORITHM_SETTINGS} == {
        name: str(P3OConfig.model_fields[name].default) for name in ("beta", "epsilon")
    }
    assert RunConfig().rl.runs["p3o_v2"].algorithm == "p3o_v2"


def test_the_tables_of_stages_agree() -> None:
    assert tuple(STAGES) == STAGE_ORDER
    assert set(STAGE_OPTIONS) == {*STAGES, "run"}
    assert set(DATA_READ_BY) == {
        name for name in DataConfig.model_fields if models_in(DataConfig.model_fields[name].annotation)
    }
    assert all(readers <= set(STAGES) for readers in DATA_READ_BY.values())


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations that reached the pipeline, which is a stub here; an empty current directory."""
    seen: list[Any] = []

    def run(
        config: RunConfig, *, folder: Any, stages: Any, progress: Any, resume: bool = False, elsewhere: Any = None
    ) -> None:
        seen.append(config)
        for stage in stages or STAGES:
            if resume and folder.done(stage):
                continue
            with folder.stage(stage):
                folder.metrics({"stage": stage, "step": 0})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("p3o.report.terminal_summary", str)
    monkeypatch.setattr(p3o, "pipeline", SimpleNamespace(run=run), raising=False)
    return seen


def test_a_stage_runs_without_any_file(runs: list[Any]) -> None:
    command = (
        "rl --model m --prompts p.jsonl --reward-function rewards:brief --algorithm p3o_v1 --beta 0.02 --epsilon 0.3"
    )
    settings = "--learning-rate 1e-5 --steps 7 --prompts-per-step 8 --responses-per-prompt 4 --max-new-tokens 9"
    more = "--temperature 0.7 --seed 5 --device cpu --name first"
    assert main([*command.split(), *settings.split(), *more.split()]) == 0
    [config] = runs
    training = config.rl.training
    assert (config.model, str(config.data.prompts), config.reward.function) == ("m", "p.jsonl", "rewards:brief")
    assert {name: run.model_dump() for name, run in config.rl.runs.items()} == {
        "p3o_v1": {
            "algorithm": "p3o_v1",
            "settings": {"beta": 0.02, "epsilon": 0.3},
            "reward_shift": 0.0,
            "refit": False,
            "training": {},
        }
    }
    assert (training.learning_rate, training.steps, training.prompts_per_step) == (1e-5, 7, 8)
    assert (training.responses_per_prompt, training.max_new_tokens, training.temperature) == (4, 9, 0.7)
    assert (config.seed, config.device, config.name, config.sft) == (5, "cpu", "first", None)
    assert Path("runs/first/config.yaml").is_file()


@pytest.mark.parametrize(
    "command",
    [
        "sft --model m --demonstrations d.jsonl",
        "reward --model m --preferences p.jsonl",
        "rl --model m --prompts p.jsonl --reward-model r",
        "evaluate --model m --heldout-prompts p.jsonl --reward-model r",
        "run --model m --prompts p.jsonl --demonstrations d.jsonl --preferences p.jsonl",
    ],
)
def test_a_stage_asks_only_for_its_own_inputs(runs: list[Any], command: str) -> None:
    assert main(command.split()) == 0
    assert main(command.split()) == 0, "a second run takes the next free name"
    assert [config.name for config in runs] == ["run", "run-2"]
    assert (runs[0].sft is not None) == ("demonstrations" in command)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("sft --model m", "error: data.demonstrations: name a file or data set of demonstrations (--demonstrations)"),
        ("reward --model m", "error: data.preferences: name a file or data set of preferences (--preferences)"),
        ("rl --model m --reward-model r", "error: data.prompts: name a file or data set of prompts (--prompts)"),
        ("rl --model m --prompts p", "error: reward: name a model (--reward-model)"),
        (
            "evaluate --model m --reward-model r",
            "error: data.heldout_prompts: name a file or data set of prompts (--heldout-prompts), or",
        ),
        ("rl --prompts p.jsonl", "error: give --name of an existing run, or --config FILE or --model MODEL"),
        ("rl --name no --steps 3", "error: runs/no: there is no run"),
        ("rl --model m --algorithm p4o", "error: --algorithm p4o: 'rl.runs': unknown algorithm 'p4o'; known: p3o_v1"),
        (
            "rl --model m --algorithm ppg --epsilon 1",
            "error: --epsilon 1.0: 'rl.runs.ppg.settings.epsilon': ppg has no such setting; known: beta",
        ),
        ("rl --model m --steps 0", "error: --steps 0: 'rl.training.steps' should be greater than 0; given 0"),
        ("rl --model m --steps few", "error: Invalid value for '--steps'"),
        ("rl --model m --stepps 1", "error: No such option: --stepps"),
        ("sft --private --model m --demonstrations d", "error: --private: has no effect without --push-to-hub"),
        (
            "rl --model m --prompts p --reward-model r --json no/x.json",
            "error: --json no/x.json: its folder does not exist",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(
    runs: list[Any], capsys: pytest.CaptureFixture[str], command: str, told: str
) -> None:
    assert main(command.split()) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(told)
    assert shown.err.count("\n") == 1
    assert not Path("runs").exists()
    assert runs == []


def test_an_algorithm_of_the_file_keeps_its_settings_and_gets_those_that_are_given(runs: list[Any]) -> None:
    Path("c.yaml").write_text(
        "{model: m, data: {prompts: p}, reward: {model: r}, rl: {runs: {"
        "a: {algorithm: ppo, settings: {lam: 0.9}}, b.1: {algorithm: ppo}, c: {algorithm: p3o_v1}}}}"
    )
    assert main(["rl", "--config", "c.yaml", "--algorithm", "ppo", "--beta", "0.5", "--name", "x"]) == 0
    assert {name: (run.algorithm, run.settings) for name, run in runs[0].rl.runs.items()} == {
        "a": ("ppo", {"lam": 0.9, "beta": 0.5}),
        "b.1": ("ppo", {"beta": 0.5}),
    }
    assert (
        main(["rl", "--config", "c.yaml", "--beta", "0.5", "--set", "rl.runs.c.settings.beta=0.25", "--name", "y"]) == 0
    )
    assert [run.settings["beta"] for run in runs[1].rl.runs.values()] == [0.5, 0.5, 0.25], "--set has the last word"


def test_an_option_holds_for_runs_that_say_otherwise_in_the_file(runs: list[Any]) -> None:
    Path("c.yaml").write_text(
        "{model: m, data: {prompts: p}, reward: {model: r}, rl: {training: {learning_rate: 1.0e-3}, runs: {"
        "a: {algorithm: ppo, training: {learning_rate: 2.0e-3, steps: 7}}, b: {algorithm: p3o_v1}}}}"
    )
    assert main(["rl", "--config", "c.yaml", "--learning-rate", "4e-3", "--name", "x"]) == 0
    found = [(runs[0].rl.training_of(name).learning_rate, runs[0].rl.training_of(name).steps) for name in ("a", "b")]
    assert found == [(4e-3, 7), (4e-3, 100)]
    pinned = ["--set", "rl.runs.a.training.learning_rate=3e-3"]
    assert main(["rl", "--config", "c.yaml", "--learning-rate", "4e-3", *pinned, "--name", "y"]) == 0
    assert runs[1].rl.training_of("a").learning_rate == 3e-3, "--set has the last word"


def test_a_later_stage_goes_on_with_the_folder_s_settings(runs: list[Any]) -> None:
    assert main(["sft", "--model", "m", "--demonstrations", "d.jsonl", "--steps", "4", "--name", "a"]) == 0
    assert main(["rl", "--name", "a", "--set", "data.prompts=p.jsonl", "--reward-function", "r:f", "--steps", "9"]) == 0
    config = runs[1]
    assert (config.model, config.sft.steps, config.rl.training.steps) == ("m", 4, 9)


def test_a_resumed_run_keeps_its_settings(runs: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    command = "run --model m --prompts p.jsonl --reward-function r:f --seed 3 --name a"
    assert main(command.split()) == 0
    assert main(["run", "--name", "a", "--resume", "--algorithm", "p3o_v2", "--seed", "3", "--prompts", "p.jsonl"]) == 0
    assert runs[1] == runs[0]
    assert main(["run", "--name", "a", "--resume", "--seed", "4"]) == 2
    assert capsys.readouterr().err.startswith("error: --resume: seed (3 there, 4 now) differs from runs/a/config.yaml")
    assert main(["rl", "--name", "a", "--resume"]) == 2
    assert "its stage 'rl' is already done" in capsys.readouterr().err
    assert main(["run", "--resume"]) == 2
    assert "--resume: give --name of the run that was stopped" in capsys.readouterr().err


def test_json_has_the_final_figures(runs: list[Any], tmp_path: Path) -> None:
    assert main(["sft", "--model", "m", "--demonstrations", "d.jsonl", "--name", "a", "--json", "f.json"]) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["status"] == "complete"
    assert (figures["name"], figures["folder"], figures["seed"]) == ("a", "runs/a", 0)
    assert list(figures["seconds"]) == ["sft"]
    assert figures["metrics"] == {"sft": {"stage": "sft", "step": 0}}


def test_help_all_shows_every_key_and_every_algorithm_s_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["rl", "--help-all"]) == 0
    shown = capsys.readouterr().out
    for key in SCHEMA.values():
        [line] = [line for line in shown.splitlines() if line.split()[:1] == [key.dotted] and key.type in line][:1]
        assert key.description in line
        if key.kind == "value" and not key.required:
            assert json.dumps(key.default, ensure_ascii=False) in line
    for name, entry in ALGORITHMS.items():
        section = shown.split(f"with algorithm: {name} ")[1].split("with algorithm:")[0]
        assert all(f" {setting} " in section for setting in entry.config.model_fields)


def test_help_of_every_stage_comes_at_once_and_without_torch() -> None:
    script = (
        "import sys, p3o.cli\n"
        f"for stage in {list(STAGE_OPTIONS)!r}:\n"
        "    assert p3o.cli.main([stage, '--help']) == 0\n"
        "assert not {'torch', 'transformers', 'altair', 'pandas', 'scipy'} & set(sys.modules)"
    )
    before = os.times().children_user
    environment = os.environ | {"COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "K, responses sampled per prompt. (default: 2)" in done.stdout
    # Processor time, for the wall clock of a busy machine says nothing about us.
    assert os.times().children_user - before < 2.0
