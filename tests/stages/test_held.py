"""The memory that `--dry-run` counts for several processes: by hand, and against tensors of two ranks in a step of PPO."""

from pathlib import Path

import pytest
import torch
from tests.distributed.ranks import on_ranks
from tests.stages import held
from tests.stages.held import SHAPE

from p3o.config import RunConfig
from p3o.errors import P3OError
from p3o.stages.estimates import (
    Arithmetic,
    Gathered,
    OnlineWork,
    activation_bytes,
    divergence_bytes,
    online_step,
    supervised_step,
)
from p3o.stages.footprints import Footprint, footprint, gathering, unbuilt
from p3o.stages.memory import Held, Memory
from p3o.stages.processes import ONE, Processes, processes_of

LAYER = 128 * 128 * 2 + 128 * 64 * 2 + 3 * 128 * 384 + 2 * 128
"""Numbers of one layer: queries and output, keys and values (two heads of four), the feed-forward layer, two norms."""
TABLE, NORM = 1001 * 128, 128
OUTSIDE = 2 * TABLE + NORM
POLICY = 4 * LAYER + OUTSIDE
CRITIC = POLICY - TABLE + 129
SHARE = 4 * LAYER // 2 + 2 * 501 * 128 + 64
"""Of two processes: half of everything, and a row more where rows are odd."""
CRITIC_SHARE = SHARE - 501 * 128 + 128 + 1
"""The critic has no head over the vocabulary; that of one row and one bias is whole on every rank, mostly as padding."""


def memory(mode: str, *, reshards: bool = True) -> Memory:
    processes = Processes(2, sharded=mode == "fsdp")
    return Memory(held.config("", mode, reshards=reshards), held.CPU, SHAPE, processes)


def online(mode: str, *, reshards: bool = True) -> Held:
    return memory(mode, reshards=reshards).online("adamw", has_critic=True, copies=1)


def test_shares_by_hand() -> None:
    rest, whole = online("fsdp").rest, online("data").rest
    assert whole.trained == 4 * (POLICY + CRITIC) == whole.gradients
    assert whole.frozen == 4 * 2 * POLICY, "the reference and a past policy"
    assert rest.trained == 4 * (SHARE + CRITIC_SHARE) == rest.gradients
    assert rest.frozen == 4 * 2 * SHARE
    tensors = len(list(unbuilt(SHAPE, "language", dtype=torch.float32).parameters()))
    assert rest.moments == 2 * rest.trained + 4 * (2 * tensors + 1), "a count of steps for each weight"
    assert online("data").gathered == Gathered()


def test_what_is_gathered_by_hand() -> None:
    found = online("fsdp").gathered
    roots, critic_roots = OUTSIDE, OUTSIDE - TABLE + 129
    # Policy and critic keep what is outside of the layers, the reference nothing; two layers are whole; gradients of the roots
    # and a layer of policy and critic.
    at_work = roots + critic_roots + 2 * LAYER + roots + LAYER + critic_roots + LAYER
    assert found.passes == 4 * at_work
    assert found.sampling == 4 * POLICY
    assert found.evaluating == 4 * (2 * roots + 2 * LAYER), "neither policy nor reference is ever whole"
    assert (found.unshared, found.first) == (0, 4 * POLICY)
    ahead = memory("fsdp").online("adamw", has_critic=True, sent=3)
    assert ahead.gathered.first == 3 * 4 * POLICY
    kept = online("fsdp", reshards=False).gathered
    assert kept.evaluating == 4 * 2 * POLICY, "as asked for"
    assert kept.passes == 4 * (POLICY + CRITIC + roots + LAYER + critic_roots + LAYER)


def test_sixteen_bits_are_gathered_and_not_cast() -> None:
    config = held.config("", "fsdp").model_copy(update={"dtype": "bfloat16"})
    half = Memory(config, held.CPU, SHAPE, Processes(2, sharded=True))
    assert half.arithmetic == Arithmetic(bytes=2, casts=False)
    assert Memory(config, held.CPU, SHAPE).arithmetic.casts
    alone = half.supervised("language", "adamw")
    assert alone.rest.trained == 4 * SHARE
    assert alone.gathered == Gathered(passes=2 * (OUTSIDE + 2 * LAYER + OUTSIDE + LAYER), first=4 * POLICY)


