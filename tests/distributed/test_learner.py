"""One process, two that hold the models each, two that share them: the same metrics, the same weights, the same ends.

The model computes in float64, so what differs is the order of sums: 1e-9 would show any other difference.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed import learner
from tests.distributed.learner import ALGORITHMS, MODES
from tests.distributed.ranks import on_ranks
from transformers import AutoModel, AutoModelForCausalLM

from p3o.training.checkpoint import MANIFEST, Checkpoints, load_state
from p3o.training.online import OnlineTrainer

TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def begun(folder: Path) -> OnlineTrainer:
    """One process that has saved a checkpoint after its first step."""
    trainer = learner.learner("ppo", "one", replay_batches=1)
    trainer.step()
    learner.saved(trainer, folder / "one")
    return trainer


@pytest.fixture(scope="module")
def one_goes_on(begun: OnlineTrainer) -> dict[str, Any]:
    return learner.taken(begun, 1)


@pytest.fixture(scope="module")
def ranks(folder: Path, begun: OnlineTrainer) -> list[dict[str, Any]]:
    """What two ranks found; ``begun`` is there before they start."""
    found = on_ranks(learner.everything, folder, folder)
    for rank in found:
        assert isinstance(rank, dict), rank
    return found


def assert_same(got: dict[str, Any], expected: dict[str, Any], tolerance: float = TOLERANCE) -> None:
    assert len(got["rows"]) == len(expected["rows"])
    for row, right in zip(got["rows"], expected["rows"], strict=True):
        assert row.keys() == right.keys()
        for name in row:
            assert row[name] == pytest.approx(right[name], rel=tolerance, abs=tolerance), name
    apart = (
        torch.tensor(got["weights"], dtype=torch.float64) - torch.tensor(expected["weights"], dtype=torch.float64)
    ).abs()
    assert float(apart.max()) <= tolerance


@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_ranks_take_the_steps_of_one_process(ranks: list[dict[str, Any]], name: str) -> None:
    expected = learner.taken(learner.learner(name, "one"), 2)
    start = learner.weights(learner.learner(name, "one").policy)
    assert max(abs(a - b) for a, b in zip(start, expected["weights"], strict=True)) > 1e-3, "it learned something"
    for mode in MODES:
        for rank in ranks:
            assert_same(rank[f"{mode} {name}"], expected)


def test_ranks_end_with_the_same_bytes(ranks: list[dict[str, Any]]) -> None:
    for mode in MODES:
        for name in ALGORITHMS:
            assert ranks[0][f"{mode} {name}"] == ranks[1][f"{mode} {name}"]


def test_the_ratio_is_one_in_the_first_update_where_the_pass_gives_the_old_log_probs(
    ranks: list[dict[str, Any]],
) -> None:
    expected = learner.taken(learner.learner("p3o_v2", "one", epochs=1, minibatches=1, learning_rate=1e-2), 2)
    for rank in ranks:
        assert_same(rank["one pass"], expected)
        assert [(row["ratio_mean"], row["ratio_max"]) for row in rank["one pass"]["rows"]] == [(1.0, 1.0)] * 2


def test_chunks_of_logits_and_recomputation_go_with_sharding(ranks: list[dict[str, Any]]) -> None:
    expected = learner.taken(learner.learner("p3o_v2", "one"), 2)
    for rank in ranks:
        assert_same(rank["chunked"], expected)


def test_in_float32_the_difference_is_rounding(ranks: list[dict[str, Any]]) -> None:
    """AdamW divides by the root of the second moment: where a gradient is all rounding, so is the update's sign."""
    expected = learner.taken(learner.learner("p3o_v2", "one", dtype=torch.float32), 2)
    assert_same(ranks[0]["float32"], expected, 2e-3)


