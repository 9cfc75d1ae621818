"""The reward model reads text in one form, whatever else is in the batch, and learns what it is shown."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import LlamaForSequenceClassification

from p3o.data.embedded import task
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.errors import P3OError
from p3o.feedback.reward_model import RewardModel, load_reward_model
from p3o.models.adapters import LoraSettings, add_adapter
from p3o.models.language import load_language_model, save_model
from p3o.training.loop import fit
from p3o.training.reward_model import RewardTrainer, RewardTrainingConfig, ranking_accuracy

TOKENIZER = build_tokenizer()
PROMPTS = task.prompts(12, seed=0, split="train")
ANSWERS = task.perfect_answers(PROMPTS, seed=0)


def reward_model(batch_size: int = 64) -> RewardModel:
    config = build_model(TOKENIZER, seed=0).config
    config.num_labels = 1
    torch.manual_seed(0)
    return RewardModel(LlamaForSequenceClassification(config).eval(), TOKENIZER, batch_size=batch_size)


def test_a_score_is_that_of_the_row_alone_read_at_its_last_token() -> None:
    scored = reward_model(batch_size=5)
    together = scored(PROMPTS, ANSWERS)
    for prompt, answer, score in zip(PROMPTS, ANSWERS, together, strict=True):
        ids = TOKENIZER(prompt)["input_ids"] + TOKENIZER(answer)["input_ids"] + [TOKENIZER.eos_token_id]
        hidden = scored.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        assert score == pytest.approx(scored.model.score(hidden).item(), abs=1e-5)


def test_a_language_model_folder_gets_a_new_head_and_saves_as_a_classifier(tmp_path: Path) -> None:
    build_model(TOKENIZER, seed=0).save_pretrained(tmp_path / "policy")
    torch.manual_seed(1)
    first = load_reward_model(str(tmp_path / "policy"), device=torch.device("cpu"))
    first.save_pretrained(tmp_path / "reward")
    again = load_reward_model(str(tmp_path / "reward"), device=torch.device("cpu"))
    scores = [RewardModel(model, TOKENIZER)(PROMPTS, ANSWERS) for model in (first, again)]
    assert scores[0] == scores[1]


def test_a_language_model_scores_nothing_until_a_reward_model_is_trained_on_it(tmp_path: Path) -> None:
    """A head that is drawn at random gives rewards that look like any others."""
    cpu = torch.device("cpu")
    build_model(TOKENIZER, seed=0).save_pretrained(tmp_path / "policy")
    with pytest.raises(P3OError, match=r"lack score\.weight, which would be initialised at random.* with `p3o reward`"):
        load_reward_model(str(tmp_path / "policy"), device=cpu, new_head=False)
    load_reward_model(str(tmp_path / "policy"), device=cpu).save_pretrained(tmp_path / "reward")
    load_reward_model(str(tmp_path / "reward"), device=cpu, new_head=False)
    for kind, model in (
        ("CAUSAL_LM", load_language_model(str(tmp_path / "policy"), device=cpu)),
        ("SEQ_CLS", load_reward_model(str(tmp_path / "policy"), device=cpu)),
    ):
        folder = tmp_path / kind
        save_model(add_adapter(model, LoraSettings(rank=2), task=kind, seed=0), TOKENIZER, folder)
    with pytest.raises(P3OError, match="an adapter of a language model, without a head for scores"):
        load_reward_model(str(tmp_path / "CAUSAL_LM"), device=cpu, new_head=False)
    load_reward_model(str(tmp_path / "SEQ_CLS"), device=cpu, new_head=False)


def test_it_learns_an_order() -> None:
    """Short answers preferred: learned from half of the prompts, tested on the other half."""
    scored = reward_model()
    pairs = [(prompt, answer[:30], answer) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    config = RewardTrainingConfig(steps=30, batch_size=6, learning_rate=1e-3)
    losses: list[float] = []
    fit(RewardTrainer(scored, pairs[:6], config, seed=0), lambda step, metrics: losses.append(metrics["loss"]))
    assert losses[-1] < 0.3 < losses[0]
    assert ranking_accuracy(scored, pairs[6:]) == 1.0


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(P3OError, match=r"reward model 'no/such/folder': cannot be loaded"):
        load_reward_model("no/such/folder", device=torch.device("cpu"))


def test_the_end_of_sequence_is_scored_as_it_was_trained() -> None:
    """TRL's reward model learns from plain texts with their end and scores them without it; here both see the same ids."""
    scored = reward_model()
    seen: list[list[int]] = []
    forward = scored.forward_groups

    def recorded(groups: Sequence[Sequence[list[int]]]) -> torch.Tensor:
        seen.extend(row for group in groups for row in group)
        return forward(groups)

    scored.forward_groups = recorded
    pairs = [(prompt, answer, "No.") for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    trainer = RewardTrainer(scored, pairs, RewardTrainingConfig(steps=1, batch_size=len(pairs)), seed=0)
    trainer.step()
    trained = {tuple(row) for row in seen}
    seen.clear()
    scored(PROMPTS, ANSWERS)
    assert {tuple(row) for row in seen} < trained
    assert {row[-1] for row in trained} == {TOKENIZER.eos_token_id}


def test_gradients_of_micro_batches_are_weighted_by_their_share() -> None:
    """5 pairs in passes of 2, 2 and 1: the gradient of the mean of −log σ(gap), each pair scored alone."""
    scored = reward_model()
    pairs = [(prompt, answer, "No.") for prompt, answer in zip(PROMPTS[:5], ANSWERS[:5], strict=True)]
    gaps = [
        scored.forward(scored.encode([prompt], [good])) - scored.forward(scored.encode([prompt], [bad]))
        for prompt, good, bad in pairs
    ]
    loss = -torch.nn.functional.logsigmoid(torch.cat(gaps)).mean()
    expected = torch.autograd.grad(loss, list(scored.model.parameters()))
    trainer = RewardTrainer(scored, pairs, RewardTrainingConfig(steps=1, batch_size=5, micro_batch_size=2), seed=0)
    found: list[torch.Tensor] = []

    def taken(where: object) -> bool:
        found.extend(parameter.grad.clone() for parameter in scored.model.parameters() if parameter.grad is not None)
        return True

    trainer.optimisation.update = taken
    assert trainer.step()["loss"] == pytest.approx(loss.item(), rel=1e-4)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, atol=2e-5 * float(want.abs().max()) + 1e-7, rtol=0)
