"""Training on responses of servers: the trainer, the correction of their mismatch, and the command."""

import copy
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.rollouts.conftest import PROMPTS, TOKENIZER
from tests.rollouts.fake import FakeVLLM
from torch import nn

from p3o.algorithms import make_algorithm
from p3o.cli import main
from p3o.data.embedded.language import build_model
from p3o.evaluation.policy import Evaluator
from p3o.evaluation.writing import Writer
from p3o.files import read_jsonl, write_jsonl
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy
from p3o.models.tokens import PromptBatch
from p3o.rollouts.fleet import Edition
from p3o.rollouts.sampler import VLLMSampler
from p3o.stages.rollout import writer_of
from p3o.training.faults import NumericalError
from p3o.training.online import OnlineConfig, OnlineTrainer
from p3o.training.replay import concatenate
from p3o.types import Experience

Servers = Callable[..., FakeVLLM]
Samplers = Callable[..., VLLMSampler]


def varied(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [torch.tensor(sum(map(ord, response)) / 977.0).sin().item() for response in responses]


def trainer(sampler: VLLMSampler, policy: nn.Module, name: str = "p3o_v2", **training: Any) -> OnlineTrainer:
    defaults = {"steps": 4, "prompts_per_step": 4, "max_new_tokens": 8, "learning_rate": 1e-3, "schedule": "constant"}
    algorithm = make_algorithm(name)
    return OnlineTrainer(
        policy,
        frozen_copy(policy),
        TOKENIZER,
        algorithm,
        varied,
        PROMPTS,
        OnlineConfig(**(defaults | training)),
        seed=5,
        critic=Critic(build_model(TOKENIZER, seed=0).model) if algorithm.needs_critic else None,
        sampler=sampler,
    )


def vector(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("name", ["p3o_v1", "p3o_v2", "ppo", "online_dpo"])
def test_steps_push_what_was_learned(servers: Servers, sampler: Samplers, policy: nn.Module, name: str) -> None:
    fake = servers()
    run = trainer(sampler(fake), policy, name)
    start = vector(policy)
    for step in range(3):
        metrics = run.step()
        assert metrics["policy_version"] == step + 1
        assert metrics["probe_difference"] < 1e-5
        assert metrics["mismatch_max"] < 1e-4
        assert metrics["mismatch_weight_max"] == pytest.approx(1.0, abs=1e-3)
        assert metrics["mismatch_dropped"] == metrics["mismatch_truncated"] == 0
        assert torch.equal(vector(fake.model), vector(policy))
    assert not torch.equal(vector(policy), start)


def test_two_servers_and_a_death_train_as_one_server_does(servers: Servers, sampler: Samplers) -> None:
    def trained(run: OnlineTrainer, after_step: Callable[[int], None] = lambda _: None) -> torch.Tensor:
        for step in range(3):
            run.step()
            after_step(step)
        return vector(run.policy)

    alone = trained(trainer(sampler(servers()), build_model(TOKENIZER, seed=0).eval()))
    first, second = servers(), servers()

    def disturb(step: int) -> None:
        if step == 0:
            first.kill()
        if step == 1:
            first.start()

    disturbed = trained(trainer(sampler(first, second), build_model(TOKENIZER, seed=0).eval()), disturb)
    # Weighed by ratios of float32 log-probs that are 1 but for their last digits; Adam makes a step of any gradient.
    torch.testing.assert_close(disturbed, alone, rtol=0, atol=1e-5)


def test_a_run_that_is_resumed_goes_on_as_it_would_have(servers: Servers, sampler: Samplers) -> None:
    ours = sampler(servers())
    run = trainer(ours, build_model(TOKENIZER, seed=0).eval())
    run.step()
    state, policy = copy.deepcopy(run.state_dict()), copy.deepcopy(run.policy)
    wanted = run.step()
    again = trainer(sampler(servers(), seed=99), policy)
    again.load_state_dict(state)
    got = again.step()
    assert got["reward"] == wanted["reward"]
    assert got["length"] == wanted["length"]
    assert got["policy_version"] > 1


@pytest.mark.parametrize("ahead", [1, 2])
def test_what_servers_sample_ahead_is_of_the_version_that_it_is_taken_for(
    servers: Servers, sampler: Samplers, policy: nn.Module, ahead: int
) -> None:
    """While the policy learns, servers sample for later steps. log π_old is of a copy of the version that is meant: had a push
    come between, the server's own log-probs would differ from it."""
    slow = sampler(servers())
    begin = slow.begin

    def late(taken: Edition, prompts: PromptBatch) -> Callable[[], Any]:
        write = begin(taken, prompts)
        # The learner is done with its update before the servers begin.
        return lambda: time.sleep(0.3) or write()

    slow.begin = late  # type: ignore[method-assign]
    run = trainer(slow, policy, max_staleness=ahead, steps=5, learning_rate=1e-2)
    for step in range(5):
        metrics = run.step()
        assert metrics["mismatch_max"] < 1e-4
        assert metrics.get("staleness", 0) == min(step, ahead)
        if step:
            assert metrics["moved_since_sampling"] > 1e-3, "a version later it is another policy"
    assert slow.updates == 5 - ahead, "each of the versions 0 to 4 - ahead was pushed once"


@pytest.mark.parametrize("ahead", [0, 1])
def test_servers_write_evaluations_by_the_policy_as_it_is(
    servers: Servers, sampler: Samplers, policy: nn.Module, ahead: int
) -> None:
    """What is greedy depends on weights alone: the servers write what the learner would."""
    ours = sampler(servers())
    run = trainer(ours, policy, max_staleness=ahead, steps=3, learning_rate=2e-3)
    served, own = (judge(run.rollouts.reference, write) for write in (writer_of(run), None))
    seen = []
    for step in range(4):
        seen.append(served.greedy(policy).responses)
        assert seen[-1] == own.greedy(policy).responses
        assert served.sampled(policy) == served.sampled(policy), "the same random numbers every time"
        if step < 3:
            run.step()
    assert all(a != b for a, b in itertools.pairwise(seen)), "a version later it is another policy"
    versions = 4 if ahead == 0 else 3 * 4 + 3 - ahead
    assert ours.updates == versions, "one for each policy; ahead, one for each evaluation besides"


def judge(reference: nn.Module, write: Writer | None) -> Evaluator:
    return Evaluator(
        TOKENIZER,
        reference,
        PROMPTS,
        varied,
        gold=None,
        max_new_tokens=8,
        temperature=1.0,
        missing_eos_penalty=0.0,
        batch_size=4,
        seed=7,
        write=write,
    )


@pytest.mark.parametrize("lets_go", [False, True])
def test_a_policy_that_is_published_is_evaluated_without_a_push(
    servers: Servers, sampler: Samplers, policy: nn.Module, lets_go: bool
) -> None:
    ours = sampler(servers())
    ours.publish(policy)
    if lets_go:
        ours.forget()
    written = ours.write(policy, [[5, 6], [7]], responses=3, temperature=0.5, seed=1)
    assert (written.tokens.shape[:2], written.logprobs) == ((2, 3), None)
    assert ours.updates == 1 + lets_go


def test_a_server_that_differs_is_measured_and_corrected(
    servers: Servers, sampler: Samplers, policy: nn.Module
) -> None:
    """Its logits of the end are higher by ½ when it samples: it ends sooner than the policy, and says log-probs of the policy
    without that; told the truth, the trainer weighs its groups."""
    fake = servers()
    run = trainer(sampler(fake, drop_beyond=50.0), policy, prompts_per_step=8, max_new_tokens=16)
    run.step()
    fake.drift = 1.5
    experience: list[Experience] = []
    prepared = run.prepared

    def seen(given: Experience, groups: Any) -> Experience:
        experience.append(given)
        return prepared(given, groups)

    run.prepared = seen  # type: ignore[method-assign]
    metrics = run.step()
    assert metrics["mismatch_mean"] > 1e-3
    assert 0 < metrics["mismatch_max"] <= 1.5
    assert metrics["mismatch_weight_max"] > 1.1
    weights = experience[0].weights
    assert weights is not None
    assert weights.max() <= 2.0
    assert weights.min() < 0.9


def test_groups_that_differ_too_much_are_dropped_and_counted(
    servers: Servers, sampler: Samplers, policy: nn.Module
) -> None:
    fake = servers()
    run = trainer(sampler(fake, drop_beyond=1.0, correction="drop"), policy, prompts_per_step=8, max_new_tokens=16)
    run.step()
    fake.drift = 2.0
    metrics = run.step()
    assert 0 < metrics["mismatch_dropped"] < 8
    fake.drift = 30.0
    with pytest.raises(NumericalError, match=r"log-probs of every group are too far .* processed_logprobs"):
        run.step()


def test_groups_without_weights_count_once_beside_others() -> None:
    def experience(weights: torch.Tensor | None) -> Experience:
        zeros = torch.zeros(2, 2, 3)
        mask, gaps, age = torch.ones(2, 2, 3, dtype=torch.bool), torch.zeros(2, 2, 2), torch.zeros(2, dtype=torch.long)
        return Experience(mask, zeros, zeros, gaps, None, age, weights=weights)

    joined = concatenate([experience(torch.tensor([0.5, 2.0])), experience(None)])
    assert joined.weights is not None
    assert joined.weights.tolist() == [0.5, 2.0, 1.0, 1.0]
    assert concatenate([experience(None), experience(None)]).weights is None


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    build_model(TOKENIZER, seed=0).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    (tmp_path / "rewards_of_rollouts.py").write_text(
        "def brief(prompts, responses):\n    return [-float(len(response)) for response in responses]\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configuration(place: Path, rollout: dict[str, Any], **more: Any) -> str:
    content = {
        "name": "served",
        "model": "model",
        "device": "cpu",
        "data": {"prompts": "prompts.jsonl"},
        "reward": {"function": "rewards_of_rollouts:brief"},
        "rl": {
            "rollout": rollout,
            "training": {"steps": 2, "prompts_per_step": 4, "max_new_tokens": 8, "learning_rate": 1e-3},
            "runs": {"p3o_v2": {"algorithm": "p3o_v2"}, "rloo": {"algorithm": "rloo"}},
        },
    }
    (place / "run.yaml").write_text(yaml.safe_dump(content | more))
    return "run.yaml"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("weights", ["gloo", "disk", "lora"])
def test_the_command_trains_on_responses_of_the_servers(servers: Servers, place: Path, weights: str) -> None:
    fakes = servers(), servers()
    for fake in fakes:
        fake.original.load_state_dict(build_model(TOKENIZER, seed=0).state_dict())
        fake.kill()
        fake.start()
    end, unknown, padding = TOKENIZER.convert_tokens_to_ids(["<eos>", "<unk>", "<pad>"])
    (place / "model/generation_config.json").write_text(f'{{"eos_token_id": [{padding}, {end}]}}')
    more: dict[str, Any] = {"lora": {"rank": 2}} if weights == "lora" else {}
    rollout = {"engine": "vllm", "urls": [fake.url for fake in fakes], "weights": weights, "timeout": 10}
    stop = 'rl.training.stop=["<unk>", "."]'
    assert main(["rl", "--config", configuration(place, rollout, **more), "--set", stop]) == 0
    rows = [row for row in read_jsonl(place / "runs/served/metrics.jsonl") if row["stage"] == "rl"]
    assert [(row["run"], row["step"]) for row in rows] == [("p3o_v2", 1), ("p3o_v2", 2), ("rloo", 1), ("rloo", 2)]
    for row in rows:
        assert row["servers"] == 2
        assert row["probe_difference"] < 1e-4
        assert math.isfinite(row["mismatch_mean"])
    # 2 runs, 2 steps of 4 prompts.
    bodies = [body for fake in fakes for body in fake.bodies]
    assert len([body for body in bodies if body["n"] == 2]) == 16
    # And as many evaluations, each of the same prompts with the same seeds.
    evaluated = [(body["seed"], tuple(body["prompt"])) for body in bodies if body["n"] == 1]
    heldout = len(set(evaluated))
    assert len(bodies) - 16 == len(evaluated) == 4 * heldout > 4
    assert all(body["stop_token_ids"] == [end, padding, unknown] and body["stop"] == ["."] for body in bodies)
    assert not (place / "runs/served/rollouts").exists()


@pytest.mark.parametrize(
    ("rollout", "told"),
    [
        ({"engine": "vllm"}, "engine vllm needs urls"),
        ({"urls": ["http://127.0.0.1:1"]}, "urls are for engine: vllm"),
        ({"engine": "vllm", "urls": ["127.0.0.1:8000"]}, "must begin with http"),
        ({"engine": "vllm", "urls": ["http://127.0.0.1:80000"]}, "is no address; write for example"),
        ({"engine": "vllm", "urls": ["http://ada:secret@a:1"]}, "urls: one holds a password or a query"),
        ({"engine": "vllm", "urls": ["http://a:1", "http://a:1/"]}, "a server is named twice"),
        ({"engine": "vllm", "urls": ["http://a:1"], "weights": "lora"}, "add a section 'lora: {}'"),
        ({"engine": "vllm", "urls": ["http://127.0.0.1:9"], "patience": 0}, "http://127.0.0.1:9: GET /health"),
        ({"engine": "vllm", "urls": ["http://127.0.0.1:9"], "api_key_env": "NO_KEY_HERE"}, "NO_KEY_HERE is not set"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mistakes_are_told_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], rollout: dict[str, Any], told: str
) -> None:
    assert main(["rl", "--config", configuration(place, rollout)]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert told in last
