"""Reward models on group rows: the scores and gradients of the classifier's own forward, row by row, for every family."""

from collections.abc import Sequence
from itertools import count

import pytest
import torch
from tests.models.conftest import EOS, FAMILIES, OTHERS, PAD, VOCABULARY, exact
from tests.models.families import FAMILIES as TOKENIZED
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedConfig

from p3o.errors import P3OError
from p3o.feedback.reward_model import RewardModel
from p3o.models.adapters import LoraSettings, add_adapter
from p3o.models.packing import UNREAD, continuations
from p3o.models.precision import compute_in
from p3o.models.probe import Verdict
from p3o.models.recomputation import enable_gradient_checkpointing
from p3o.training.reward_model import RewardTrainer, RewardTrainingConfig, ranking_accuracy

TOKENIZER = TOKENIZED["llama"].tokenizer()
assert TOKENIZER.pad_token_id == PAD, "the models below are built with this id"


def classifier(config: PreTrainedConfig, dtype: torch.dtype, *, fill: int = PAD) -> nn.Module:
    """A random classifier with scores of order 1."""
    torch.manual_seed(0)
    config.initializer_range, config.num_labels = 0.3, 1
    config.eos_token_id, config.pad_token_id, config.bos_token_id = EOS, fill, None
    return AutoModelForSequenceClassification.from_config(config).to(dtype).eval()


def rows_of(responses: int, *, end: int = EOS) -> list[list[list[int]]]:
    """Whole rows of four prompts of unequal length: a group with equal responses, one whose responses begin alike."""
    generator = torch.Generator().manual_seed(0)
    lengths = count()

    def some(size: int) -> list[int]:
        return torch.randint(2, VOCABULARY, (size,), generator=generator).tolist()

    groups = [
        [[*prompt, *some(1 + 3 * next(lengths) % 7), end] for _ in range(responses)] for prompt in map(some, (5, 1, 12))
    ]
    same, begun = some(9), some(6)
    return [*groups, [[*same, end]] * responses, [[*begun, *some(k), end] for k in range(responses)]]


def alone(model: nn.Module, rows: Sequence[list[int]]) -> Tensor:
    """The reference: the classifier's own forward on each row by itself, without padding."""
    return torch.cat([model(input_ids=torch.tensor([row])).logits[:, 0] for row in rows])


def gradient(model: nn.Module, scores: Tensor) -> Tensor:
    """Of a sum in which every score has a weight of its own, for all parameters."""
    weights = torch.rand(len(scores), generator=torch.Generator().manual_seed(2)).to(scores)
    model.zero_grad()
    (scores * weights).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def agrees(model: nn.Module, reward: RewardModel, groups: list[list[list[int]]], *, relative: float) -> None:
    got = reward.forward_groups(groups)
    expected = alone(model, [row for group in groups for row in group])
    torch.testing.assert_close(got.to(expected), expected, atol=relative * 10, rtol=0)
    wanted = gradient(model, expected)
    assert (gradient(model, got) - wanted).norm() <= relative * wanted.norm()


