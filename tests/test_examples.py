"""The examples run, and what they train gets better at what they reward."""

import importlib.util
import itertools
import json
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
import torch

from p3o.algorithms import Algorithm, make_algorithm
from p3o.algorithms.base import AlgorithmConfig
from p3o.config import RunConfig
from p3o.config_loading import load_config
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.data.reading import read_examples
from p3o.feedback.judge import JudgeConfig, open_judge
from p3o.inputs import KINDS
from p3o.types import Experience

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained model of the embedded task, as a folder of transformers."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(name).name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_custom_loop_raises_its_reward(model: str) -> None:
    rewards = [reward for reward, _ in load("custom_loop").train(model, steps=12, learning_rate=5e-3)]
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 200, "sampling alone moves these sums by less than 100"


def test_custom_loop_is_the_library_s_first_step(model: str) -> None:
    """Before its first update the loss is that of P3O-V2 at ratio 1: nothing to gain yet, 0."""
    [(_, loss)] = load("custom_loop").train(model, steps=1, updates=1)
    assert loss == 0.0


def test_custom_algorithm_fulfils_the_protocol_and_learns(model: str) -> None:
    module = load("custom_algorithm")
    assert isinstance(module.SignedPairs(AlgorithmConfig()), Algorithm)
    rows = module.train(model, steps=3)
    assert len(rows) == 3
    assert rows[-1]["kl_k1"] != 0.0, "the policy has moved"


def test_custom_algorithm_is_ppg_on_signs() -> None:
    """On-policy, with gaps that are ±1 already, it has the gradient of PPG."""
    torch.manual_seed(1)
    logprobs = (-torch.rand(2, 2, 3, dtype=torch.float64)).requires_grad_()
    gaps = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64).expand(2, 2, 2)
    experience = Experience(
        response_mask=torch.ones(2, 2, 3, dtype=torch.bool),
        behaviour_logprobs=logprobs.detach(),
        reference_logprobs=-torch.rand(2, 2, 3, dtype=torch.float64),
        reward_gaps=gaps,
        rewards=None,
        age=torch.zeros(2, dtype=torch.long),
    )
    own = load("custom_algorithm").SignedPairs(AlgorithmConfig(beta=0.3))
    gradients = [
        torch.autograd.grad(algorithm.loss(logprobs, algorithm.prepare(experience)).loss, logprobs)[0]
        for algorithm in (own, make_algorithm("ppg", beta=0.3))
    ]
    assert torch.allclose(*gradients, rtol=1e-12)
    assert gradients[0].abs().max() > 0.1


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Its cells are plain Python, so it needs no Jupyter to be run; its own assertions say what must come out."""
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"), "committed without"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(cells)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^(p3o_v2|ppo) +(honest|shifted) +gold", done.stdout, re.MULTILINE)) == 4


def follow(words: list[str], place: Path) -> str:
    """Run a command of a README in this folder; its standard output."""
    program, *arguments = words
    command = [sys.executable, *(["-m", "p3o"] if program == "p3o" else []), *arguments]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    return done.stdout


RECIPES = {
    "tldr": ("tiny-tldr", ("posts", "comparisons")),
    "hh": ("tiny-hh", ("train",)),
    "sentiment": ("tiny-reviews", ("demonstrations",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_as_its_first_lines_say(name: str, tmp_path: Path) -> None:
    """Data, model and run, with fewer steps."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    model, texts = RECIPES[name]
    config = EXAMPLES / name / "small.yaml"
    wanted = [
        ["python", f"examples/{name}/write_data.py", f"data/{name}"],
        ["python", "examples/tiny_model.py", f"models/{model}", *(f"data/{name}/{text}.jsonl" for text in texts)],
        ["p3o", "run", "--config", f"examples/{name}/small.yaml"],
    ]
    said = [line[2:].split() for line in config.read_text(encoding="utf-8").splitlines() if line.startswith("#   ")]
    assert said == wanted
    sizes = ["sft.steps=3", "rl.training.steps=2", "evaluation.every=2", "evaluation.prompts=4"]
    if "preferences:" in config.read_text(encoding="utf-8"):
        sizes.append("reward.train.steps=3")
    wanted[-1] += [argument for size in sizes for argument in ("--set", size)]
    for words in wanted:
        follow(words, tmp_path)
    assert (tmp_path / "runs" / f"{name}-small" / "report.html").is_file()


