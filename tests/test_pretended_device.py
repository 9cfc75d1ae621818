"""The trainers on a GPU that is not there: nothing stays on the processor that should not, every number is the processor's, and
the processor waits for the device a few times a step, however many rows and passes there are."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tests.pretended_device import CPU, DEVICE, DeviceTensor, Waits, pretended_device
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaForSequenceClassification

from p3o.algorithms import ALGORITHMS, make_algorithm
from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.evaluation.policy import Evaluator
from p3o.feedback.reward_model import RewardModel
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy
from p3o.models.layouts import LAYOUTS, LayoutName
from p3o.models.precision import compute_in
from p3o.models.recomputation import enable_gradient_checkpointing
from p3o.models.tokens import GroupTokens, encode_prompts, encode_responses, pad_id
from p3o.training.checkpoint import Checkpoints
from p3o.training.loop import fit, resume
from p3o.training.online import OnlineConfig, OnlineTrainer
from p3o.training.reward_model import RewardTrainer, RewardTrainingConfig, ranking_accuracy
from p3o.training.scoring import ComparisonFeedback
from p3o.training.sft import SFTConfig, SFTTrainer, completion_loss

TOKENIZER = build_tokenizer()
PROMPTS = task.prompts(12, seed=0, split="train")


def varied(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [float(sum(map(ord, response)) % 101) for response in responses]


def trainer(
    device: torch.device, name: str = "p3o_v2", *, half: bool = False, recompute: bool = False, **training: object
) -> OnlineTrainer:
    """A trainer on a random model on this device."""
    algorithm = make_algorithm(name)
    policy = build_model(TOKENIZER, seed=0).eval()
    critic = Critic(build_model(TOKENIZER, seed=0).model).to(device) if algorithm.needs_critic else None
    policy.to(device)
    if half:
        compute_in(policy, torch.bfloat16)
    if recompute:
        enable_gradient_checkpointing(policy)
    settings = {
        "steps": 4, "prompts_per_step": 4, "responses_per_prompt": 3, "max_new_tokens": 6, "learning_rate": 1e-3,
        "kl_stop": None,
    }  # fmt: skip
    config = OnlineConfig(**(settings | training))
    return OnlineTrainer(
        policy, frozen_copy(policy), TOKENIZER, algorithm, varied, PROMPTS, config, seed=5, critic=critic
    )


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().cpu() for parameter in model.parameters()])


def test_the_device_refuses_and_counts_what_a_gpu_would() -> None:
    with pretended_device() as waits:
        numbers, places = torch.ones(3, 4).to(DEVICE), torch.arange(3, device=DEVICE)
        assert numbers.device == places.device == DEVICE
        assert waits.take() == {("upload", "outside of p3o"): 1}
        for mixed in (
            lambda: numbers + torch.ones(3, 4),
            lambda: torch.cat([numbers, torch.ones(3, 4)]),
            lambda: torch.ones(3)[places],
            lambda: numbers.numpy(),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                mixed()
        assert isinstance(numbers + torch.tensor(1.0), DeviceTensor), "a single number may come from the processor"
        assert isinstance(numbers.new_zeros(2), DeviceTensor)
        assert not isinstance(torch.zeros(2), DeviceTensor)
        assert isinstance(scaled_dot_product_attention(*[numbers[None]] * 3, is_causal=True), DeviceTensor)
        assert waits.total == 0
        assert float(numbers.sum()) == 12.0
        assert bool((places > 1).any())
        assert numbers.tolist() == [[1.0] * 4] * 3
        assert numbers[places > 1].shape == (1, 4)
        numbers[places > 1] = 2.0  # of which nobody needs to know the size
        assert torch.equal(numbers.cpu()[:, 0], torch.tensor([1.0, 1.0, 2.0]))
        torch.zeros(2).to(DEVICE, non_blocking=True)
        assert Counter(what for what, _ in waits.take().elements()) == {"read": 2, "download": 2, "select": 1}


def test_gradients_on_the_device_are_the_processors() -> None:
    plain = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    with pretended_device() as waits:
        there = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
        there.load_state_dict(plain.state_dict())
        there.to(DEVICE)
        ids = torch.tensor([0, 2, 2])
        waits.take()
        for model, tokens in ((plain, ids), (there, torch.tensor([0, 2, 2], device=DEVICE))):
            model(tokens).logsumexp(-1)[1:].square().sum().backward()
        assert waits.take().total() == 1, "the ids"
        for own, other in zip(plain.parameters(), there.parameters(), strict=True):
            assert isinstance(other.grad, DeviceTensor)
            assert torch.equal(other.grad.cpu(), own.grad)


VARIANTS: dict[str, dict[str, object]] = {
    **{name: {"name": name} for name in ALGORITHMS},
    **{layout: {"layout": layout, "micro_batch_prompts": 1} for layout in ("split", "padded")},
    "bfloat16": {"half": True},
    "bfloat16, critic": {"name": "ppo", "half": True, "critic_warmup_steps": 1},
    "recomputed": {"half": True, "recompute": True, "layout": "padded"},
    "one pass": {"epochs": 1, "minibatches": 1},
    "replay": {"name": "p3o_r", "replay_batches": 1, "kl_stop": 0.5},
    "stop strings": {"stop": (" the",), "sampling_prompts": 3},
}


QUICK = ("p3o_v2", "ppo", "bfloat16")


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in VARIANTS]
)
def test_a_step_on_the_device_is_that_of_the_processor(variant: str) -> None:
    here = trainer(CPU, **VARIANTS[variant])
    steps = 2 if variant in ("replay", "bfloat16, critic") else 1
    expected = [here.step() for _ in range(steps)]
    with pretended_device():
        there = trainer(DEVICE, **VARIANTS[variant])
        assert [there.step() for _ in range(steps)] == expected
        assert all(isinstance(parameter, DeviceTensor) for parameter in there.policy.parameters())
        assert torch.equal(weights(there.policy), weights(here.policy))


def step_waits(**settings: object) -> Counter[tuple[str, str]]:
    """The waits of a step, but for those of the decode loop, whose length the policy decides."""
    with pretended_device() as waits:
        run = trainer(DEVICE, **settings)
        waits.take()
        run.step()
        return Counter({place: n for place, n in waits.take().items() if not in_decoding(place)})


def in_decoding(place: tuple[str, str]) -> bool:
    return place[1].startswith(("models/sampling.py", "models/cache.py", "models/precision.py"))


@pytest.mark.parametrize("name", ["p3o_v2", pytest.param("ppo", marks=pytest.mark.slow)])
def test_neither_rows_nor_passes_are_waited_for(name: str) -> None:
    few = step_waits(name=name, responses_per_prompt=2)
    more = step_waits(name=name, responses_per_prompt=5, prompts_per_step=6, micro_batch_prompts=1)
    assert few == more
    assert few.total() < 60, few


@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize("layout", ["shared", "split", "padded"])
def test_a_pass_waits_for_nothing_but_what_transformers_asks(layout: LayoutName, budget: int | None) -> None:
    """Whether its mask hides anything: not of a mask of ours, once of one that does not, again where it does."""
    groups = [GroupTokens([5, 6, 7], [[8, 9, 4], [3, 2]], [True] * 2), GroupTokens([5], [[8], [3]], [True] * 2)]
    with pretended_device() as waits:
        model = build_model(TOKENIZER, seed=0).eval().to(DEVICE)
        waits.take()
        found = LAYOUTS[layout](budget).logprobs(model, groups, temperature=0.7, time=3, fill=0)
        found.sum().backward()
        assert waits.places == ASKED[layout]


ASKED: dict[str, dict[tuple[str, str], int]] = {
    "shared": {},
    # An empty cache, of keys and values of each of two layers, comes from the processor.
    "split": {("read", "models/layouts.py:prefill"): 2, ("upload", "models/layouts.py:prefill"): 4},
    "padded": {("read", "models/layouts.py:<lambda>"): 1},
}


def test_supervised_fine_tuning_waits_once_for_its_losses_and_once_for_the_norm() -> None:
    """Beside transformers, which asks in every pass whether its mask hides anything."""
    rows = list(
        zip(encode_prompts(TOKENIZER, PROMPTS), encode_responses(TOKENIZER, [p[:20] for p in PROMPTS]), strict=True)
    )

    def run(device: torch.device, waits: Waits | None) -> list[object]:
        model = build_model(TOKENIZER, seed=0).eval().to(device)
        config = SFTConfig(batch_size=6, micro_batch_size=2, learning_rate=1e-3)
        trained = SFTTrainer(model, rows, config, fill=pad_id(TOKENIZER), seed=0)
        found: list[object] = []
        for _ in range(2):
            if waits is not None:
                waits.take()
            found.append(trained.step())
        if waits is not None:
            assert waits.take() == {
                ("download", "functional/devices.py:numbers"): 1,
                ("read", "training/optimisation.py:update"): 1,
                ("read", "models/layouts.py:<lambda>"): 3,
            }
        return [*found, completion_loss(model, rows, fill=pad_id(TOKENIZER), batch_size=5)]

    expected = run(CPU, None)
    with pretended_device() as waits:
        assert run(DEVICE, waits) == expected


def test_a_reward_model_learns_and_scores_there() -> None:
    pairs = [(prompt, prompt[:15], prompt[15:30]) for prompt in PROMPTS]

    def run(device: torch.device) -> list[object]:
        torch.manual_seed(0)
        config = build_model(TOKENIZER, seed=0).config
        config.num_labels = 1
        model = RewardModel(LlamaForSequenceClassification(config).eval().to(device), TOKENIZER)
        settings = RewardTrainingConfig(batch_size=6, micro_batch_size=2, learning_rate=1e-3)
        trained = RewardTrainer(model, pairs, settings, seed=0)
        steps = [trained.step() for _ in range(2)]
        scores = model([PROMPTS[0]] * 2 + PROMPTS[1:3], ["yes", "no, not at all", "so", "it is"])
        return [*steps, ranking_accuracy(model, pairs), scores, str(model)]

    expected = run(CPU)
    with pretended_device():
        assert run(DEVICE) == expected


def test_an_evaluation_and_comparisons_there() -> None:
    def run(device: torch.device) -> list[object]:
        policy, reference = (build_model(TOKENIZER, seed=seed).eval().to(device) for seed in (0, 1))
        evaluator = Evaluator(
            TOKENIZER, reference, PROMPTS, varied, gold=varied, max_new_tokens=5, temperature=0.7,
            missing_eos_penalty=1.0, batch_size=8, seed=0,
        )  # fmt: skip
        found = [evaluator.sampled(policy), evaluator.greedy(policy), evaluator.best_of(policy, 2)]
        compared = trainer(device)
        compared.learn_from(ComparisonFeedback(longer))
        return [*found, compared.step()]

    expected = run(CPU)
    with pretended_device():
        assert run(DEVICE) == expected


def longer(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
    """The preference of the first over the second: that of the longer one."""
    return [float(len(a) > len(b)) - float(len(a) < len(b)) for a, b in zip(first, second, strict=True)]


@pytest.mark.slow
def test_a_checkpoint_of_the_device_goes_on_there_and_on_the_processor(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    with pretended_device():
        first = trainer(DEVICE, "ppo")
        fit(first, lambda step, _: step == 3, checkpoints=checkpoints, every=2)
        again = trainer(DEVICE, "ppo")
        resume(again, checkpoints)
        again.step()
        assert torch.equal(weights(again.policy), weights(first.policy))
    here = trainer(CPU, "ppo")
    resume(here, checkpoints)
    here.step()
    with pretended_device():
        assert torch.equal(weights(here.policy), weights(first.policy))