def test_each_rank_holds_half(ranks: list[dict[str, Any]]) -> None:
    assert all(rank["sharded"] == [True, True] for rank in ranks)
    sizes = [len(parameter) for parameter in learner.learner("p3o_v2", "one").policy.parameters()]
    assert [a + b for a, b in zip(ranks[0]["rows"], ranks[1]["rows"], strict=True)] == sizes
    assert all(abs(a - b) <= 1 for a, b in zip(ranks[0]["rows"], ranks[1]["rows"], strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_evaluate_as_one_process_does(ranks: list[dict[str, Any]], mode: str) -> None:
    expected = learner.evaluated("one")
    assert expected["sampled"]["responses"] != expected["best"]["responses"] != expected["greedy"]["responses"]
    assert min(expected["sampled"]["kl"]) > 1e-3
    for rank in ranks:
        for kind in ("sampled", "greedy", "best"):
            found, right = rank[f"{mode} evaluated"][kind], expected[kind]
            assert found.keys() == right.keys()
            for name in found:
                exact = name in ("responses", "length", "ended") or right[name] is None
                assert found[name] == (
                    right[name] if exact else pytest.approx(right[name], rel=TOLERANCE, abs=TOLERANCE)
                )


def test_of_sharded_models_the_policy_is_whole_while_it_writes_and_the_reference_never(
    ranks: list[dict[str, Any]],
) -> None:
    whole = sum(parameter.nbytes for parameter in learner.language_model().double().parameters())
    for rank in ranks:
        found = rank["fsdp evaluated"]
        policy, reference = found["writing"]
        assert whole <= policy < 1.1 * whole, "rows are filled up to what two ranks can halve"
        assert reference == found["rating"] == found["after"] == 0


# Checkpoints


def test_one_process_saves_and_two_go_on(ranks: list[dict[str, Any]], one_goes_on: dict[str, Any]) -> None:
    for rank in ranks:
        for mode in MODES:
            assert_same(rank[f"{mode} from one"], one_goes_on)
            assert_same(rank[f"{mode} saved"], one_goes_on)


@pytest.mark.parametrize("mode", MODES)
def test_two_save_and_one_process_goes_on(
    ranks: list[dict[str, Any]], one_goes_on: dict[str, Any], folder: Path, mode: str
) -> None:
    assert ranks
    trainer = learner.learner("ppo", "one", replay_batches=1)
    assert_same(learner.gone_on(trainer, folder / mode), one_goes_on)


def test_sharded_and_replicated_checkpoints_are_read_by_either(
    ranks: list[dict[str, Any]], one_goes_on: dict[str, Any]
) -> None:
    for rank in ranks:
        assert_same(rank["fsdp from data"], one_goes_on)
        assert_same(rank["data from fsdp"], one_goes_on)


def test_a_shard_that_was_changed_is_recognised(ranks: list[dict[str, Any]], folder: Path) -> None:
    assert ranks
    (checkpoint,) = Checkpoints(folder / "fsdp").saved()
    shards = sorted(checkpoint.glob("shard-*"))
    assert [file.name for file in shards] == [f"shard-0000{k}-of-00002.safetensors" for k in (0, 1)]
    assert all(file.name in (checkpoint / MANIFEST).read_text() for file in shards)
    content = bytearray(shards[1].read_bytes())
    content[-1] ^= 1
    try:
        shards[1].write_bytes(bytes(content))
        with pytest.raises(Exception, match=r"shard-00001-of-00002\.safetensors: its content has changed"):
            load_state(checkpoint)
    finally:
        content[-1] ^= 1
        shards[1].write_bytes(bytes(content))
    load_state(checkpoint)


def test_a_sharded_model_is_saved_as_a_plain_folder(ranks: list[dict[str, Any]], folder: Path) -> None:
    assert ranks
    model, report = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float64, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(model).__name__ == "LlamaForCausalLM"
    right = dict(learner.learner("p3o_v2", "one").policy.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, right[name]), name


def test_shards_are_read_straight_from_the_files(ranks: list[dict[str, Any]], folder: Path) -> None:
    for name, auto_class in (("loaded", AutoModelForCausalLM), ("loaded body", AutoModel)):
        model = auto_class.from_pretrained(folder / "model", dtype=torch.float64)
        right = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).tolist()
        assert all(rank[name] == right for rank in ranks)
    buffers = [buffer.double().tolist() for buffer in model.buffers()]
    assert buffers
    assert all(rank["buffers"] == buffers for rank in ranks)


# Faults


def test_a_bad_reward_on_one_rank_ends_both(ranks: list[dict[str, Any]]) -> None:
    assert ranks[1]["bad reward"].startswith("NumericalError: step 1: the reward of a response is nan; prompt ")
    assert ranks[0]["bad reward"] == ranks[1]["bad reward"].replace("step 1: ", "step 1: process 1: ")


def test_a_bad_group_on_one_rank_is_dropped_by_both(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["dropped"] == ranks[1]["dropped"]
    assert ranks[0]["dropped"][0] == 1


def test_bad_weights_are_told_by_both(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["bad weights"] == ranks[1]["bad weights"]
    assert "log-prob is not finite" in ranks[0]["bad weights"]


def test_sigterm_to_one_rank_stops_both_after_the_same_step(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert (
            rank["stopped"] == "Stopped: stopped by SIGTERM after step 1; everything is saved; continue with --resume"
        )
        assert rank["resumed at"] == 1


def test_a_mistake_on_one_rank_ends_both(ranks: list[dict[str, Any]]) -> None:
    assert ranks[1]["a mistake on one"] == "KeyError: 'x'"
    assert ranks[0]["a mistake on one"] == "P3OError: process 1: KeyError: 'x'"


def test_a_rank_that_has_gone_is_noticed(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["left alone"].startswith(
        "LostProcessError: another process of this training has stopped, or did not respond"
    )
