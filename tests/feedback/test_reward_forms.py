"""What a reward model reads: its own tokenizer, its own chat template, the same form in training and in RL."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tests.models.families import FAMILIES, Family
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from p3o.algorithms import make_algorithm
from p3o.config import RunConfig
from p3o.data.chat import ChatFormat
from p3o.data.formats import Example, Message
from p3o.errors import P3OError
from p3o.feedback.reward_model import RewardModel, load_reward_model
from p3o.models.language import frozen_copy, load_language_model, load_tokenizer
from p3o.stages.feedback import Feedback
from p3o.stages.models import Models
from p3o.training.loop import fit
from p3o.training.online import OnlineConfig, OnlineTrainer
from p3o.training.reward_model import RewardTrainer, RewardTrainingConfig

CPU = torch.device("cpu")
POLICY_TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }} {{ eos_token }} {% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)
REWARD_TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ 'p' if m['role'] == 'user' else 'o' }} {{ m['content'] }} {% endfor %}n"
)
TALK = (Message("user", "b c"), Message("assistant", "d"), Message("user", "e"))


def rendered_by(tokenizer: PreTrainedTokenizerFast, talk: tuple[Message, ...]) -> str:
    return ChatFormat(tokenizer).render(Example(talk))[0]


def chatting(family: Family, template: str) -> PreTrainedTokenizerFast:
    tokenizer = family.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def classifier(tokenizer: PreTrainedTokenizerFast) -> LlamaForSequenceClassification:
    config = FAMILIES["llama"].config(vocab_size=len(tokenizer), num_labels=1)
    torch.manual_seed(0)
    return LlamaForSequenceClassification(config).eval()


@pytest.fixture
def policy_tokenizer() -> PreTrainedTokenizerFast:
    return chatting(FAMILIES["qwen2"], POLICY_TEMPLATE)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Of the reward model: other ids, other special tokens, another template."""
    return chatting(FAMILIES["llama"], REWARD_TEMPLATE)