def test_of_an_adapter_the_base_is_sharded_twice_and_the_reward_model_whole() -> None:
    trained = RunConfig(lora={"rank": 4})  # with a reward model of its own
    config = held.config("", "fsdp").model_copy(update={"lora": trained.lora, "reward": trained.reward})
    shared, sharded = (
        Memory(config, held.CPU, SHAPE, processes).online("adamw", has_critic=False)
        for processes in (ONE, Processes(2, sharded=True))
    )
    model = unbuilt(SHAPE, "language", dtype=torch.float32, lora=config.lora)
    half, one = footprint(model, "adamw", processes=2), footprint(model, "adamw")
    scorer = footprint(unbuilt(SHAPE, "classifier", dtype=torch.float32, lora=config.lora), "adamw")
    assert shared.rest.frozen == one.frozen + one.trained + scorer.trained
    assert sharded.rest.frozen == 2 * half.frozen + half.trained + scorer.frozen + scorer.trained
    assert sharded.gathered.unshared == scorer.frozen + scorer.trained
    gathered = gathering(model, 4, reshards=True)
    adapted = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert gathered.gradients == 4 * adapted // 4, "of one layer of four; nothing outside of the layers learns"


@pytest.mark.slow
def test_two_ranks_hold_what_is_counted(tmp_path: Path) -> None:
    path = str(tmp_path / "model")
    held.write(path)
    for rank, found in enumerate(on_ranks(held.everything, tmp_path, path)):
        assert isinstance(found, dict), found
        for case, bytes_of in found.items():
            counted = online("data" if case == "data" else "fsdp", reshards=case != "kept")
            past = memory("data" if case == "data" else "fsdp").trained("language", "adamw").trained
            assert bytes_of["rest"] + past == counted.rest.frozen + counted.rest.trained
            # The last rank's moments and past have no padding; whole weights are gathered with it.
            assert bytes_of["past"] == pytest.approx(past, rel=0 if rank == 0 else 1e-3)
            assert bytes_of["moments"] == pytest.approx(counted.rest.moments, rel=0 if rank == 0 else 1e-3)
            assert bytes_of["gradients"] == pytest.approx(counted.rest.gradients, rel=1e-3)
            if case != "data":
                assert bytes_of["sampling"] == pytest.approx(counted.gathered.sampling, rel=2e-3)
                # On a CPU no second layer is on its way while one is at work.
                layer = 0 if case == "kept" else 4 * LAYER
                assert bytes_of["evaluating"] == pytest.approx(counted.gathered.evaluating - layer, rel=2e-3)
                # Reference, then critic: never both, and nothing of either afterwards.
                whole = 4 * (POLICY if case == "kept" else OUTSIDE)
                assert bytes_of["scoring"] == pytest.approx(whole + layer, rel=2e-3)
                assert bytes_of["after scoring"] == bytes_of["after evaluating"] == bytes_of["after settling"] == 0
                gradients = 4 * (OUTSIDE + LAYER + OUTSIDE - TABLE + 129 + LAYER)
                # Layers are dropped after their forward pass.
                expected = counted.gathered.passes - gradients - 2 * layer
                assert bytes_of["passes"] == pytest.approx(expected, rel=2e-3)


