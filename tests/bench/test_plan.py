"""The scaling plan's formulas: counts against real models, bytes by hand, and what must hold whatever the numbers are."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from p3o.bench import plan
from p3o.bench.plan_cost import (
    METHODS,
    Assumptions,
    broadcast_seconds,
    collective_rate,
    evaluation_bytes,
    learner_cost,
    learner_memory,
    push_bytes,
    push_seconds,
    rollout_cost,
    server_gpus,
)
from p3o.bench.plan_shapes import SHAPES, Shape, Work, rows_of
from p3o.bench.plan_split import TURNS, Plan, best_plan, fitting_passes, plans_of
from p3o.cli import main
from p3o.errors import P3OError
from p3o.stages.footprints import gathering

TINY = Shape("tiny", 3, 32, 4, 2, 16, 48, 100, tied=False)
ASSUMED = Assumptions()
SHAPE = SHAPES["8B"]
WORK = Work()
P3O, PPO, LORA = METHODS["p3o"], METHODS["ppo"], METHODS["p3o_lora"]


def llama(shape: Shape, **more: Any) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_width,
        tie_word_embeddings=shape.tied,
        **more,
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_real_model(name: str) -> None:
    with torch.device("meta"):
        model = llama(SHAPES[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == SHAPES[name].parameters
    layer = model.model.layers[0]
    assert sum(parameter.numel() for parameter in layer.parameters()) == SHAPES[name].layer_parameters


def test_the_shapes_are_as_large_as_their_names_say() -> None:
    assert {name: round(shape.parameters / 1e9, 2) for name, shape in SHAPES.items()} == {
        "1B": 1.24,
        "8B": 8.03,
        "70B": 70.55,
    }


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft's own
@pytest.mark.parametrize("name", SHAPES)
def test_adapters_are_those_of_peft(name: str) -> None:
    with torch.device("meta"):
        adapted = get_peft_model(llama(SHAPES[name]), LoraConfig(r=16, target_modules="all-linear"))
    assert adapted.get_nb_trainable_parameters()[0] == SHAPES[name].adapter_parameters(16)


def test_operations_are_those_that_torch_counts() -> None:
    """Torch counts the whole square of attention, so that is what the formula is asked for."""
    length = 20
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        llama(TINY)(torch.zeros(2, length, dtype=torch.long))
    assert counter.get_total_flops() == TINY.forward_operations(2 * length, 2 * length, 2 * length**2)


def test_what_a_layer_keeps_for_the_backward_pass_is_what_autograd_keeps() -> None:
    """A layer more keeps so many numbers of a token; autograd keeps somewhat more (rotations, statistics)."""

    def kept(layers: int) -> int:
        torch.manual_seed(0)
        model = llama(replace(TINY, layers=layers), attn_implementation="sdpa")
        weights = {parameter.data_ptr() for parameter in model.parameters()}
        stores: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.data_ptr() not in weights and tensor.dtype == torch.float32:
                stores[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
            held.append(tensor)
            return tensor

        held: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.zeros(2, 16, dtype=torch.long), use_cache=False)
        return sum(stores.values())

    measured = (kept(3) - kept(1)) / 2 / 32
    assert TINY.kept_per_layer <= measured <= 1.2 * TINY.kept_per_layer


def test_a_cache_is_what_transformers_keeps() -> None:
    cache = llama(TINY)(torch.zeros(1, 7, dtype=torch.long)).past_key_values
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert TINY.cache_bytes * 7 == numbers * 2
    assert SHAPES["8B"].cache_bytes == 131072, "128 KiB a token: 2 · 32 layers · 8 heads · 128 · 2 bytes"


@pytest.mark.parametrize("shared", [True, False])
def test_tokens_and_pairs_are_those_of_the_attention_mask(shared: bool) -> None:
    work = Work(prompts=3, responses=2, prompt_tokens=4, response_tokens=3)
    prompt = [("p", i) for i in range(4)]
    rows = (
        [[*prompt, *((k, i) for k in range(2) for i in range(3))]]
        if shared
        else [[*prompt, *((k, i) for i in range(3))] for k in range(2)]
    )
    sees: Callable[[Any, Any], bool] = lambda a, b: (b[0] in ("p", a[0])) and (a[0] != b[0] or b[1] <= a[1])  # noqa: E731
    pairs = sum(sees(a, b) for row in rows for a in row for b in row)
    found = rows_of(work, 3, shared=shared)
    assert (found.tokens, found.scored, found.pairs) == (3 * sum(map(len, rows)), 3 * 6, 3 * pairs)


def test_memory_of_a_rank_by_hand() -> None:
    """8B on 8 ranks: 8.03 G · 16 bytes / 8 of weights, gradients and moments; 4 bytes / 8 of a reference."""
    parts = learner_memory(SHAPE, WORK, P3O, 8, ASSUMED).parts
    size = 8_030_261_248
    assert parts["weights"] == parts["gradients"] == size * 4 / 8
    assert parts["Adam's moments"] == size
    assert parts["reference"] == size / 2
    # Six groups of 512 + 4 · 512 tokens fit into 16384.
    kept = 32 * 4096 * 2 + 2 * (4 * 4096 + 2 * 4096 + 2 * 1024 + 4 * 14336)
    assert parts["activations"] == 6 * 2560 * kept
    assert "critic" not in parts
    assert learner_memory(SHAPE, WORK, PPO, 8, ASSUMED).parts["critic"] == size * 16 / 8
    lora = learner_memory(SHAPE, WORK, LORA, 8, ASSUMED).parts
    adapter = SHAPE.adapter_parameters(16)
    assert lora["weights"] == size * 2 / 8 + adapter * 4 / 8
    assert lora["Adam's moments"] == adapter
    assert lora["reference"] == lora["weights"], "shards of its own"
    assert "gathered gradients" not in lora
    judged = learner_memory(SHAPE, WORK, replace(P3O, reward_model=True), 8, ASSUMED)
    assert judged.parts["reward model"] == size * 2, "whole: it scores"
    # Embedding, head and last norm; a layer.
    outside, layer = 2 * 128256 * 4096 + 4096, 218_112_000
    assert parts["gathered weights"] == 2 * (outside + 2 * layer)
    assert parts["gathered gradients"] == 2 * outside + 6 * layer


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_rank_gathers_is_what_a_dry_run_counts(name: str) -> None:
    """Of the real model on the meta device, in bfloat16: weights kept, two layers; gradients but for their sums in float32."""
    shape = SHAPES[name]
    with torch.device("meta"):
        counted = gathering(llama(shape), 2, reshards=True)
    parts = learner_memory(shape, WORK, P3O, 64, ASSUMED).parts
    assert parts["gathered weights"] == counted.kept + 2 * counted.layer
    assert parts["gathered gradients"] == counted.gradients + 4 * shape.layer_parameters
    assert evaluation_bytes(shape, learner_memory(shape, WORK, P3O, 64, ASSUMED)) == pytest.approx(
        20 * shape.parameters / 64 - 4 * shape.parameters / 64 + ASSUMED.runtime + 2 * (counted.kept + counted.layer)
    )


def test_recomputation_and_ranks_take_less_memory_and_nothing_takes_more_than_all() -> None:
    plain = replace(P3O, recompute=False)
    sizes = [learner_memory(SHAPE, WORK, P3O, ranks, ASSUMED).total for ranks in (1, 2, 8, 64, 512)]
    assert sizes == sorted(sizes, reverse=True)
    assert (
        learner_memory(SHAPE, WORK, plain, 8, ASSUMED).total > 2.5 * learner_memory(SHAPE, WORK, P3O, 8, ASSUMED).total
    )
    memory = learner_memory(SHAPE, WORK, PPO, 8, ASSUMED)
    assert memory.total == pytest.approx(math.fsum(memory.parts.values()))
    assert memory.lasting < memory.total


def test_traffic_of_a_step_by_hand() -> None:
    """8 ranks, one micro-batch each: the reference's pass and both halves of the training pass gather, one scatter."""
    work = replace(WORK, prompts=48)
    cost = learner_cost(SHAPE, work, P3O, 8, ASSUMED)
    share, outside = SHAPE.parameters * 7 / 8, (2 * 128256 * 4096 + 4096) * 7 / 8
    assert cost.gathered == 2 * (3 * share - outside), "the root stays from its forward to its backward pass"
    assert cost.scattered == 4 * share
    assert cost.communicating == (cost.gathered + cost.scattered) / (450e9 * 0.7)
    behaviour = learner_cost(SHAPE, replace(work, updates=2), P3O, 8, ASSUMED)
    assert behaviour.gathered == cost.gathered + 2 * share, "log π_old"
    judged = learner_cost(SHAPE, work, replace(P3O, reward_model=True), 8, ASSUMED)
    assert judged.gathered == cost.gathered, "it is whole"
    twice = learner_cost(SHAPE, replace(work, prompts=96), P3O, 8, ASSUMED)
    assert twice.scattered == 2 * cost.scattered
    assert twice.gathered == 2 * cost.gathered - 2 * outside, "the reference's root is gathered once a step"
    assert learner_cost(SHAPE, work, P3O, 1, ASSUMED).communicating == 0
    assert collective_rate(8, ASSUMED) == 450e9 * 0.7
    assert collective_rate(16, ASSUMED) == 8 * 50e9 * 0.7


