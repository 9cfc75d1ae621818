"""TRL as an outside oracle: its RLOO, GRPO and DPO trainers really run on a tiny model, and our losses are given the tensors
that they trained on. Values and gradients must agree, on-policy and after an update.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from p3o.algorithms import make_algorithm
from p3o.algorithms.dpo import dpo_loss
from p3o.functional.advantages import reward_gaps
from p3o.functional.logprobs import sequence_logprobs, token_logprobs
from p3o.types import Experience

# What TRL and its dependencies warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefghij"]
BETA = 0.3


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def tiny_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def move(model: torch.nn.Module) -> None:
    """Away from the reference that the trainer copied at its start."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def count_a(completions: list[str], **_: Any) -> list[float]:
    return [text.count("a") - 0.25 * len(text.split()) for text in completions]


def recording(trainer_class: type) -> type:
    """The trainer, keeping what each of its updates was computed from."""

    class Recorder(trainer_class):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.without_gradient: list[Tensor] = []
            self.updates: list[dict[str, Tensor]] = []

        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
            output = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if torch.is_grad_enabled():
                self.policy_logprobs = output[0]
            else:
                self.without_gradient.append(output[0].detach())
            return output

        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
            self.rewards = super()._calculate_rewards(*args, **kwargs)
            return self.rewards

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Tensor]:
            output = super()._generate_and_score_completions(inputs)
            return output | {"row": torch.arange(len(output["advantages"]))}

        def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
            loss = super()._compute_loss(model, inputs)
            (gradient,) = torch.autograd.grad(loss, self.policy_logprobs, retain_graph=True)
            by_row = {
                "gradient": gradient,
                "policy_logprobs": self.policy_logprobs.detach(),
                "mask": inputs["completion_mask"].bool(),
                "advantages": inputs["advantages"],
            }
            order = inputs["row"].argsort()  # TRL shuffles the rows of a batch out of their groups
            self.updates.append({"loss": loss.detach()} | {key: value[order] for key, value in by_row.items()})
            return loss

    return Recorder


def run(trainer_class: type, config_class: type, folder: Path, responses: int, **settings: Any) -> Any:
    """Two updates on one batch of three prompts: the first on-policy, the second off-policy."""
    config = config_class(
        output_dir=str(folder),
        num_generations=responses,
        per_device_train_batch_size=3 * responses,
        steps_per_generation=1,
        num_iterations=2,
        max_steps=2,
        max_completion_length=6,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        beta=BETA,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
        **settings,
    )
    tiny_model().save_pretrained(folder / "model")  # TRL reads its reference from the folder that the policy came from
    trainer = recording(trainer_class)(
        model=LlamaForCausalLM.from_pretrained(folder / "model"),
        reward_funcs=count_a,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": text} for text in ("a b c", "d e", "f g h i")]),
        processing_class=tiny_tokenizer(),
    )
    move(trainer.model)
    trainer.train()
    return trainer


def experience_of(trainer: Any, responses: int) -> Experience:
    """TRL's batch as one of ours. Its first pass without gradient is the behaviour policy, the second the reference."""

    def grouped(tensor: Tensor) -> Tensor:
        return tensor.view(-1, responses, *tensor.shape[1:])

    behaviour, reference = trainer.without_gradient
    rewards = grouped(trainer.rewards.sum(-1)).double()
    return Experience(
        response_mask=grouped(trainer.updates[0]["mask"]),
        behaviour_logprobs=grouped(behaviour),
        reference_logprobs=grouped(reference),
        reward_gaps=reward_gaps(rewards),
        rewards=rewards,
        age=torch.zeros(len(rewards), dtype=torch.long),
    )


