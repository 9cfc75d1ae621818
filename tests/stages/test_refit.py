"""The loop of online feedback, labelling of own samples, and RL from comparisons alone, through the command line."""

import io
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from p3o.cli import main
from p3o.config import RefitConfig, RunConfig
from p3o.config_feedback import LabellerConfig
from p3o.data.embedded import task
from p3o.data.embedded.gold import gold_reward
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.files import read_jsonl, write_jsonl
from p3o.labeling.answers import Answer
from p3o.labeling.assignment import next_work
from p3o.labeling.judging import label_with_judge
from p3o.labeling.store import Store
from p3o.stages import labelling
from p3o.stages import refit as refit_stage
from p3o.stages.context import RunContext
from p3o.training.faults import NumericalError
from p3o.training.online import OnlineTrainer
from p3o.training.progress import Nowhere, Progress
from p3o.training.scoring import RewardFeedback
from p3o.training.tracking import RunFolder

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
            "training: temperature defines what a response is",
        ),
    ],
)
def test_what_is_missing_is_told(own_model: Path, setting: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["rl", "--model", str(own_model / "model"), "--prompts", str(own_model / "prompts.jsonl")]
    arguments += ["--reward-function", "tests.stages.test_refit:prefer_gold", "--name", "x", "--output", str(own_model)]
    assert main([*arguments, "--set", setting]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("responses", "pairs", "asked"), [(2, 3, 3), (3, 7, 3), (4, 100, 5)])
def test_a_refit_has_all_pairs_of_a_prompt_s_responses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, responses: int, pairs: int, asked: int
) -> None:
    """Of five prompts, each of which has one response twice if there are more than two: all pairs of the others."""
    prompts, seen = [f"p{i}" for i in range(5)], []

    def sampled(_run: Any, _policy: Any, given: list[str], *, responses: int, seed: int) -> list[list[str]]:
        seen.extend(given)
        return [[f"{prompt} {min(k, max(responses - 2, 1))}" for k in range(responses)] for prompt in given]

    monkeypatch.setattr(refit_stage, "sample_texts", sampled)
    folder = RunFolder.create(tmp_path, "x", config="", seed=0, threads=1)
    run = RunContext(RunConfig.model_validate({"device": "cpu"}), folder, Progress(Nowhere()))
    run.__dict__["inputs"] = SimpleNamespace(prompts=prompts, gold=None, conversations={})
    config = RefitConfig(pairs=pairs, responses_per_prompt=responses)
    found = refit_stage.Refits(run, "a", config, last=9)._candidates(nn.Identity(), 1)
    assert len(set(seen)) == len(seen) == asked
    distinct = {2: 2, 3: 2, 4: 3}[responses]
    texts = {prompt: [f"{prompt} {k}" for k in range(distinct)] for prompt in seen}
    assert found == [(p, a, b) for p in seen for a, b in itertools.combinations(texts[p], 2)][:pairs]


class FirstIsBetter:
    """Prefers the first response; of equal lengths neither."""

    def compare(self, prompts: list[str], a: list[str], b: list[str]) -> list[Any]:
        return [SimpleNamespace(preference=0.0 if text == "a3" else 1.0) for text in a]


def wait(monkeypatch: pytest.MonkeyPatch, store: Path, *meanwhile: Callable[[Store], object]) -> labelling.Labelled:
    """What four pairs come to where these things happen, one at each look of the stage at the store."""
    left = list(meanwhile)
    monkeypatch.setattr(labelling.time, "sleep", lambda _: left.pop(0)(Store.open(store)))
    config = LabellerConfig(kind="people", store=str(store))
    pairs = [("p", f"a{i}", f"b{i}") for i in range(4)]
    try:
        return labelling.label(config, pairs, gold=None, scale=1.0, seed=0, folder=store.parent, progress=Progress())
    finally:
        assert not left, "it did not wait so long"


def answers(name: str, *choices: str) -> Callable[[Store], object]:
    """Someone logs in and answers the next pairs."""

    def answer(store: Store) -> None:
        known = {annotator.name: annotator.id for annotator in store.annotators()}
        who = known[name] if name in known else annotator_of(store, name)
        for choice in choices:
            assignment = next_work(store, who or 0).assignment
            assert assignment is not None
            store.label(who or 0, assignment.id or 0, f"{assignment.id}", Answer(choice))

    return answer


def annotator_of(store: Store, name: str) -> int | None:
    found = store.authenticate(store.add_annotator(name))
    return None if found is None else found.id