def test_arithmetic_of_a_step_by_hand() -> None:
    """6 N tokens of training and 2 N of the reference, within the share of attention and of the head's fewer positions."""
    work = Work(prompts=8, responses=2, prompt_tokens=64, response_tokens=64)
    cost = learner_cost(SHAPE, work, P3O, 8, ASSUMED)
    tokens = 8 * (64 + 2 * 64)
    assert cost.operations == pytest.approx(8 * SHAPE.parameters * tokens, rel=0.12)
    again = cost.computing * ASSUMED.peak * ASSUMED.training_share * 8 / cost.operations
    assert again == pytest.approx(10 / 8, rel=1e-12), "two passes forward of eight parts more for recomputation"
    critic = learner_cost(SHAPE, work, METHODS["ppo_shared"], 8, ASSUMED)
    assert critic.operations / cost.operations == pytest.approx(2, rel=0.1)
    lora = learner_cost(SHAPE, work, LORA, 8, ASSUMED)
    assert lora.operations / cost.operations == pytest.approx(6 / 8), "no gradients of frozen weights"
    judged = learner_cost(SHAPE, work, replace(P3O, reward_model=True), 8, ASSUMED)
    assert judged.operations / cost.operations == pytest.approx(10 / 8, rel=0.05), "one pass more, without the head"
    assert learner_cost(SHAPE, work, P3O, 4, ASSUMED).operations == cost.operations, "whoever does it"


