"""What the command line prints and returns; the pipeline behind it is a stub that records its calls."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import p3o
from p3o import cli
from p3o.cli import entry
from p3o.cli.stages import STAGES
from p3o.errors import P3OError
from p3o.stopping import Stopped
from p3o.training.tracking import RunFolder


class StubPipeline(SimpleNamespace):
    """Stands in for p3o.pipeline; ``failure`` is raised by the next call."""

    failure: BaseException | None = None

    def __init__(self) -> None:
        super().__init__(runs=[])

    def run(
        self, config: Any, *, folder: RunFolder, stages: Any, progress: Any, resume: bool = False, elsewhere: Any = None
    ) -> None:
        assert not elsewhere, "no engine was asked for"
        self.runs.append((config, folder, stages))
        if self.failure is not None:
            folder.metrics({"stage": "sft", "step": 0})
            raise self.failure
        for stage in stages or STAGES:
            if resume and folder.done(stage):
                continue
            with folder.stage(stage):
                folder.metrics({"stage": stage, "step": 0})


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubPipeline:
    """The stub, with an empty current directory that holds config.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("embedded: {}\nsft: {}\nthreads: 1\n")
    stub = StubPipeline()
    monkeypatch.setattr(p3o, "pipeline", stub, raising=False)
    monkeypatch.setattr("p3o.report.terminal_summary", lambda path: f"[summary of {path}]".upper())
    return stub


def status(name: str) -> str:
    return str(json.loads((Path("runs") / name / "run.json").read_text())["status"])


def test_run_makes_the_folder_and_calls_the_pipeline(
    pipeline: StubPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "--config", "config.yaml", "--set", "seed=7", "--set", "sft.steps=5", "--name", "a"]) == 0
    [(config, folder, stages)] = pipeline.runs
    assert (config.seed, config.sft.steps, stages) == (7, 5, None)
    assert folder.path == Path("runs/a")
    assert folder.record["seed"] == 7
    assert status("a") == "complete"
    assert capsys.readouterr().out == "[SUMMARY OF RUNS/A]\nwritten to runs/a\n"
    assert cli.main(["run", "--config", "runs/a/config.yaml", "--output", "elsewhere"]) == 0
    again = pipeline.runs[1]
    assert again[0] == config.model_copy(update={"name": "a"})
    assert again[1].path == Path("elsewhere/a")