def test_people_label_what_was_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage waits until the store holds a label for every pair."""
    labelled = wait(monkeypatch, tmp_path / "labels.db", lambda s: label_with_judge(s, FirstIsBetter(), name="someone"))
    assert sorted(labelled.preferences) == [("p", f"a{i}", f"b{i}") for i in range(3)]
    assert (labelled.ties, labelled.unlabelled) == (1, 0)


def test_a_skipped_pair_waits_for_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bob = answers("bob")
    labelled = wait(
        monkeypatch, tmp_path / "labels.db", bob, answers("ada", "skip", "a", "a", "a"), answers("bob", "b")
    )
    assert sorted(labelled.preferences) == [("p", "a1", "b1"), ("p", "a2", "b2"), ("p", "a3", "b3"), ("p", "b0", "a0")]
    assert (labelled.ties, labelled.unlabelled) == (0, 0)


def test_what_everybody_skips_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled = wait(monkeypatch, tmp_path / "labels.db", answers("ada", "skip", "bad"), answers("ada", "skip", "b"))
    assert labelled.preferences == [("p", "b3", "a3")]
    assert (labelled.ties, labelled.unlabelled) == (1, 2)


def test_ties_and_pairs_without_an_answer_are_counted_as_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two people to a pair: tie and tie, a and b, tie and a, skip and skip."""
    Store.open(tmp_path / "labels.db").change_settings(overlap=2)
    both = [
        answers("ada"),
        answers("bob"),
        answers("ada", "tie", "a", "tie", "skip"),
        answers("bob", "tie", "b", "a", "skip"),
    ]
    labelled = wait(monkeypatch, tmp_path / "labels.db", *both)
    assert sorted(labelled.preferences) == [("p", "a1", "b1"), ("p", "a2", "b2"), ("p", "b1", "a1")]
    assert (labelled.ties, labelled.unlabelled) == (1, 1)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("my labels.db", "p3o label --store '{folder}/my labels.db' --annotators"),
        (
            "postgresql://ann:secret@host:5432/labels",
            "p3o label --database-url 'postgresql://ann:***@host:5432/labels' ",
        ),
        (
            "postgresql://host/labels?password=secret&sslmode=require",
            "--database-url 'postgresql://host/labels?sslmode=require'",
        ),
    ],
)
def test_how_to_label_is_told_without_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, told: str
) -> None:
    store = Store.open(tmp_path / "any.db")
    if "://" in place:
        monkeypatch.setattr(labelling, "_open_store", lambda place: store)
    else:
        place = str(tmp_path / place)
    said = io.StringIO()
    monkeypatch.setattr("p3o.labeling.records.settled", lambda store, keys: len(keys))
    config = LabellerConfig(kind="people", store=place)
    labelling.label(config, [("p", "a", "b")], gold=None, scale=1.0, seed=0, folder=tmp_path, progress=Progress(said))
    assert told.format(folder=tmp_path) in said.getvalue()
    assert "secret" not in said.getvalue()


@pytest.mark.slow
def test_stopped_while_it_waits_for_people_and_resumed_equals_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SMALL.replace("    fixed: {algorithm: p3o_v2}\n", "").replace("checkpoints: {every: 1}", "")
    (tmp_path / "small.yaml").write_text(text)
    arguments = ["run", "--config", str(tmp_path / "small.yaml"), "--output", str(tmp_path)]

    def do(name: str, meanwhile: Callable[[Store], object], *more: str) -> int:
        store = tmp_path / f"{name}.db"
        monkeypatch.setattr(labelling.time, "sleep", lambda _: meanwhile(Store.open(store)))
        return main([*arguments, "--set", f"rl.refit.labeller={{kind: people, store: {store}}}", "--name", name, *more])

    def work(store: Store) -> int:
        return label_with_judge(store, FirstIsBetter(), name="someone")

    def asks(store: Store) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    assert do("whole", work) == 0
    capsys.readouterr()
    assert do("stopped", asks) == 143
    assert "pairs were waiting for people; everything is saved; continue with --resume" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints" / "rl" / "refitted").iterdir()] == ["00000002"]
    waiting = Store.open(tmp_path / "stopped.db").verify()["items"]
    assert do("stopped", asks, "--resume") == 143, "asked while it goes on waiting"
    assert Store.open(tmp_path / "stopped.db").verify() == {"items": waiting, "labels": 0, "undone": 0}, (
        "the same pairs"
    )
    assert do("stopped", work, "--resume") == 0
    for file in ("metrics.jsonl", "refits/refitted/2/preferences.jsonl", "rl/refitted/model.safetensors"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert Store.open(tmp_path / "stopped.db").verify() == Store.open(tmp_path / "whole.db").verify()
