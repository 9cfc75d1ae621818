"""Rollouts sampled ahead: who samples what is fixed whatever the threads do; resumed is never stopped; nothing hangs."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from p3o.algorithms import make_algorithm
from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.errors import P3OError
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy
from p3o.models.tokens import PromptBatch
from p3o.stopping import Stopped
from p3o.training.asynchrony import Overlap, RolloutsAhead, with_start
from p3o.training.checkpoint import Checkpoints
from p3o.training.faults import NumericalError
from p3o.training.loop import fit, resume
from p3o.training.online import OnlineConfig, OnlineTrainer
from p3o.training.samplers import LocalSampler, Part
from p3o.training.scoring import Scorer
from p3o.types import Experience

TOKENIZER = build_tokenizer()
PROMPTS = task.prompts(24, seed=0, split="train")


def varied(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [torch.tensor(sum(map(ord, response)) / 977.0).sin().item() for response in responses]


def vector(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class Witness(LocalSampler):
    """Samples as ever and remembers by which weights; may take its time or fail."""

    def __init__(self, config: OnlineConfig, before: Callable[[int], None] = lambda call: None) -> None:
        super().__init__(TOKENIZER, config, seed=11)
        self.by: list[torch.Tensor] = []
        self.before = before

    def begin(self, taken: nn.Module, prompts: PromptBatch) -> Callable[[], Part]:
        write = super().begin(taken, prompts)

        def witnessed() -> Part:
            self.by.append(vector(taken))
            self.before(len(self.by))
            return write()

        return witnessed


def trainer(
    name: str = "p3o_v2",
    scorer: Scorer = varied,
    *,
    before: Callable[[int], None] = lambda call: None,
    **training: object,
) -> OnlineTrainer:
    algorithm = make_algorithm(name)
    policy = build_model(TOKENIZER, seed=0).eval()
    defaults = {
        "steps": 5,
        "prompts_per_step": 3,
        "responses_per_prompt": 2,
        "max_new_tokens": 4,
        "learning_rate": 2e-3,
        "schedule": "constant",
        "warmup_fraction": 0.0,
        "max_staleness": 1,
    }
    config = OnlineConfig(**(defaults | training))
    critic = Critic(build_model(TOKENIZER, seed=0).model) if algorithm.needs_critic else None
    witness = Witness(config, before)
    reference = frozen_copy(policy)
    return OnlineTrainer(
        policy, reference, TOKENIZER, algorithm, scorer, PROMPTS, config, seed=5, critic=critic, sampler=witness
    )


def run_of(**settings: object) -> tuple[OnlineTrainer, list[Mapping[str, int | float]]]:
    """A training from beginning to end, and the metrics of its steps."""
    run, rows = trainer(**settings), []  # type: ignore[arg-type]
    fit(run, lambda step, metrics: rows.append(dict(metrics)))
    return run, rows


def flat(state: object, path: str = "") -> dict[str, object]:
    """Every leaf of a state by its path, tensors as lists."""
    if isinstance(state, torch.Tensor):
        return {path: state.tolist()}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else None
    if items is None:
        return {path: state}
    return {key: value for name, item in items for key, value in flat(item, f"{path}/{name}").items()}


def producers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("rollouts of version")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    for thread in producers():
        thread.join(timeout=30)
        assert not thread.is_alive()


# Who samples what


@pytest.mark.parametrize("lag", [1, 2, 3])
def test_every_step_learns_from_groups_that_the_policy_of_so_many_steps_ago_sampled(lag: int) -> None:
    run = trainer(max_staleness=lag)
    versions, ages = [vector(run.policy)], []
    for step in range(1, 6):
        metrics = run.step()
        ages.append(metrics.get("staleness", 0))
        assert set(run.buffer.experience().age.tolist()) == {min(lag, step - 1)}
        versions.append(vector(run.policy))
    assert ages == [min(lag, step) for step in range(5)]
    sampler = run.rollouts.sampler
    assert len(sampler.by) == 5, "nothing is sampled beyond the last step"
    for step, weights in enumerate(sampler.by):
        assert torch.equal(weights, versions[max(0, step - lag)])
    assert len({tuple(weights[:50].tolist()) for weights in versions}) == 6, "the policy moves in every step"


@pytest.mark.parametrize("lag", [1, 2])
def test_the_behaviour_log_probs_are_those_of_the_policy_that_sampled(lag: int) -> None:
    run = trainer(max_staleness=lag, learning_rate=2e-2)
    versions = []
    for _ in range(4):
        versions.append(frozen_copy(run.policy))
        run.step()
    late, mask = run.buffer.experience(), run.buffer.experience().response_mask
    by = {age: run.passes.logprobs(versions[3 - age], run.buffer.rows(), mask.shape[-1]) for age in range(lag + 1)}
    torch.testing.assert_close(late.behaviour_logprobs[mask], by[lag][mask], atol=1e-6, rtol=0)
    assert (late.behaviour_logprobs - by[0])[mask].abs().max() > 1e-2, "the policy has moved since"


def test_a_critics_warm_up_makes_no_versions() -> None:
    run, rows = run_of(name="ppo", critic_warmup_steps=3, steps=3, max_staleness=2)
    assert [row.get("staleness", 0) for row in rows] == [0, 0, 0, 0, 1, 2]
    assert run.done == 6


def test_replayed_groups_grow_older_from_the_age_at_which_they_came() -> None:
    run = trainer(max_staleness=1, replay_batches=2)
    for _ in range(4):
        run.step()
    assert run.buffer.experience().age.tolist() == [1] * 3 + [2] * 3 + [3] * 3


def test_a_limit_of_zero_is_the_plain_loop() -> None:
    assert not isinstance(trainer(max_staleness=0).source, RolloutsAhead)
    with pytest.raises(ValueError, match="max_staleness"):
        OnlineConfig(max_staleness=-1)


def test_the_first_step_is_that_of_the_plain_loop_and_the_second_is_not() -> None:
    plain, ahead = trainer(max_staleness=0), trainer(max_staleness=1)
    assert plain.step() == ahead.step()
    assert plain.step() != ahead.step()


# The same numbers


@pytest.mark.parametrize("slow", ["producer", "learner"])
def test_the_timing_of_threads_changes_nothing(slow: str) -> None:
    def dawdle(call: int) -> None:
        time.sleep(0.05 * (call % 3))

    def lazy(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        time.sleep(0.1)
        return varied(prompts, responses)

    settings = {"max_staleness": 2, "epochs": 2, "replay_batches": 1}
    straight, rows = run_of(**settings)
    other, same = run_of(**settings, **({"before": dawdle} if slow == "producer" else {"scorer": lazy}))
    assert rows == same
    assert isinstance(other.source, RolloutsAhead)
    assert len(other.source._pasts) <= 2, "one copy of the policy for each version that may be sampling"
    assert torch.equal(vector(straight.policy), vector(other.policy))


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("p3o_v2", {"kl_target": 0.5}),
        ("rloo", {"stale_ratio": "arrival"}),
        ("p3o_r", {"replay_batches": 2}),
        ("ppo", {"critic_warmup_steps": 1}),
    ],
)
def test_stopped_and_resumed_equals_never_stopped(name: str, more: dict[str, object], lag: int, tmp_path: Path) -> None:
    settings = {"name": name, "max_staleness": lag, **more}
    uninterrupted, whole = run_of(**settings)
    parts: list[Mapping[str, int | float]] = []
    checkpoints = Checkpoints(tmp_path / "run")
    for stop_after in (2, 3, None):  # stopped twice; every attempt is a new trainer
        run = trainer(**settings)  # type: ignore[arg-type]
        resume(run, checkpoints)

        def tell(step: int, metrics: Mapping[str, int | float], last: int | None = stop_after) -> None:
            parts.append(dict(metrics))
            if step == last:
                os.kill(os.getpid(), signal.SIGTERM)

        if stop_after is None:
            fit(run, tell, checkpoints=checkpoints)
        else:
            with pytest.raises(Stopped, match=f"SIGTERM after step {stop_after}; everything is saved"):
                fit(run, tell, checkpoints=checkpoints)
            assert not producers(), "what was under way is in the checkpoint"
    assert parts == whole
    assert flat(run.state_dict()) == flat(uninterrupted.state_dict())


# The limit


def test_groups_older_than_the_limit_are_refused_whole_and_counted() -> None:
    """Sampled three versions ahead, resumed with a limit of one: two batches of three groups are too old by then."""
    far = trainer(max_staleness=3, steps=9)
    for _ in range(4):
        far.step()
    state = far.state_dict()
    assert [draw["version"] for draw in state["rollouts"]["ahead"]] == [1, 2, 3]
    near = trainer(max_staleness=1, steps=9)
    near.load_state_dict(state)
    metrics = near.step()
    assert (metrics["refused_groups"], metrics["staleness"]) == (6, 1)
    metrics = near.step()
    assert "refused_groups" not in metrics
    assert metrics["staleness"] == 1


def test_a_state_of_the_plain_loop_can_be_gone_on_from() -> None:
    plain = trainer(max_staleness=0)
    plain.step()
    ahead = trainer(max_staleness=1)
    ahead.load_state_dict(plain.state_dict())
    assert [ahead.step().get("staleness", 0) for _ in range(3)] == [0, 1, 1]


# What belongs to the step that trains


def test_the_stop_measures_from_where_the_step_began() -> None:
    """Late groups are further than the limit from the policy that sampled them; the step may still move."""
    free = trainer(learning_rate=3e-2, kl_stop=None, max_staleness=2)
    stopped = trainer(learning_rate=3e-2, kl_stop=1e-4, max_staleness=2)
    updates, moved = [], []
    for _ in range(5):
        metrics = stopped.step()
        updates.append(metrics["updates"])
        moved.append(metrics.get("moved_since_sampling", 0.0))
        assert metrics["stopped_early"] == 1
        assert free.step()["updates"] == 4
    assert updates == [1] * 5, (
        "the first update of a step is at distance 0, the check before the second one ends the step"
    )
    assert min(moved[1:]) > 1e-4


def test_how_far_the_policy_has_moved_is_measured_on_the_youngest_groups() -> None:
    run = trainer(max_staleness=1, replay_batches=1, learning_rate=2e-2)
    for _ in range(3):
        run.step()
    experience, groups = run.buffer.experience(), run.buffer.rows()
    started, metrics = with_start(experience, run.policy, groups, run.passes)
    mask = experience.response_mask
    now = run.passes.logprobs(run.policy, groups, mask.shape[-1])
    log_ratio = ((now - experience.behaviour_logprobs) * mask).sum(-1)
    assert metrics["moved_since_sampling"] == pytest.approx(0.5 * (log_ratio[:3] ** 2).mean().item(), rel=1e-4)
    assert started.start_logprobs is not None
    torch.testing.assert_close(started.start_logprobs[:3][mask[:3]], now[:3][mask[:3]], atol=1e-5, rtol=0)


def test_groups_of_the_step_itself_need_no_other_start() -> None:
    run = trainer(max_staleness=1)
    run.step()
    experience = run.buffer.experience()
    assert with_start(experience, run.policy, run.buffer.rows(), run.passes) == (experience, {})


def test_no_training_pass_stands_in_for_the_policy_that_sampled() -> None:
    once = {"epochs": 1, "minibatches": 1}
    assert trainer(max_staleness=0, **once).one_pass
    run = trainer(max_staleness=1, learning_rate=2e-2, **once)
    assert not run.one_pass
    distances = [run.step()["half_squared_log_ratio"] for _ in range(3)]
    assert distances[0] == 0.0
    assert min(distances[1:]) > 1e-3, "late groups have a ratio in their very first update"


def test_the_ratio_can_be_taken_to_the_policy_of_the_step_in_which_groups_arrive() -> None:
    """As if that had sampled them: it is 1 before the first update, and the stop measures from there."""
    run = trainer(max_staleness=2, stale_ratio="arrival", learning_rate=3e-2, kl_stop=1e-4, minibatches=1)
    for step in range(4):
        start = frozen_copy(run.policy)
        metrics = run.step()
        assert (metrics["updates"], metrics["stopped_early"]) == (1, 1)
        assert metrics.get("staleness", 0) == min(2, step)
        late, mask = run.buffer.experience(), run.buffer.experience().response_mask
        own = run.passes.logprobs(start, run.buffer.rows(), mask.shape[-1])
        torch.testing.assert_close(late.behaviour_logprobs[mask], own[mask], atol=1e-5, rtol=0)
    assert {draw["logprobs"] for draw in trainer_state_ahead(run)} == {None}


def trainer_state_ahead(run: OnlineTrainer) -> list[Mapping[str, object]]:
    ahead: list[Mapping[str, object]] = run.state_dict()["rollouts"]["ahead"]
    return ahead


def test_the_reward_is_that_of_the_step_that_trains() -> None:
    run = trainer(max_staleness=2)
    run.step()
    run.learn_from(lambda prompts, responses: [7.0] * len(responses))
    assert run.step()["reward"] == 7.0, "sampled before, rated after"


def test_rewards_are_asked_for_in_the_main_thread_only() -> None:
    asked: set[str] = set()

    def scorer(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        asked.add(threading.current_thread().name)
        return varied(prompts, responses)

    run_of(scorer=scorer, max_staleness=2)
    assert asked == {threading.main_thread().name}


# Failures


def test_an_error_of_the_sampler_ends_the_step_whose_groups_it_was_to_make() -> None:
    def fail(call: int) -> None:
        if call == 3:
            raise P3OError("rollout.urls: no server answers; start one")

    run, done = trainer(before=fail, max_staleness=2), []
    with pytest.raises(P3OError, match=r"^rollout\.urls: no server answers; start one$"):
        fit(run, lambda step, metrics: done.append(step))
    assert done == [1, 2], "the groups of these two were there"
    with pytest.raises(P3OError, match="no server answers"):
        run.step()
    with pytest.raises(P3OError, match="no server answers"):
        run.state_dict()


def test_after_a_fault_the_run_goes_back_and_on_with_other_groups(tmp_path: Path) -> None:
    calls = [0]

    def broken(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        calls[0] += 1
        return [float("nan") if calls[0] == 4 else score for score in varied(prompts, responses)]

    run, checkpoints, done, faults = trainer(scorer=broken, max_staleness=2), Checkpoints(tmp_path / "run"), [], []

    def roll_back(fault: NumericalError, attempt: int) -> None:
        faults.append(str(fault))
        resume(run, checkpoints)

    fit(run, lambda step, m: done.append(step), checkpoints=checkpoints, every=2, roll_back=roll_back)
    assert len(faults) == 1
    assert done == [1, 2, 3, 3, 4, 5]
    assert run.buffer.experience().age.tolist() == [2] * 3
    # Step 3 is done again with groups of the policy as it is then: what had been sampled ahead is gone.
    assert len(run.rollouts.sampler.by) > 5


def test_groups_without_feedback_are_left_out_whole_with_their_log_probs() -> None:
    def broken(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        first = prompts[0]
        return [
            float("nan") if prompt == first else score
            for prompt, score in zip(prompts, varied(prompts, responses), strict=True)
        ]

    run = trainer(scorer=broken, on_fault="skip", learning_rate=2e-2)
    for _ in range(3):
        before = frozen_copy(run.policy)
        metrics = run.step()
        assert metrics["dropped_groups"] == 1
    experience = run.buffer.experience()
    assert experience.groups == 2
    moved = run.passes.logprobs(before, run.buffer.rows(), experience.response_mask.shape[-1])
    difference = (moved - experience.behaviour_logprobs)[experience.response_mask].abs()
    assert 1e-6 < difference.max() < 3.0, "its own group's, one version old"


def test_log_probs_of_damaged_weights_are_told_by_the_step_that_would_learn_from_them() -> None:
    run = trainer(max_staleness=1)
    run.step()
    whole = frozen_copy(run.policy)
    with torch.no_grad():
        next(iter(run.policy.parameters())).fill_(float("nan"))
    with pytest.raises(NumericalError, match="not finite in step 2"):
        run.step()  # good groups, a damaged learner: it is this one that samples for the next step
    run.policy.load_state_dict(whole.state_dict())
    with pytest.raises(NumericalError, match="a behaviour log-prob is not finite, prompt"):
        run.step()


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_does_not_wait_for_the_groups() -> None:
    gate = threading.Event()
    run = trainer(before=lambda call: None if call < 2 else gate.wait(30) and None, max_staleness=1)
    run.step()  # the groups of step 2 wait at the gate
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            run.step()
    finally:
        gate.set()
        timer.join()
    assert time.monotonic() - start < 25


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_told_to_stop_ends_and_begins_no_further_draw(number: int, tmp_path: Path) -> None:
    """Without checkpoints, in the middle of a draw: the process ends when that one does, the two after it are not begun."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys, time
            sys.path.insert(0, {str(Path(__file__).parents[2])!r})
            from p3o.stopping import sigterm_stops
            from tests.training.test_asynchrony import trainer

            def slow(call):
                print("draw", call, flush=True)
                time.sleep(2)

            with sigterm_stops():
                trainer(before=slow, max_staleness=3).step()
            """
        )
    )
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "draw 1\n"
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    assert out == ""
    assert process.returncode != 0


# Seconds


def test_the_share_of_sampling_behind_the_learners_back() -> None:
    assert Overlap().share == 0.0
    assert Overlap(sampling=4.0, waiting=1.0).share == 0.75
    assert Overlap(sampling=1.0, waiting=2.0).share == 0.0
    run, _ = run_of(max_staleness=1)
    assert isinstance(run.source, RolloutsAhead)
    assert run.source.overlap.sampling > 0.0


def test_late_experiences_are_plain_experiences() -> None:
    """What a loss sees of lateness is the ratio and the age, nothing else."""
    run = trainer(max_staleness=1)
    for _ in range(2):
        run.step()
    late = run.buffer.experience()
    assert isinstance(late, Experience)
    assert late.start_logprobs is None
    algorithm = make_algorithm("p3o_v2")
    loss = algorithm.loss(late.behaviour_logprobs, algorithm.prepare(late))
    assert loss.metrics["ratio_max"] == 1.0


def test_the_thread_is_on_the_gpu_of_who_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch puts a new thread on GPU 0; of several processes only the first has that one."""
    chosen: list[tuple[int, str]] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: chosen.append((device, threading.current_thread().name))
    )
    run = trainer(max_staleness=1, steps=2)
    run.step()
    run.state_dict()
    assert set(chosen) == {(3, "rollouts of version 0")}