def test_a_shared_prompt_saves_what_the_tokens_say_and_more_with_larger_groups() -> None:
    work = Work(prompts=64, responses=4, prompt_tokens=512, response_tokens=512)
    own, shared = (learner_cost(SHAPE, work, METHODS[name], 8, ASSUMED).operations for name in ("p3o_own_rows", "p3o"))
    assert own / shared == pytest.approx(4 * 1024 / (512 + 4 * 512), rel=0.1)
    costs = [
        learner_cost(SHAPE, replace(work, responses=k, prompts=256 // k), P3O, 8, ASSUMED).operations
        for k in (2, 4, 8, 16)
    ]
    assert costs == sorted(costs, reverse=True)


def test_servers_are_as_wide_as_the_weights_need() -> None:
    assert [server_gpus(shape, ASSUMED) for shape in SHAPES.values()] == [1, 1, 4]
    with pytest.raises(ValueError, match="not whole servers of 4"):
        rollout_cost(SHAPES["70B"], WORK, 6, ASSUMED)
    with pytest.raises(ValueError, match="no room for a response"):
        rollout_cost(SHAPE, WORK, 8, ASSUMED, taken=60e9)


def test_decoding_reads_the_weights_once_a_token_at_the_least() -> None:
    """One response of 8B on one GPU: 15 GB (no embedding) over 60 % of 3.35 TB/s, and 3 ms besides."""
    work = Work(prompts=1, responses=2, prompt_tokens=1, response_tokens=100, tail=1.0)
    cost = rollout_cost(SHAPE, work, 1, ASSUMED)
    assert cost.seconds == cost.busy
    assert cost.seconds == pytest.approx(100 * (15.01e9 / (0.6 * 3.35e12) + 3e-3), rel=1e-3)
    assert SHAPES["1B"].read_per_token == SHAPES["1B"].parameters, "its embedding is the head"
    assert rollout_cost(SHAPE, replace(work, tail=3.0), 1, ASSUMED).seconds == pytest.approx(3 * cost.seconds, rel=1e-2)


def test_more_servers_sample_faster_and_less_room_samples_in_turns() -> None:
    seconds = [rollout_cost(SHAPE, WORK, gpus, ASSUMED).seconds for gpus in (1, 2, 4, 8, 64)]
    assert seconds == sorted(seconds, reverse=True)
    roomy, cramped = rollout_cost(SHAPE, WORK, 8, ASSUMED), rollout_cost(SHAPE, WORK, 8, ASSUMED, taken=50e9)
    assert cramped.at_once < roomy.at_once == 256
    assert cramped.busy > roomy.busy
    assert cramped.cache <= 0.9 * 80e9 - 50e9 - ASSUMED.runtime - 2 * SHAPE.parameters + 1


def test_a_push_sends_every_server_the_weights_once() -> None:
    assert push_bytes(SHAPES["70B"], 16, ASSUMED) == 4 * 2 * SHAPES["70B"].parameters
    size = 2 * SHAPE.parameters
    assert broadcast_seconds(SHAPE, 16, 16, ASSUMED) == size / (50e9 * 0.7)
    assert broadcast_seconds(SHAPE, 4, 4, ASSUMED) == size / (450e9 * 0.7)
    # 16 ranks gather over eight cards of each node; then down to the host's memory, up again, and out by one card.
    assert push_seconds(SHAPE, 16, 16, ASSUMED) == pytest.approx(size * (1 / 280e9 + 2 / 10e9 + 1 / 35e9))
    assert push_seconds(SHAPE, 16, 496, ASSUMED) == push_seconds(SHAPE, 16, 16, ASSUMED), "however many servers"


def every_plan(name: str, gpus: int) -> list[Plan]:
    return [
        found
        for method in METHODS.values()
        for turns in TURNS
        for found in plans_of(SHAPES[name], WORK, method, gpus, turns, ASSUMED)
    ]


@pytest.mark.parametrize(("name", "gpus"), [("1B", 8), ("8B", 8), ("8B", 64), ("70B", 128)])
def test_what_holds_for_every_plan(name: str, gpus: int) -> None:
    plans = every_plan(name, gpus)
    assert plans
    for found in plans:
        assert found.tokens_per_second * found.seconds == pytest.approx(WORK.sampled_tokens)
        assert found.learners + found.rollouts == (2 * gpus if found.turns == "together" else gpus)
        assert found.memory.total <= 0.9 * 80e9
        assert 0 < found.utilisation < ASSUMED.training_share
        assert found.learner.seconds >= max(found.learner.computing, found.learner.communicating)
        floor = max(found.rollout.busy, found.learner.seconds)
        assert found.seconds >= floor + found.push - 1e-9
        if found.turns != "asynchronous":
            assert found.seconds == pytest.approx(found.rollout.seconds + found.learner.seconds + found.push)
        assert found.push > found.broadcast


def best(turns: Any, gpus: int = 64, work: Work = WORK, method: str = "p3o") -> Plan:
    found = best_plan(SHAPE, work, METHODS[method], gpus, turns, ASSUMED)
    assert found is not None
    return found


def test_working_at_the_same_time_beats_waiting_and_less_work_takes_less_time() -> None:
    assert best("asynchronous").seconds < best("apart").seconds
    assert best("asynchronous").seconds <= min(
        p.seconds for p in plans_of(SHAPE, WORK, P3O, 64, "asynchronous", ASSUMED)
    )
    assert best("asynchronous", 128).seconds < best("asynchronous", 64).seconds
    for longer in (
        replace(WORK, responses=8),
        replace(WORK, prompt_tokens=1024),
        replace(WORK, response_tokens=1024),
        replace(WORK, passes=2),
        replace(WORK, prompts=1024),
    ):
        assert best("asynchronous", work=longer).seconds > best("asynchronous").seconds
    assert best("asynchronous", method="ppo").seconds > best("asynchronous", method="ppo_shared").seconds
    assert best("asynchronous", method="ppo_shared").seconds > best("asynchronous").seconds


def test_the_best_division_balances() -> None:
    """Moving a sixteenth of the GPUs either way makes the slower side slower."""
    found = best("asynchronous", 512)
    both = found.rollout.busy / found.learner.seconds
    assert 0.4 < both < 2.5
    assert (
        best("asynchronous", work=replace(WORK, response_tokens=4096, prompt_tokens=128)).ratio
        >= best("asynchronous").ratio
    )


def test_what_does_not_fit_is_no_plan_and_smaller_passes_are_tried_first() -> None:
    large = SHAPES["70B"]
    assert best_plan(large, WORK, P3O, 8, "asynchronous", ASSUMED) is None
    assert best_plan(large, WORK, LORA, 8, "asynchronous", ASSUMED) is None, "four ranks hold the base twice"
    assert learner_memory(large, WORK, P3O, 52, ASSUMED).total > 0.9 * 80e9
    fitting = fitting_passes(large, WORK, P3O, 52, ASSUMED)
    assert fitting is not None
    assert fitting.micro_batch_tokens < ASSUMED.micro_batch_tokens
    assert best_plan(large, WORK, LORA, 16, "asynchronous", ASSUMED) is not None


def speed_file(path: Path, **more: Any) -> Path:
    """As p3o bench speed writes it, as far as it is read."""
    found = {"256,64": {"contenders": {"p3o": {"train_pass_gemm_share": 0.58}}}}
    run = {"command": "p3o bench speed", "machine": {"cpu": "a CPU of 2 cores", "gpu": None}, "settings": found}
    path.write_text(json.dumps(run | more))
    return path


def test_a_measured_share_takes_the_place_of_the_assumed_one(tmp_path: Path) -> None:
    assumed, told = plan.calibrated(ASSUMED, speed_file(tmp_path / "speed.json"))
    assert assumed == replace(ASSUMED, training_share=0.58 * plan.GEMM_SHARE)
    assert told == (
        "58% of the GEMM rate, measured by p3o bench speed on a CPU of 2 cores at 256,64 tokens, times an assumed 70% of "
        "the peak"
    )
    before, after = (learner_cost(SHAPE, WORK, P3O, 8, a).computing for a in (ASSUMED, assumed))
    assert after / before == pytest.approx(0.40 / (0.58 * 0.70))


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"settings": {}}', '{"settings": {"mixed": {"contenders": {}}}, "machine": {}}']
)
def test_a_file_that_is_none_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(P3OError, match=r"x\.json: not a file written by p3o bench speed"):
        plan.calibrated(ASSUMED, tmp_path / "x.json")


def test_a_share_that_is_none_is_told(tmp_path: Path) -> None:
    wrong = {"256,64": {"contenders": {"p3o": {"train_pass_gemm_share": 1.7}}}}
    with pytest.raises(P3OError, match="it must lie between 0 and 1"):
        plan.calibrated(ASSUMED, speed_file(tmp_path / "x.json", settings=wrong))


@pytest.mark.slow
def test_the_command_prints_tables_and_writes_figures_and_charts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speed = str(speed_file(tmp_path / "speed.json"))
    arguments = ["--json", str(tmp_path / "plan.json"), "--output", str(tmp_path / "charts"), "--calibrate", speed]
    assert main(["bench", "plan", "--prompts", "256", *arguments]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "256 prompts of 512 tokens" in out
    assert "–: does not fit" in out
    assert "58% of the GEMM rate" in out
    results = json.loads((tmp_path / "plan.json").read_text())
    assert results["assumptions"]["training_share"] == pytest.approx(0.58 * 0.70)
    assert len(results["plans"]) == 3 * 5 * 7 * 3
    assert {path.name for path in (tmp_path / "charts").iterdir()} == {"plan.svg", "plan.png"}
    assert main(["bench", "plan", "--calibrate", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