def test_the_last_line_says_what_to_look_at(pipeline: StubPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rl", "--config", "config.yaml", "--name", "a"]) == 0
    assert capsys.readouterr().out == "written to runs/a; for a report, run: p3o report runs/a\n"
    Path("runs/a/report.html").write_text("")
    assert cli.main(["report", "--name", "a"]) == 0
    assert capsys.readouterr().out == "written to runs/a; open runs/a/report.html\n"


def test_a_run_is_overwritten_only_on_request(pipeline: StubPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "--config", "config.yaml", "--name", "a"]
    assert cli.main(arguments) == 0
    assert cli.main(arguments) == 2
    assert (
        "runs/a: already exists and is not empty; choose another --name or pass --overwrite" in capsys.readouterr().err
    )
    assert cli.main([*arguments, "--overwrite"]) == 0


def test_a_run_is_resumed_with_its_own_settings(
    pipeline: StubPipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "_discard_output", lambda: None)
    pipeline.failure = Stopped(15)
    assert cli.main(["run", "--config", "config.yaml", "--set", "seed=7", "--name", "a"]) == 143
    assert status("a") == "interrupted"
    assert cli.main(["run", "--name", "a"]) == 2
    pipeline.failure = None
    assert cli.main(["run", "--name", "a", "--resume", "--set", "seed=8"]) == 2
    assert "seed (7 there, 8 now) differs" in capsys.readouterr().err
    assert cli.main(["run", "--name", "a", "--resume"]) == 0
    assert pipeline.runs[-1][0].seed == 7
    assert status("a") == "complete"
    assert cli.main(["run", "--resume"]) == 2


def test_single_stages_go_on_in_the_folder(pipeline: StubPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sft", "--config", "config.yaml", "--set", "seed=5", "--name", "a"]) == 0
    assert cli.main(["sample", "--name", "a"]) == 0
    assert cli.main(["rl", "--name", "a", "--set", "rl.training.steps=3"]) == 0
    assert cli.main(["report", "--name", "a", "--config", "runs/a/config.yaml"]) == 0
    assert [stages for _, _, stages in pipeline.runs] == [["sft"], ["sample"], ["rl"], ["report"]]
    config = pipeline.runs[-1][0]
    assert (config.seed, config.rl.training.steps, config.name) == (5, 3, "a")
    written = Path("runs/a/config.yaml").read_text()
    assert cli.main(["rl", "--name", "a", "--set", "seed=6"]) == 2
    assert (status("a"), Path("runs/a/config.yaml").read_text()) == ("complete", written)
    assert "its stage 'rl' is already done; choose another --name or pass --overwrite" in capsys.readouterr().err
    assert cli.main(["rl", "--name", "a", "--overwrite"]) == 0


def test_a_report_needs_a_run(pipeline: StubPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report"]) == 2
    assert (
        capsys.readouterr().err == "error: name a run: p3o report runs/NAME; several runs make one page that "
        "compares them\n"
    )


def test_a_stage_needs_a_folder_or_a_configuration(pipeline: StubPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rl"]) == 2
    assert cli.main(["rl", "--name", "none"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: give --name of an existing run, or --config FILE or --model MODEL for a new one",
        "error: runs/none: there is no run (no run.json); check --name and --output, or start a new run with --model or "
        "--config",
    ]


@pytest.mark.parametrize("quick", [False, True])
def test_demo_takes_the_next_free_name(pipeline: StubPipeline, quick: bool) -> None:
    arguments = ["demo", *(["--quick"] if quick else [])]
    assert cli.main(arguments) == 0
    assert cli.main([*arguments, "--seed", "3"]) == 0
    (first, first_folder, stages), (second, second_folder, _) = pipeline.runs
    assert stages is None
    assert first.embedded is not None
    assert (first.seed, second.seed) == (0, 3)
    assert second_folder.path == Path(f"{first_folder.path}-2")
    assert second.rl == first.rl


def test_demo_with_shift_runs_every_algorithm_twice(pipeline: StubPipeline) -> None:
    assert cli.main(["demo", "--reward-shift", "10", "--name", "shift"]) == 0
    [(config, folder, _)] = pipeline.runs
    assert folder.path == Path("runs/shift")
    plain = {name: run for name, run in config.rl.runs.items() if not name.endswith("_shifted")}
    assert {"p3o_v1", "p3o_v2", "ppo", "online_dpo"} <= set(plain)
    for name, run in plain.items():
        assert run.reward_shift == 0
        assert config.rl.runs[f"{name}_shifted"] == run.model_copy(update={"reward_shift": 10.0})


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_gate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], passed: bool, code: int) -> None:
    calls = []

    def run_gate(seeds: int, **settings: Any) -> list[SimpleNamespace]:
        calls.append((seeds, settings["output"], settings["json_path"], settings["quick"]))
        return [
            SimpleNamespace(name="accuracy", wanted=">= 0.85", values=[0.9, 0.87654], passed=True),
            SimpleNamespace(name="steps", wanted="equal", values=[[60], [60, 61]], passed=passed),
        ]

    monkeypatch.setattr(p3o, "gate", SimpleNamespace(run_gate=run_gate), raising=False)
    assert cli.main(["gate", "--seeds", "2", "--json", "gate.json"]) == code
    assert calls == [(2, Path("runs"), Path("gate.json"), False)]
    assert capsys.readouterr().out.splitlines() == [
        "pass  accuracy: 0.9  0.8765 (wanted: >= 0.85)",
        f"{'pass' if passed else 'FAIL'}  steps: [60]  [60, 61] (wanted: equal)",
    ]


def test_bench_frontier(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    stub = SimpleNamespace(main=lambda path, *, full, output: calls.append((path, full, output)))
    monkeypatch.setattr("p3o.bench.frontier", stub, raising=False)
    assert cli.main(["bench", "frontier"]) == 0
    assert cli.main(["bench", "frontier", "--json", "f.json", "--full", "--output", "out"]) == 0
    assert calls == [(None, False, None), (Path("f.json"), True, Path("out"))]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run"], "error: give --config FILE, or --model MODEL and the data files, or --resume"),
        (["run", "--config"], "error: Option '--config' requires an argument"),
        (["run", "--confg", "x"], "error: No such option: --confg"),
        (["rnu"], "error: No such command 'rnu'"),
        (["bench", "fronteer"], "error: No such command 'fronteer'"),
        (["gate", "--seeds", "0"], "error: Invalid value for '--seeds'"),
        (["demo", "--reward-shift", "-1"], "error: Invalid value for '--reward-shift'"),
        (["run", "--config", "none.yaml"], "error: none.yaml: cannot be read: no such file"),
        (["run", "--config", "."], "error: .: cannot be read: it is a folder"),
        (
            ["run", "--config", "config.yaml", "--set", "sed=1"],
            "error: --set sed=1: unknown key 'sed'; did you mean 'seed'?",
        ),
        (["run", "--config", "config.yaml", "--set", "seed"], "error: --set seed: must have the form key=value"),
        (["run", "--config", "config.yaml", "--name", "../x"], "error: --name '../x': not a valid name for a run"),
        (
            ["run", "--config", "config.yaml", "--output", "config.yaml"],
            "cannot be created: a part of the path is a file",
        ),
        (
            ["run", "--config", "config.yaml", "--output", "/proc/no"],
            "error: /proc/no/run: cannot be created: no such file",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    pipeline: StubPipeline, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("failure", "code", "told"),
    [
        (P3OError("a.jsonl:3: bad; mend it"), 2, "error: a.jsonl:3: bad; mend it\n"),
        (P3OError("one\ntwo"), 2, "error: one\nerror: two\n"),
        (OSError(28, "No space left on device", "/tmp/x"), 2, "error: /tmp/x: the disk is full; free some space"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (BrokenPipeError(), 0, ""),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to"),
            2,
            "of memory. Tried to; lower rl.training.micro_batch_t",
        ),
        (KeyError("oops"), 1, "KeyError: 'oops'\nerror: this is a bug in p3o; please report it"),
        (OSError(5, "Input/output error"), 1, "Input/output error\nerror: this is a bug in p3o"),
    ],
)
def test_exit_codes(
    pipeline: StubPipeline,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    code: int,
    told: str,
) -> None:
    monkeypatch.setattr(entry, "_discard_output", lambda: None)  # standard output is pytest's here
    pipeline.failure = failure
    assert cli.main(["run", "--config", "config.yaml", "--name", "a"]) == code
    assert told in capsys.readouterr().err
    assert status("a") == ("interrupted" if code == 130 else "failed")


def command(*arguments: str, **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-m", "p3o", *arguments], text=True, stderr=subprocess.PIPE, **options)


def test_help_and_version_come_at_once_and_without_torch() -> None:
    script = (
        "import sys, p3o.cli\n"
        "for arguments in ([], ['--help'], ['run', '--help'], ['bench', 'frontier', '--help'], ['--version']):\n"
        "    assert p3o.cli.main(arguments) == 0\n"
        "assert not {'torch', 'transformers', 'altair', 'pandas', 'scipy'} & set(sys.modules)"
    )
    before = os.times().children_user
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"p3o {p3o.__version__}\n" in done.stdout
    for name in ("run", "demo", *STAGES, "gate", "bench"):
        assert f" {name} " in done.stdout
    # Processor time, for the wall clock of a busy machine says nothing about us.
    assert os.times().children_user - before < 1.5


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_a_reader_who_leaves_is_no_error(argument: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with command(argument, stdout=writer) as process:
        os.close(writer)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_a_full_device_is_told() -> None:
    with open("/dev/full", "w") as full, command("--version", stdout=full) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.startswith("error: writing: the disk is full")
    assert errors.count("\n") == 1


def test_a_run_that_cannot_start_leaves_the_earlier_one(
    pipeline: StubPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pipeline refuses its input before it calls ``begin``."""
    arguments = ["run", "--config", "config.yaml", "--name", "a"]
    assert cli.main(arguments) == 0
    files = {path: path.read_bytes() for path in Path("runs/a").iterdir()}
    pipeline.run = lambda *_, **__: (_ for _ in ()).throw(P3OError("nowhere.jsonl: no such file"))
    for again in (arguments, ["sft", "--name", "a", "--set", "seed=3"]):
        assert cli.main([*again, "--overwrite"]) == 2
        assert capsys.readouterr().err == "error: nowhere.jsonl: no such file\n"
        assert {path: path.read_bytes() for path in Path("runs/a").iterdir()} == files