def test_the_small_tldr_data_has_good_and_bad_summaries(tmp_path: Path) -> None:
    """Half of the posts have the good summary; every comparison prefers it."""
    load("tldr/write_data").write(tmp_path, posts=400, comparisons=400)
    posts = [json.loads(line) for line in (tmp_path / "posts.jsonl").read_text(encoding="utf-8").splitlines()]
    good = sum(row["summary"].startswith(row["title"]) for row in posts) / 400
    assert 0.4 < good < 0.6, "0.5 with a standard error of 0.025"
    for line in (tmp_path / "comparisons.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        preferred, other = (row["summaries"][i]["text"].strip() for i in (row["choice"], 1 - row["choice"]))
        assert preferred.startswith(row["info"]["title"])
        assert not other.startswith(row["info"]["title"])


def test_sentiment_counts_opinions() -> None:
    sentiment = load("sentiment/rewards").sentiment
    assert sentiment(["p"] * 3, ["a joy, not dull", "Boring.", "the story"]) == [0.0, -1.0, 0.0]


SHORT = {
    "sft": ["sft.steps=3"],
    "sample": ["sampling.prompts=8", "rl.training.max_new_tokens=8"],
    "reward": ["reward.train.steps=3", "reward.train.batch_size=4"],
    "rl": ["rl.training.steps=2", "evaluation.every=2", "evaluation.prompts=4"],
    "evaluate": ["evaluation.prompts=4"],
}
"""What keeps each stage of the round trip short."""


@pytest.mark.slow
def test_the_labelling_round_trip_as_its_page_says(tmp_path: Path) -> None:
    """Its commands in order, but those for people; what the reward model learns from are the judge's labels."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    page = (EXAMPLES / "labelling" / "README.md").read_text(encoding="utf-8")
    for line in "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "pip" or "--annotators" in words or "examples/labelling/stand_in.py" in words:
            continue
        sizes = SHORT.get(words[1], []) if words[0] == "p3o" else []
        follow([*words, *(argument for size in sizes for argument in ("--set", size))], tmp_path)
    labels = [json.loads(row) for row in (tmp_path / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
    informed = load("labelling/judges").informed
    assert labels
    assert all(informed([row["prompt"]], [row["chosen"]], [row["rejected"]]) == [1.0] for row in labels)
    assert (tmp_path / "runs" / "labelled" / "report.html").is_file()


@pytest.mark.slow
def test_stand_ins_answer_every_pair_at_the_page(tmp_path: Path) -> None:
    """Two of them at the links that `p3o label` prints: most labels are the rule's, a few are slips."""
    pairs = [
        {"prompt": f"How do I bake bread no {i}?", "response_a": f"To bake bread no {i}, knead.", "response_b": "No."}
        for i in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    command = [sys.executable, "-u", "-m", "p3o", "label", "--pairs", "pairs.jsonl", "--annotators", "ada,bob"]
    server = subprocess.Popen([*command, "--port", "0"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = "".join(itertools.takewhile(lambda line: not line.startswith("serving"), server.stdout))
        links = re.findall(r"^(?:ada|bob): (http\S+)$", said, re.MULTILINE)
        assert len(links) == 2
        told = follow(["python", str(EXAMPLES / "labelling" / "stand_in.py"), *links], tmp_path)
    finally:
        server.terminate()
        server.wait(timeout=30)
        if server.stdout is not None:
            server.stdout.close()
    assert sum(map(int, re.findall(r": (\d+) pairs; the page says: All done", told))) == 40
    follow(["p3o", "label", "export", "labels.jsonl"], tmp_path)
    rows = [json.loads(row) for row in (tmp_path / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 40
    assert {row["annotator"] for row in rows} == {"ada", "bob"}
    assert 33 <= sum(row["rejected"] == "No." for row in rows) <= 40, "at most 7 slips, however the two share the pairs"


CONFIGS = sorted(path.relative_to(EXAMPLES) for path in EXAMPLES.glob("*/*.yaml") if path.parent.name != "cluster")


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_what_an_example_evaluates_on_is_nowhere_in_its_training(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No held-out prompt is a prompt of RL, a demonstration's or a pair's, as the adapters read them."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    for name in RECIPES:
        load(f"{name}/write_data").write(Path("data", name))
    config = load_config(Path("examples") / path, [], RunConfig)
    prompts = {
        name: [placed.example.prompt for placed in read_examples(source, KINDS[name])[0]]
        for name, source in config.data.sources().items()
    }
    heldout = prompts.pop("heldout_prompts", [])
    if not heldout:
        assert list(prompts) == ["prompts"], "p3o holds prompts out of RL alone: with other sources, a file must"
        return
    assert len(set(heldout)) >= config.evaluation.prompts, "as many different ones as the evaluation asks for"
    for name, trained in prompts.items():
        assert trained, name
        assert not set(heldout) & set(trained), name


BREAD = "\n\nHuman: How do I brew tea?\n\nAssistant: Boil it.\n\nHuman: How do I bake bread?\n\nAssistant:"
ANSWERS = (
    " To bake bread, first mix, then bake.",
    " To bake bread, first mix.",
    " I bake, first this, then that.",
    " No.",
)


@pytest.mark.parametrize(("better", "worse"), [(0, 1), (1, 2), (2, 3), (0, 3)])
def test_the_stand_in_judge_follows_its_rule(better: int, worse: int, tmp_path: Path) -> None:
    """Asked as p3o asks, over HTTP, in both orders: bread and baking before steps, the last question before earlier ones."""
    server = load("judge_feedback/judge_server").start(0)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        config = JudgeConfig(kind="openai", model="rule", base_url=f"http://127.0.0.1:{server.server_port}/v1")
        a, b = ANSWERS[better], ANSWERS[worse]
        reworded = f"{a} Truly."
        verdicts = open_judge(config, cache=tmp_path / "answers.sqlite").compare(
            [BREAD] * 3, [a, b, a], [b, a, reworded]
        )
    finally:
        server.shutdown()
        server.server_close()
    assert [verdict.preference for verdict in verdicts] == [1.0, -1.0, 0.0], "equal ones: first place twice, so a tie"


@pytest.mark.slow
def test_a_judge_is_feedback_enough(tmp_path: Path) -> None:
    """The recipe with fewer steps, against the stand-in; only the address differs."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    config = "examples/judge_feedback/small.yaml"
    follow(["python", "examples/hh/write_data.py", "data/hh"], tmp_path)
    follow(["python", "examples/tiny_model.py", "models/tiny-hh", "data/hh/train.jsonl"], tmp_path)
    server = load("judge_feedback/judge_server").start(0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"reward.judge.base_url=http://127.0.0.1:{server.server_port}/v1"
    sizes = ["sft.steps=30", "rl.training.steps=2", "evaluation.every=2", "evaluation.prompts=4", address]
    try:
        follow(["p3o", "run", "--config", config, *(word for size in sizes for word in ("--set", size))], tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    folder = tmp_path / "runs" / "judge-feedback"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any(row["stage"] == "rl" and row["tie_fraction"] < 1 for row in rows), "the judge tells some apart"
    assert (folder / "report.html").is_file()
