"""LoRA: an exact reference without a second copy of the base, seeded starts, one adapter on the original base."""

import copy
import json
from pathlib import Path

import pytest
import torch
from tests.models.families import FAMILIES
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from p3o.errors import P3OError
from p3o.feedback.reward_model import RewardModel, load_reward_model
from p3o.models.adapters import LoraSettings, add_adapter, merged, unheeded
from p3o.models.heads import Critic
from p3o.models.language import (
    accepted,
    frozen_copy,
    load_language_model,
    load_model_config,
    load_tokenizer,
    response_logprobs,
    save_model,
)
from p3o.models.sampling import sample_responses
from p3o.models.sharing import share_frozen_weights
from p3o.models.tokens import PromptBatch, ResponseBatch, pad_left

CPU, F64 = torch.device("cpu"), torch.float64
LORA = LoraSettings(rank=2, alpha=4)


def batch() -> tuple[PromptBatch, ResponseBatch]:
    tokens = torch.tensor([[[5, 6, 7], [8, 9, 2]], [[3, 4, 5], [10, 11, 12]]])
    mask = torch.tensor([[[True, True, True], [True, True, False]], [[True, False, False], [True, True, True]]])
    return pad_left([[4, 5, 6], [7]], 0), ResponseBatch(tokens, mask, torch.ones(2, 2, dtype=torch.bool))


def logprobs(model: nn.Module) -> Tensor:
    return response_logprobs(model, *batch(), temperature=0.7)


def update(model: nn.Module, steps: int = 3) -> None:
    """Some steps away from where it is."""
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        (-logprobs(model).sum()).backward()
        optimiser.step()


def own_storages(model: nn.Module, owner: nn.Module) -> set[str]:
    """Names of the weights that the model does not share with the owner."""
    theirs = {parameter.data_ptr() for parameter in owner.parameters()}
    return {name for name, parameter in model.named_parameters() if parameter.data_ptr() not in theirs}


@pytest.fixture
def base(tmp_path: Path) -> str:
    return FAMILIES["llama"].write(tmp_path / "base")


def start(kind: str, base: str, folder: Path) -> nn.Module:
    """A policy before RL: whole, with a fresh adapter, or with the adapter that SFT left."""
    policy = load_language_model(base, device=CPU, dtype=F64)
    if kind == "whole":
        return policy
    policy = add_adapter(policy, LORA, task="CAUSAL_LM", seed=3)
    if kind == "after LoRA SFT":
        update(policy)
        save_model(policy, load_tokenizer(base), folder)
        policy = load_language_model(str(folder), device=CPU, dtype=F64)
    return policy


@pytest.mark.parametrize("kind", ["whole", "fresh LoRA", "after LoRA SFT"])
def test_the_reference_stays_what_the_policy_was(base: str, tmp_path: Path, kind: str) -> None:
    policy = start(kind, base, tmp_path / "sft")
    apart = copy.deepcopy(policy)
    reference = frozen_copy(policy)
    learning = [parameter.requires_grad for parameter in policy.parameters()]
    with torch.no_grad():
        before = logprobs(apart)
        assert torch.equal(logprobs(reference), before)
        assert torch.equal(logprobs(policy), before)
    update(policy)
    with torch.no_grad():
        assert torch.equal(logprobs(reference), before)
        assert (logprobs(policy) - before).abs().max() > 0.1, "the policy has moved"
    assert [parameter.requires_grad for parameter in policy.parameters()] == learning
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert reference.config.model_type == "llama"
    if kind != "whole":
        assert all("lora_" in name for name in own_storages(reference, policy)), "the base is held once"