def test_a_conversation_is_read_by_the_reward_models_own_template(
    policy_tokenizer: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast
) -> None:
    conversations = {rendered_by(policy_tokenizer, TALK): TALK}
    rendered = rendered_by(policy_tokenizer, TALK)
    assert conversations == {rendered: TALK}
    reward = RewardModel(classifier(tokenizer), tokenizer, conversations=conversations)
    ids, plain = reward.encode([rendered, "a b"], ["f g", "h"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "p", "b", "c", "o", "d", "p", "e", "o", "f", "g", "n"]
    assert tokenizer.convert_ids_to_tokens(plain) == ["<s>", "a", "b", "h", "</s>"], "a plain prompt beside it"
    # What transformers itself makes of the whole conversation.
    turns = [{"role": m.role, "content": m.content} for m in (*TALK, Message("assistant", "f g"))]
    assert ids == tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    alone = reward.model(input_ids=torch.tensor([ids])).logits.item()
    scores = reward([rendered, "a b c d e f g h i j k"], ["f g", "h"])
    assert scores[0] == pytest.approx(alone, abs=1e-6)


def test_without_a_template_of_its_own_it_reads_the_text(policy_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = FAMILIES["llama"].tokenizer()
    conversations = {rendered_by(policy_tokenizer, TALK): TALK}
    reward = RewardModel(classifier(tokenizer), tokenizer, conversations=conversations)
    rendered = rendered_by(policy_tokenizer, TALK)
    (ids,) = reward.encode([rendered], ["f"])
    # The end of the policy's turns is no word of this tokenizer: why a template matters.
    words = tokenizer.convert_ids_to_tokens(ids)
    assert words == ["<s>", "<unk>", *"bc", "<unk>", *"ad", "<unk>", "<unk>", "e", "<unk>", *"af", "</s>"]


def test_training_and_rl_read_the_same_form(tmp_path: Path) -> None:
    """The scorer of RL, recorded at the model, sees the form of training: template, no token more."""
    policy_folder, tokenizer = FAMILIES["qwen2"].write(tmp_path), chatting(FAMILIES["llama"], REWARD_TEMPLATE)
    policy, policy_tokenizer = load_language_model(policy_folder, device=CPU), load_tokenizer(policy_folder)
    policy_tokenizer.chat_template = POLICY_TEMPLATE
    talks = [TALK, (Message("user", "k l"),)]
    prompts = [rendered_by(policy_tokenizer, talk) for talk in talks]
    reward = RewardModel(classifier(tokenizer), tokenizer, conversations=dict(zip(prompts, talks, strict=True)))
    seen: list[Sequence[list[int]]] = []
    forward = reward.forward_groups
    reward.forward_groups = lambda groups: seen.extend(groups) or forward(groups)
    pairs = [(prompt, "f", "g") for prompt in prompts]
    config = RewardTrainingConfig(steps=1, batch_size=2)
    fit(RewardTrainer(reward, pairs, config, seed=0))
    in_training = len(seen)
    rl = OnlineConfig(steps=1, prompts_per_step=2, max_new_tokens=4)
    OnlineTrainer(
        policy, frozen_copy(policy), policy_tokenizer, make_algorithm("p3o_v2"), reward, prompts, rl, seed=0
    ).step()
    assert 0 < in_training < len(seen)
    for rows in seen:
        for ids in rows:
            words = tokenizer.convert_ids_to_tokens(ids)
            assert words[0] == "<s>"
            assert words.count("<s>") == 1
            assert words[1] == "p"
            assert words[-1] == "n"
            assert "</s>" not in words


def test_a_role_that_its_template_refuses_is_told(
    policy_tokenizer: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast
) -> None:
    talk = (Message("system", "a"), Message("user", "b"))
    reward = RewardModel(classifier(tokenizer), tokenizer, conversations={rendered_by(policy_tokenizer, talk): talk})
    with pytest.raises(
        P3OError, match=r"the reward model's chat template rejects a prompt with the roles system, user"
    ):
        reward([rendered_by(policy_tokenizer, talk)], ["c"])


def test_an_encoder_reads_pairs() -> None:
    tokenizer = FAMILIES["llama"].tokenizer()
    cls, sep = 2, 1  # <s> and </s> in the roles of [CLS] and [SEP]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", cls), ("</s>", sep)]
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=24,
        num_labels=1,
        pad_token_id=0,
    )
    model = BertForSequenceClassification(config).eval()
    reward = RewardModel(model, tokenizer, form="pair")
    ids = reward.encode(["a b"], ["c"])
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["<s>", "a", "b", "</s>", "c", "</s>"]
    scores = reward(["a b", "c d e f"], ["c", "g h"])
    with torch.no_grad():
        assert scores[0] == pytest.approx(model(input_ids=torch.tensor(ids)).logits.item(), abs=1e-6)


def test_the_score_is_read_before_the_end_where_padding_is_the_end(tmp_path: Path) -> None:
    """GPT-2 as TRL sets it up: padding and end of sequence are one id. Padding changes nothing."""
    path = FAMILIES["gpt2"].write(tmp_path)
    reward = RewardModel(load_reward_model(path, device=CPU), load_tokenizer(path))
    scores = reward(["a b", "c d e f"], ["c", "g h"])
    for prompt, response, score in (("a b", "c", scores[0]), ("c d e f", "g h", scores[1])):
        ids = reward.tokenizer(f"{prompt} {response}")["input_ids"]
        with torch.no_grad():
            hidden = reward.model.transformer(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
            assert score == pytest.approx(reward.model.score(hidden).item(), abs=1e-5)


def test_the_padding_that_a_model_was_trained_with_is_kept(tmp_path: Path) -> None:
    path = FAMILIES["gpt2"].write(tmp_path)
    model, tokenizer = load_reward_model(path, device=CPU), load_tokenizer(path)
    model.config.pad_token_id = 5
    assert RewardModel(model, tokenizer).fill == 5
    tokenizer.pad_token = "f"
    assert RewardModel(model, tokenizer).fill == tokenizer.pad_token_id != 5


def test_a_row_that_it_cannot_read_is_told(tokenizer: PreTrainedTokenizerFast) -> None:
    reward = RewardModel(classifier(tokenizer), tokenizer)
    assert len(reward(["a " * 40], ["b"])) == 1
    with pytest.raises(P3OError, match=r"has 63 of its tokens, but it can read only 48"):
        reward(["a " * 60], ["b"])


def test_a_model_that_numbers_positions_from_behind_its_padding_reads_fewer(
    policy_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """RoBERTa's 514 positions are 512 tokens; one more is told and no index out of range."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(
        vocab_size=len(policy_tokenizer), max_position_embeddings=20, pad_token_id=1, num_labels=1, **sizes
    )
    reward = RewardModel(RobertaForSequenceClassification(config).eval(), policy_tokenizer)
    assert reward.forward([[3] * 18]).isfinite().all()
    with pytest.raises(P3OError, match="has 19 of its tokens, but it can read only 18"):
        reward.forward([[3] * 19])


def test_a_run_reads_an_encoder_in_pairs_if_it_says_so(
    tmp_path: Path, policy_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    separator = (str(tokenizer.eos_token), int(tokenizer.eos_token_id))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {separator[0]}", pair=f"$A {separator[0]} $B:1 {separator[0]}:1", special_tokens=[separator]
    )
    tokenizer.save_pretrained(tmp_path)
    classifier(tokenizer).save_pretrained(tmp_path)
    config = RunConfig.model_validate({"model": "x", "reward": {"model": str(tmp_path), "form": "pair"}})
    feedback = Feedback(
        config.reward, Models(config, CPU, adapter_seed=0), trained=str, conversations={}, references=dict
    )
    reward = feedback.scorer()
    assert isinstance(reward, RewardModel)
    assert reward.encode(["b c"], ["d"]) == [tokenizer("b c", "d")["input_ids"]]
    with pytest.raises(ValidationError, match="form: pair is only for a given reward model"):
        RunConfig.model_validate({"model": "x", "reward": {"form": "pair"}})
