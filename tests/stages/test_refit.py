"""The loop of online feedback, labelling of own samples, and RL from comparisons alone, through the command line."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from p3o.cli import main
from p3o.data.embedded import task
from p3o.data.embedded.gold import gold_reward
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.files import read_jsonl, write_jsonl
from p3o.stages import refit as refit_stage
from p3o.training.faults import NumericalError
from p3o.training.online import OnlineTrainer
from p3o.training.scoring import RewardFeedback

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SMALL = """
embedded: {demonstrations: 128, pairs: 64, prompts: 24}
threads: 1
device: cpu
sft: {steps: 10, learning_rate: 4.0e-3}
reward: {train: {steps: 4, learning_rate: 1.0e-3}}
rl:
  training: {steps: 5, prompts_per_step: 4, max_new_tokens: 8, learning_rate: 4.0e-4}
  refit: {every: 2, pairs: 12}
  runs:
    fixed: {algorithm: p3o_v2}
    refitted: {algorithm: p3o_v2, refit: true}
evaluation: {prompts: 6, every: 5, best_of: [], batch_size: 6}
checkpoints: {every: 1}
"""


def rl_rows(run: Path, name: str) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(run / "metrics.jsonl") if row["stage"] == "rl" and row["run"] == name]


@pytest.mark.slow
def test_the_reward_model_is_refitted_on_all_labels_so_far_also_when_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    arguments = ["run", "--config", str(tmp_path / "small.yaml"), "--output", str(tmp_path)]
    assert main([*arguments, "--name", "whole"]) == 0
    whole = tmp_path / "whole"
    fixed, refitted = rl_rows(whole, "fixed"), rl_rows(whole, "refitted")
    # The same until the first refit; afterwards another reward teaches another policy.
    assert [{**row, "run": ""} for row in fixed[:2]] == [{**row, "run": ""} for row in refitted[:2]]
    assert fixed[2]["length"] == refitted[2]["length"], "sampled before it can differ"
    assert fixed[2]["reward"] != refitted[2]["reward"]

    rows = [row for row in read_jsonl(whole / "metrics.jsonl") if row["stage"] == "refit"]
    assert [row["step"] for row in rows] == [2, 4]
    first = read_jsonl(whole / "preferences.jsonl")
    for number, row in enumerate(rows, start=1):
        pairs = read_jsonl(whole / "refits" / "refitted" / str(number) / "preferences.jsonl")
        assert len(pairs) == row["pairs"] == len(first) + sum(earlier["new"] for earlier in rows[:number])
        assert pairs[0]["chosen"] == first[0]["chosen"]

    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch:
        save = refit_stage.write_jsonl
        patch.setattr(refit_stage, "write_jsonl", lambda path, rows: save(path, rows) or dying(path))

        def dying(path: Path) -> None:
            if path.parent.name.startswith(".2."):
                raise Killed

        with pytest.raises(Killed):
            main([*arguments, "--name", "killed"])
    assert main(["run", "--name", "killed", "--output", str(tmp_path), "--resume"]) == 0
    assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_run_stopped_in_its_last_step_finds_the_reward_model_of_the_last_refit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps with a refit every second: none is made after the fourth."""
    (tmp_path / "small.yaml").write_text(
        SMALL.replace("fixed: {algorithm: p3o_v2}", "").replace("steps: 5,", "steps: 4,")
    )
    arguments = ["run", "--config", str(tmp_path / "small.yaml"), "--output", str(tmp_path)]
    assert main([*arguments, "--name", "whole"]) == 0
    step = OnlineTrainer.step

    def asked_to_stop(trainer: OnlineTrainer) -> dict[str, int | float]:
        if trainer.done == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(OnlineTrainer, "step", asked_to_stop)
        assert main([*arguments, "--name", "stopped"]) == 128 + signal.SIGTERM
    assert main(["run", "--name", "stopped", "--output", str(tmp_path), "--resume"]) == 0
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_going_back_to_before_the_first_refit_goes_back_to_the_first_reward_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refit after step 3 and a fault in step 4 lead back to the checkpoint of step 2."""
    text = SMALL.replace("fixed: {algorithm: p3o_v2}", "").replace("every: 2, pairs", "every: 3, pairs")
    text = text.replace("checkpoints: {every: 1}", "checkpoints: {every: 2}").replace(
        "steps: 5,", "steps: 5, on_fault: rollback,"
    )
    (tmp_path / "small.yaml").write_text(text)
    step, used = OnlineTrainer.step, list[tuple[int, object]]()

    def failing_once(trainer: OnlineTrainer) -> dict[str, int | float]:
        feedback = trainer.rollouts.feedback
        assert isinstance(feedback, RewardFeedback)
        used.append((trainer.done + 1, feedback.scorer))
        if trainer.done == 3 and len(used) == 4:
            raise NumericalError("a fault")
        return step(trainer)

    monkeypatch.setattr(OnlineTrainer, "step", failing_once)
    assert main(["run", "--config", str(tmp_path / "small.yaml"), "--output", str(tmp_path), "--name", "back"]) == 0
    assert [number for number, _ in used] == [1, 2, 3, 4, 3, 4, 5]
    scorers = [scorer for _, scorer in used]
    assert scorers[0] is scorers[2] is scorers[4]
    assert scorers[3] is not scorers[0]
    assert scorers[5] is scorers[6] is not scorers[0]


@pytest.mark.slow
def test_p3o_learns_from_comparisons_alone_and_ppo_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SMALL.replace("reward: {train: {steps: 4, learning_rate: 1.0e-3}}", "reward: {comparison: NAME}")
    text = text.replace("NAME", '"p3o.data.embedded.comparison:gold_preference"').replace(", refit: true", "")
    (tmp_path / "small.yaml").write_text(text)
    arguments = ["run", "--config", str(tmp_path / "small.yaml"), "--output", str(tmp_path), "--name", "relative"]
    assert main(arguments) == 0
    assert not (tmp_path / "relative" / "reward_model").exists()
    assert all("reward" not in row for row in rl_rows(tmp_path / "relative", "fixed"))
    for row in read_jsonl(tmp_path / "relative" / "metrics.jsonl"):
        if row["stage"] == "evaluate":
            assert -1 <= row["reward"] <= 1, "how much it is preferred to the SFT model's own answer"
    assert main([*arguments[:-1], "refused", "--set", "rl.runs.fixed.algorithm=ppo"]) == 2
    assert "rl.runs.fixed: ppo needs a reward for every response" in capsys.readouterr().err


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed=0).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": text} for text in task.prompts(30, seed=0, split="train")])
    return tmp_path


def prefer_gold(prompts: list[str], a: list[str], b: list[str]) -> list[float]:
    """A labeller of whole pairs who sees ties."""
    gold_a, gold_b = gold_reward(prompts, a), gold_reward(prompts, b)
    return [float((x > y) - (x < y)) for x, y in zip(gold_a, gold_b, strict=True)]


@pytest.mark.parametrize("labelled", [False, True])
def test_own_prompts_are_sampled_and_labelled(
    own_model: Path, labelled: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    labeller = "{kind: function, function: 'tests.stages.test_refit:prefer_gold'}" if labelled else "null"
    arguments = ["sample", "--model", str(own_model / "model"), "--prompts", str(own_model / "prompts.jsonl")]
    arguments += ["--set", "rl.training.max_new_tokens=6", "--set", "evaluation.prompts=4"]
    arguments += ["--set", f"sampling={{prompts: 9, responses_per_prompt: 3, labeller: {labeller}}}"]
    assert main([*arguments, "--output", str(own_model), "--name", "own"]) == 0
    pairs = read_jsonl(own_model / "own" / "pairs.jsonl")
    (row,) = read_jsonl(own_model / "own" / "metrics.jsonl")
    assert 0 < len(pairs) == row["pairs"] <= 27
    assert all(pair["response_a"] != pair["response_b"] for pair in pairs)
    preferences = own_model / "own" / "preferences.jsonl"
    if labelled:
        assert row["labelled"] + row["ties"] == len(pairs)
        for preference in read_jsonl(preferences):
            better, worse = gold_reward([preference["prompt"]] * 2, [preference["chosen"], preference["rejected"]])
            assert better > worse
    else:
        assert not preferences.exists()
        assert "p3o label --pairs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("sampling={labeller: {kind: people}}", "labeller people needs store"),
        ("sampling={labeller: {kind: judge}}", "labeller judge needs judge"),
        ("rl.runs={a: {algorithm: p3o_v2, refit: true}}", "rl.runs.a.refit: the reward is given"),
        (
            "rl.runs={a: {algorithm: ppo, training: {temperature: 0.7}}}",
            "training: temperature says what a response is",
        ),
    ],
)
def test_what_is_missing_is_told(own_model: Path, setting: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["rl", "--model", str(own_model / "model"), "--prompts", str(own_model / "prompts.jsonl")]
    arguments += ["--reward-function", "tests.stages.test_refit:prefer_gold", "--name", "x", "--output", str(own_model)]
    assert main([*arguments, "--set", setting]) == 2
    assert told in capsys.readouterr().err


def test_people_label_what_was_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage waits until the store holds a label for every pair; two come while it waits."""
    from p3o.config import LabellerConfig
    from p3o.labeling.judging import label_with_judge
    from p3o.labeling.store import Store
    from p3o.stages import labelling
    from p3o.training.progress import Progress

    store = tmp_path / "labels.db"
    pairs = [("p", f"a{i}", f"b{i}") for i in range(4)]

    class FirstIsBetter:
        def compare(self, prompts: list[str], a: list[str], b: list[str]) -> list[Any]:
            return [type("V", (), {"preference": 0.0 if text == "a3" else 1.0})() for text in a]

    def work(seconds: float) -> None:
        label_with_judge(Store.open(store), FirstIsBetter(), name="someone")

    monkeypatch.setattr(labelling.time, "sleep", work)
    labelled = labelling.label(
        LabellerConfig(kind="people", store=str(store)),
        pairs,
        gold=None,
        scale=1.0,
        seed=0,
        folder=tmp_path,
        progress=Progress(),
    )
    assert sorted(labelled.preferences) == pairs[:3]
    assert (labelled.ties, labelled.unlabelled) == (1, 0)