# GPT-J has no attention in float64; all scores are float32 in the end.
@pytest.mark.parametrize("responses", [2, 3, 4])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gptj"])
def test_shared_rows_score_as_each_row_alone(family: str, responses: int) -> None:
    model = exact(classifier(FAMILIES[family](), torch.float64))
    reward = RewardModel(model, TOKENIZER)
    assert str(reward) == "reward model: layout shared (a prompt and all its responses in one row)"
    agrees(model, reward, rows_of(responses), relative=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_rows_in_float32(family: str) -> None:
    model = classifier(FAMILIES[family](), torch.float32)
    reward = RewardModel(model, TOKENIZER)
    assert str(reward) == "reward model: layout shared (a prompt and all its responses in one row)"
    agrees(model, reward, rows_of(3), relative=1e-4)


@pytest.mark.parametrize("family", OTHERS)
def test_windows_and_biases_are_scored_on_split_rows(family: str) -> None:
    model = classifier(OTHERS[family](), torch.float32)
    reward = RewardModel(model, TOKENIZER)
    assert str(reward).startswith("reward model: layout split (each prompt once, then its responses); not shared: ")
    agrees(model, reward, rows_of(2), relative=1e-4)
    with pytest.raises(P3OError, match=r"layout shared: wrong for this reward model \(.*\); use layout auto"):
        RewardModel(model, TOKENIZER, layout="shared").forward_groups(rows_of(2))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_end_is_not_read_where_it_is_the_padding(family: str) -> None:
    """GPT-2 as TRL sets it up: the score stands before the end of sequence, however many of them follow."""
    model = exact(classifier(FAMILIES[family](), torch.float64, fill=EOS))
    tokenizer = TOKENIZED["llama"].tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    reward = RewardModel(model, tokenizer)
    assert (reward.fill, str(reward)) == (
        EOS,
        "reward model: layout shared (a prompt and all its responses in one row)",
    )
    groups = rows_of(3)
    groups[0][1] += [EOS, EOS]
    agrees(model, reward, groups, relative=1e-6)
    before = reward.forward_groups(groups)
    model.config.pad_token_id = reward.fill = PAD
    assert not torch.allclose(reward.forward_groups(groups), before), "the negative control"


def test_a_prompt_is_read_once() -> None:
    """Tokens that reach the model: the prompt and each response once; with padded rows the prompt for every response."""
    model = classifier(FAMILIES["llama"](), torch.float32)
    prompt, length, responses = 20, 6, 3
    groups = [[[5] * prompt + [6 + k] * length for k in range(responses)]] * 2
    seen: list[int] = []
    for layout, tokens in (("auto", prompt + responses * length), ("padded", responses * (prompt + length))):
        reward = RewardModel(model, TOKENIZER, layout=layout)
        reward.forward_groups(groups)  # the first call probes the model
        handle = model.get_input_embeddings().register_forward_hook(lambda _m, a, _o: seen.append(a[0].numel()))
        reward.forward_groups(groups)
        handle.remove()
        assert sum(seen) == 2 * tokens
        seen.clear()


def test_scoring_keeps_the_order_of_its_rows() -> None:
    """Prompts in disorder, with 1 to 11 responses each, in passes of 5 rows: as each text by itself."""
    reward = RewardModel(classifier(FAMILIES["llama"](), torch.float32), TOKENIZER, batch_size=5)
    prompts = ["a b c", "d"] * 5 + ["e f g h"] + ["a b c"] * 6
    responses = [" ".join("abcdefghijk"[k % 7 : k % 11 + 1]) for k in range(len(prompts))]
    single = [reward([prompt], [response])[0] for prompt, response in zip(prompts, responses, strict=True)]
    assert reward(prompts, responses) == pytest.approx(single, abs=1e-5)
    assert len({round(score, 3) for score in single}) > 10


def test_an_encoder_keeps_its_own_forward() -> None:
    """It sees what comes after, and scores at its first token."""
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = classifier(config, torch.float32)
    reward = RewardModel(model, TOKENIZER)
    assert "layout padded (each response in a row of its own, behind its prompt); not shared: " in str(reward)
    groups = rows_of(2)
    expected = alone(model, [row for group in groups for row in group])
    torch.testing.assert_close(reward.forward_groups(groups), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("recomputed", [False, True])
def test_adapters_and_their_head_are_seen(recomputed: bool) -> None:
    model = exact(classifier(FAMILIES["llama"](), torch.float64))
    adapted = add_adapter(model, LoraSettings(rank=2), task="SEQ_CLS", seed=0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    if recomputed:
        enable_gradient_checkpointing(adapted)
    reward = RewardModel(adapted, TOKENIZER)
    assert str(reward) == "reward model: layout shared (a prompt and all its responses in one row)"
    agrees(adapted, reward, rows_of(2), relative=1e-6)


def test_half_precision_is_judged_by_its_own_rounding() -> None:
    model = compute_in(classifier(FAMILIES["llama"](), torch.float32), torch.bfloat16)
    reward = RewardModel(model, TOKENIZER)
    assert str(reward) == "reward model: layout shared (a prompt and all its responses in one row)"
    groups = rows_of(2)
    expected = alone(model, [row for group in groups for row in group])
    error = (reward.forward_groups(groups) - expected).abs().max()
    assert 1e-4 < error < 0.05 * expected.abs().max()


def test_a_shared_row_may_be_longer_than_the_learned_positions() -> None:
    """Positions start again for every response: it is the longest of these that must fit."""
    for family in ("gpt2", "opt"):
        model = exact(classifier(FAMILIES[family](), torch.float64))
        groups = [[[5] * 40 + [6 + k] * 20 for k in range(4)]]
        assert 40 + 4 * 20 > model.config.max_position_embeddings == 64
        agrees(model, RewardModel(model, TOKENIZER), groups, relative=1e-6)


def test_what_rows_share_is_found_in_their_ids() -> None:
    group = continuations([[5, 6, 7, 8], [5, 6, 9], [5, 6, 7]])
    assert group is not None
    assert (group.prompt, group.responses) == ([5, 6], [[7, 8, UNREAD], [9, UNREAD], [7, UNREAD]])
    same = continuations([[5, 6], [5, 6]])
    assert same is not None
    assert (same.prompt, same.responses) == ([5], [[6, UNREAD]] * 2)
    for rows in ([[5, 6]], [[5, 6], [6, 6]], [[5], [5, 6]], [[], [5]]):
        assert continuations(rows) is None


def test_training_is_the_same_on_either_layout() -> None:
    """Five updates of Bradley–Terry: losses, accuracies and weights agree to rounding."""
    pairs = [(f"{a} b c d", f"{a} e", f"{c} g h {a}") for a in "abcd" for c in "ijk"]
    config = RewardTrainingConfig(steps=5, batch_size=5, micro_batch_size=2, learning_rate=1e-3)
    results = {}
    for layout in ("auto", "padded"):
        model = exact(classifier(FAMILIES["llama"](), torch.float64))
        reward = RewardModel(model, TOKENIZER, layout=layout)
        trainer = RewardTrainer(reward, pairs, config, seed=0)
        metrics = [trainer.step() for _ in range(5)]
        weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        results[layout] = metrics, weights, ranking_accuracy(reward, pairs)
        assert isinstance(reward.verdict, Verdict) == (layout == "auto")
    for ours, theirs in zip(results["auto"][0], results["padded"][0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    torch.testing.assert_close(results["auto"][1], results["padded"][1], atol=1e-5, rtol=0)
    assert results["auto"][2] == results["padded"][2]