def test_rl_after_lora_sft_is_one_adapter_on_the_original_base(base: str, tmp_path: Path) -> None:
    policy = start("after LoRA SFT", base, tmp_path / "sft")
    assert add_adapter(policy, LORA, task="CAUSAL_LM", seed=9) is policy
    update(policy)
    save_model(policy, load_tokenizer(base), tmp_path / "rl")
    assert json.loads((tmp_path / "rl" / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    assert torch.equal(logprobs(load_language_model(str(tmp_path / "rl"), device=CPU, dtype=F64)), logprobs(policy))
    assert load_model_config(str(tmp_path / "rl")).model_type == "llama"


def test_a_fresh_adapter_leaves_the_generators_of_gpus_alone(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forking all of them warns where there are several; torch.manual_seed seeds them all."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("seeded the GPUs"))
    add_adapter(load_language_model(base, device=CPU, dtype=F64), LORA, task="CAUSAL_LM", seed=1)


def test_a_fresh_adapter_changes_nothing_and_comes_from_its_seed_alone(base: str) -> None:
    plain = load_language_model(base, device=CPU, dtype=F64)
    torch.manual_seed(5)
    following = torch.rand(3)
    drawn = []
    for global_seed, seed in ((5, 1), (6, 1), (5, 2)):
        torch.manual_seed(global_seed)
        policy = add_adapter(load_language_model(base, device=CPU, dtype=F64), LORA, task="CAUSAL_LM", seed=seed)
        if global_seed == 5:
            assert torch.equal(torch.rand(3), following), "the global generator is left alone"
        assert torch.equal(logprobs(policy), logprobs(plain))
        assert not policy.training
        drawn.append(torch.cat([p.detach().flatten() for p in policy.parameters() if p.requires_grad]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_update_is_alpha_over_r_times_b_a(base: str) -> None:
    """W + (α/r)·BA by hand, on one layer."""
    settings = LoraSettings(rank=2, alpha=5, target_modules=("q_proj",))
    policy = add_adapter(load_language_model(base, device=CPU, dtype=F64), settings, task="CAUSAL_LM", seed=0)
    update(policy)
    weights = dict(policy.named_parameters())
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    a, b = weights[f"{layer}.lora_A.default.weight"], weights[f"{layer}.lora_B.default.weight"]
    expected = weights[f"{layer}.base_layer.weight"] + 5 / 2 * b @ a
    whole = dict(merged(policy).named_parameters())["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-14)
    assert {name.split(".")[-4] for name in weights if "lora_A" in name} == {"q_proj"}


def test_an_adapted_model_gets_the_arguments_of_the_model_inside(base: str) -> None:
    plain = load_language_model(base, device=CPU)
    arguments = {"position_ids": 1, "logits_to_keep": 2, "no_such_argument": 3}
    expected = accepted(plain, arguments)
    assert set(expected) == {"position_ids", "logits_to_keep"}
    assert accepted(add_adapter(plain, LORA, task="CAUSAL_LM", seed=0), arguments) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_from_an_adapted_model_is_sampling_from_the_merged_one(tmp_path: Path, family: str) -> None:
    base = FAMILIES[family].write(tmp_path)
    policy = add_adapter(load_language_model(base, device=CPU, dtype=F64), LORA, task="CAUSAL_LM", seed=0)
    update(policy)
    samples = [
        sample_responses(
            model,
            batch()[0],
            responses_per_prompt=3,
            max_new_tokens=6,
            eos_id=1,
            pad_id=0,
            generator=torch.Generator().manual_seed(0),
        ).tokens
        for model in (policy, merged(policy))
    ]
    assert torch.equal(samples[0], samples[1])


def test_a_critic_on_an_adapter_starts_from_the_adapted_body(base: str, tmp_path: Path) -> None:
    policy = start("after LoRA SFT", base, tmp_path / "sft")
    torch.manual_seed(0)
    head = torch.randn(1, 16)
    values = []
    for path in ("sft", "merged"):
        if path == "merged":
            save_model(policy, load_tokenizer(base), tmp_path / path, merge=True)
        critic = Critic.from_pretrained(str(tmp_path / path), device=CPU, dtype=F64)
        with torch.no_grad():
            assert torch.equal(critic(*batch()), torch.zeros(2, 2, 3)), "a new head is zero"
            critic.head.weight.copy_(head)
        values.append(critic(*batch()))
        learning = {name for name, p in critic.named_parameters() if p.requires_grad}
        assert all("lora_" in name or name.startswith("head") for name in learning) == (path == "sft")
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-5)
    assert values[0].abs().max() > 0.1


def test_a_critic_may_have_a_fresh_adapter(base: str) -> None:
    critic = Critic.from_pretrained(base, device=CPU, lora=LORA)
    values = critic(*batch())
    values.sum().backward()
    learning = {name for name, p in critic.named_parameters() if p.requires_grad}
    assert len(learning) > 2
    assert all("lora_" in name or name.startswith("head") for name in learning)


def test_four_models_hold_one_base(base: str) -> None:
    policy = add_adapter(load_language_model(base, device=CPU), LORA, task="CAUSAL_LM", seed=0)
    reference = frozen_copy(policy)
    critic = Critic.from_pretrained(base, device=CPU, lora=LORA, seed=1)
    torch.nn.init.normal_(critic.head.weight)
    before = critic(*batch())
    frozen = sum(p.numel() * p.element_size() for p in critic.parameters() if not p.requires_grad)
    assert share_frozen_weights(critic, policy) == frozen > 0
    assert torch.equal(critic(*batch()), before)
    update(policy)
    assert torch.equal(critic(*batch()), before), "what the policy learns does not reach the critic"
    for model in (reference, critic):
        assert all("lora_" in name or name.startswith("head") for name in own_storages(model, policy))
    assert share_frozen_weights(critic, policy) == 0, "there is nothing left to share"


def test_a_reward_model_scores_the_same_on_the_policys_base(base: str) -> None:
    tokenizer = load_tokenizer(base)
    policy = add_adapter(load_language_model(base, device=CPU), LORA, task="CAUSAL_LM", seed=0)
    classifier = add_adapter(load_reward_model(base, device=CPU), LORA, task="SEQ_CLS", seed=1)
    reward = RewardModel(classifier, tokenizer)
    before = reward(["a b", "c"], ["d", "e f"])
    body = sum(
        p.numel() * 4 for name, p in classifier.named_parameters() if ".model.model." in name and "lora" not in name
    )
    assert share_frozen_weights(classifier, policy) == body > 0
    update(policy)
    assert reward(["a b", "c"], ["d", "e f"]) == before


def test_weights_that_learn_or_differ_are_not_shared(base: str, tmp_path: Path) -> None:
    whole = load_language_model(base, device=CPU)
    critic = Critic.from_pretrained(base, device=CPU, lora=LORA)
    assert share_frozen_weights(critic, whole) == 0, "the owner trains these"
    other = load_language_model(FAMILIES["llama"].write(tmp_path / "other", seed=1), device=CPU)
    other = add_adapter(other, LORA, task="CAUSAL_LM", seed=0)
    norms = sum(p.numel() * 4 for name, p in critic.named_parameters() if "norm" in name)
    assert share_frozen_weights(critic, other) == norms, "only what is equal: the norms, all ones in both"


def test_a_base_that_is_gone_is_named(base: str, tmp_path: Path) -> None:
    start("after LoRA SFT", base, tmp_path / "sft")
    Path(base).rename(tmp_path / "moved")
    with pytest.raises(P3OError, match=rf"model '.*sft': an adapter on '{base}', but that folder does not exist"):
        load_language_model(str(tmp_path / "sft"), device=CPU)


def test_an_adapter_without_a_tokenizer_has_its_bases(base: str, tmp_path: Path) -> None:
    start("after LoRA SFT", base, tmp_path / "sft")
    for file in (tmp_path / "sft").glob("token*"):
        file.unlink()
    assert load_tokenizer(str(tmp_path / "sft")).get_vocab() == load_tokenizer(base).get_vocab()


def test_an_adapter_of_another_base_is_refused(base: str, tmp_path: Path) -> None:
    start("after LoRA SFT", base, tmp_path / "sft")
    path = tmp_path / "sft" / "adapter_config.json"
    other = FAMILIES["gpt_neox"].write(tmp_path / "other")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": other}))
    with pytest.raises(P3OError, match=r"model '.*sft': the adapter cannot be applied to its base"):
        load_language_model(str(tmp_path / "sft"), device=CPU)


def test_an_adapter_without_a_base_on_disk_is_saved_merged_or_not_at_all(base: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    made_here = LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
    policy = add_adapter(made_here.eval(), LORA, task="CAUSAL_LM", seed=0)
    with pytest.raises(P3OError, match=r"its base model is not in any folder; save the base first, or save merged"):
        save_model(policy, tokenizer, tmp_path / "adapter")
    save_model(policy, tokenizer, tmp_path / "merged", merge=True)
    assert load_model_config(str(tmp_path / "merged")).hidden_size == 8


def test_an_adapter_that_transformers_put_in_is_not_taken_for_merged(base: str, tmp_path: Path) -> None:
    start("after LoRA SFT", base, tmp_path / "sft")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    ours = load_language_model(str(tmp_path / "sft"), device=CPU)
    torch.testing.assert_close(logprobs(model), logprobs(ours), rtol=0, atol=1e-5)
    with pytest.raises(P3OError, match=r"put into its model cannot be merged; use load_language_model"):
        save_model(model, load_tokenizer(base), tmp_path / "merged", merge=True)


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_settings_that_an_adapter_does_not_have_are_told(tmp_path: Path, family: str, task: str) -> None:
    """Llama's block has seven linear layers; GPT-2's has four, in matrices that are no nn.Linear."""
    path = FAMILIES[family].write(tmp_path / "base")
    count, some, few = {"llama": (7, ("q_proj", "down_proj"), 2), "gpt2": (4, ("c_proj",), 2)}[family]
    asked = LoraSettings(rank=2, alpha=4, target_modules=some)
    policy = add_adapter(load_language_model(path, device=CPU), asked, task="CAUSAL_LM", seed=0)
    assert unheeded(load_language_model(path, device=CPU), LoraSettings()) is None
    save_model(policy, load_tokenizer(path), tmp_path / "adapter")
    adapter = str(tmp_path / "adapter")
    again = (
        load_language_model(adapter, device=CPU)
        if task == "CAUSAL_LM"
        else load_reward_model(adapter, device=CPU, new_head=True)
    )
    assert unheeded(again, asked) is None
    lead = "it is already an adapter, whose training continues with its own settings: "
    modules = f"{few} adapted layers, not the {count} of lora.target_modules"
    assert unheeded(again, LoraSettings()) == f"{lead}rank 2, not lora.rank 16; alpha 4, not lora.alpha 32; {modules}"
    assert unheeded(again, LoraSettings(rank=2, alpha=4)) == lead + modules
    whole = add_adapter(load_language_model(path, device=CPU), LORA, task="CAUSAL_LM", seed=0)
    assert unheeded(whole, LORA) is None


def test_a_module_that_is_not_there_is_named(base: str) -> None:
    settings = LoraSettings(target_modules=("no_proj",))
    with pytest.raises(P3OError, match=r"lora\.target_modules: .*no_proj.*; name linear layers of the model"):
        add_adapter(load_language_model(base, device=CPU), settings, task="CAUSAL_LM", seed=0)