def test_a_step_counts_what_each_process_has() -> None:
    models, arithmetic = Footprint(frozen=7, trained=20, gradients=300, moments=4000), Arithmetic()
    shape = held.SMALL
    whole = Gathered(passes=10**9, sampling=10**6, evaluating=10**5, unshared=6, first=5)
    work = OnlineWork(
        prompts=6, responses=4, minibatch=6, epochs=1, prompt_tokens=3, response_tokens=7, pass_tokens=2048,
        evaluated=5, evaluated_prompt_tokens=13, processes=4,
    )  # fmt: skip
    step = online_step(shape, models, arithmetic, work, has_critic=False, gathered=whole)
    # Two of six groups, each a prompt and 4 · 6 inputs; tokens of a step are everybody's.
    assert (step.forward_tokens, step.sampled_tokens) == (2 * 27, 6 * 4 * 7)
    assert (step.height, step.gathered_bytes) == ("training", 10**9)
    assert step.pass_bytes == activation_bytes(shape, 54, arithmetic) + 2 * 25 * 50 * 4
    assert (step.unshared_bytes, step.first_bytes, step.shared_bytes) == (6, 5, 4321)
    assert step.total_bytes == 4327 + step.pass_bytes + 10**9
    token = 2 * shape.layers * shape.key_value_width * 4
    low = Gathered(sampling=10**6)
    sampling = online_step(shape, models, arithmetic, work, has_critic=False, gathered=low)
    assert (sampling.height, sampling.pass_bytes) == ("sampling", 5 * 20 * token), "a batch of the evaluation is larger"
    few = OnlineWork(**(vars(work) | {"evaluated": 3}))
    sampling = online_step(shape, models, arithmetic, few, has_critic=False, gathered=low)
    assert (sampling.height, sampling.pass_bytes) == ("sampling", 2 * 4 * 10 * token)
    # Servers have the cache of all responses, those of the evaluation too.
    low = Gathered(sampling=10**6, evaluating=10**6)
    served = OnlineWork(**(vars(work) | {"served": True}))
    evaluating = online_step(shape, models, arithmetic, served, has_critic=False, gathered=low)
    # The pairs of refits are sampled here all the same.
    refits = OnlineWork(**(vars(served) | {"refit_tokens": 1000}))
    sampling = online_step(shape, models, arithmetic, refits, has_critic=False, gathered=Gathered(sampling=10**7))
    assert (sampling.height, sampling.pass_bytes) == ("sampling", 1000 * token)
    # Of 10 numbers of the stream and as many normed, and of three times 30 in the feed-forward layer, four bytes each.
    layer = 4 * (2 * 10 + 3 * 30)
    assert (evaluating.height, evaluating.pass_bytes) == ("evaluating", 2 * 5 * 7 * 50 * 4 + 5 * 20 * layer)
    # Of two models these are more logits than may exist at once: one response is in a pass, and whole.
    long = OnlineWork(**(vars(served) | {"response_tokens": 2**20}))
    assert divergence_bytes(shape, long, arithmetic) == 2 * 2**20 * 50 * 4 + (13 + 2**20) * layer
    half = divergence_bytes(shape, long, Arithmetic(bytes=2, casts=True))
    assert half == 2 * 2**20 * 50 * 6 + (13 + 2**20) * (4 * 2 * 10 + 2 * 3 * 30) + 2 * shape.parameters
    rows = {"rows": 9, "rows_per_pass": 4, "row_tokens": 5, "predicted_tokens": 3}
    shares = [
        supervised_step(shape, models, arithmetic, **rows, processes=processes).forward_tokens
        for processes in (1, 2, 3, 9)
    ]
    assert shares == [20, 20, 15, 5]


def test_who_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(**sections: dict[str, object]) -> Processes:
        return processes_of(RunConfig.model_validate(sections))

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    fsdp, ray = {"mode": "fsdp"}, {"name": "ray", "workers": 3}
    assert of() == of(parallel=fsdp) == ONE, "one process has nobody to share with"
    assert of(parallel=fsdp | {"processes": 8}) == Processes(8, sharded=True)
    assert of(parallel={"processes": 8}) == Processes(8, sharded=False)
    assert of(parallel=fsdp, engine=ray) == Processes(3, sharded=True)
    with pytest.raises(P3OError, match=r"parallel\.processes: 8 .* engine\.workers is 3"):
        of(parallel={"processes": 8}, engine=ray)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert of(parallel=fsdp) == Processes(4, sharded=True)
    with pytest.raises(P3OError, match=r"parallel\.processes: 8 .* WORLD_SIZE is 4"):
        of(parallel={"processes": 8})