def ours(name: str, experience: Experience, update: dict[str, Tensor], **settings: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient by token log-probs, in TRL's shape."""
    algorithm = make_algorithm(name, beta=BETA, **settings)
    policy = update["policy_logprobs"].view_as(experience.behaviour_logprobs).clone().requires_grad_()
    loss = algorithm.loss(policy, algorithm.prepare(experience)).loss
    return loss.detach(), torch.autograd.grad(loss, policy)[0].view_as(update["gradient"])


@pytest.fixture(scope="module")
def rloo_pairs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    return run(RLOOTrainer, RLOOConfig, tmp_path_factory.mktemp("rloo"), responses=2, epsilon=0.2)


def assert_informative(trainer: Any) -> None:
    """Rewards and KL differ within groups, there is padding, and the second update is off-policy."""
    first, second = trainer.updates
    assert not first["mask"].all()
    assert first["gradient"].abs().max() > 1e-3
    assert (second["policy_logprobs"] - first["policy_logprobs"]).abs().max() > 0.05
    assert (trainer.without_gradient[0] - trainer.without_gradient[1]).abs().max() > 0.05
    assert trainer.rewards.unique().numel() > 2


def test_rloo_is_trls_on_and_off_policy(rloo_pairs: Any) -> None:
    assert_informative(rloo_pairs)
    experience = experience_of(rloo_pairs, 2)
    prepared = make_algorithm("rloo", beta=BETA).prepare(experience)
    assert prepared.advantages is not None
    torch.testing.assert_close(prepared.advantages.flatten(), rloo_pairs.updates[0]["advantages"])
    for update in rloo_pairs.updates:
        loss, gradient = ours("rloo", experience, update, epsilon=0.2)
        torch.testing.assert_close(loss, update["loss"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, update["gradient"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "settings"), [("ppg", {}), ("p3o_v1", {"epsilon": 0.2}), ("p3o_v2", {"epsilon": 0.2})]
)
def test_pairwise_gradients_on_policy_are_those_of_trls_rloo(rloo_pairs: Any, name: str, settings: Any) -> None:
    update = rloo_pairs.updates[0]
    _, gradient = ours(name, experience_of(rloo_pairs, 2), update, **settings)
    torch.testing.assert_close(gradient, update["gradient"], rtol=1e-5, atol=1e-7)


def test_pairwise_gradients_with_four_responses_are_those_of_trls_rloo(tmp_path: Path) -> None:
    trainer = run(RLOOTrainer, RLOOConfig, tmp_path, responses=4, epsilon=0.2)
    update, experience = trainer.updates[0], experience_of(trainer, 4)
    for name in ("rloo", "ppg", "p3o_v1", "p3o_v2"):
        torch.testing.assert_close(ours(name, experience, update)[1], update["gradient"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("divide_by_std", [True, False])
def test_grpo_is_trls_on_and_off_policy(tmp_path: Path, divide_by_std: bool) -> None:
    trainer = run(
        GRPOTrainer,
        GRPOConfig,
        tmp_path,
        responses=3,
        epsilon=0.2,
        loss_type="grpo",
        scale_rewards="group" if divide_by_std else "none",
        use_bias_correction_kl=False,  # the paper's k3, without an importance weight
    )
    assert_informative(trainer)
    experience = experience_of(trainer, 3)
    for update in trainer.updates:
        loss, gradient = ours("grpo", experience, update, epsilon=0.2, divide_by_std=divide_by_std)
        torch.testing.assert_close(loss, update["loss"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(gradient, update["gradient"], rtol=1e-4, atol=1e-7)


def test_dpo_is_trls(tmp_path: Path) -> None:
    """Value, and gradient by every parameter, of TRL's DPO loss against ours from the models' logits."""
    rows = [("a b c", "d e", "f g h"), ("d e", "a a a b", "c"), ("f", "g", "h i j a b")]
    trainer = DPOTrainer(
        model=tiny_model(),
        ref_model=tiny_model(),
        args=DPOConfig(
            output_dir=str(tmp_path),
            beta=BETA,
            use_cpu=True,
            bf16=False,
            report_to="none",
            per_device_train_batch_size=3,
        ),
        train_dataset=Dataset.from_list(
            [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows]
        ),
        processing_class=tiny_tokenizer(),
    )
    move(trainer.model)
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    parameters = list(trainer.model.parameters())
    expected = torch.autograd.grad(theirs, parameters)

    def pair_logprobs(model: LlamaForCausalLM) -> Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        tokens, mask = batch["input_ids"][:, 1:], batch["completion_mask"][:, 1:].bool()
        chosen, rejected = sequence_logprobs(token_logprobs(logits[:, :-1], tokens), mask).chunk(2)
        return torch.stack([chosen, rejected], -1)

    with torch.no_grad():
        reference = pair_logprobs(trainer.ref_model)
    chosen_is_first = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).expand(3, 2, 2)
    loss = dpo_loss(pair_logprobs(trainer.model), reference, chosen_is_first, beta=BETA).loss
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-6)
    for got, want in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
