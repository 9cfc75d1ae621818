"""An algorithm of one's own in p3o's training loop: the pairwise policy gradient on the sign of the reward gap alone.

Only which response was better enters, not by how much: the loss takes votes as well as scores. An algorithm is a frozen config
and two methods (``p3o.algorithms.base.Algorithm``); the loop, the replay buffer and the critic need to know nothing of it.

    python examples/custom_algorithm.py runs/demo-quick/sft
"""

import sys
from typing import ClassVar, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from p3o.algorithms.base import AlgorithmConfig, clamped_log_ratio, mean_over_pairs, penalised_gaps, ratio_metrics
from p3o.functional.logprobs import sequence_logprobs
from p3o.models.language import frozen_copy
from p3o.training.online import OnlineConfig, OnlineTrainer
from p3o.types import Experience, LossOutput


class SignedPairs:
    """minimise − ½ · sg( sign(r_1 − r_2) − β (k_1 − k_2) ) · log( π_θ(y_1|x) / π_θ(y_2|x) ), with k the log-ratio to π_ref."""

    needs_critic: ClassVar[bool] = False
    accepts_comparisons: ClassVar[bool] = True
    averages_over: ClassVar[Literal["groups", "tokens"]] = "groups"
    prepares_from_logprobs: ClassVar[bool] = False

    def __init__(self, config: AlgorithmConfig) -> None:
        self.config = config

    def prepare(self, experience: Experience) -> Experience:
        return experience.replace(reward_gaps=experience.reward_gaps.sign())

    def loss(
        self, policy_logprobs: torch.Tensor, experience: Experience, values: torch.Tensor | None = None
    ) -> LossOutput:
        mask = experience.response_mask
        policy = sequence_logprobs(policy_logprobs, mask)
        behaviour = sequence_logprobs(experience.behaviour_logprobs, mask)
        reference = sequence_logprobs(experience.reference_logprobs, mask)
        gaps = penalised_gaps(experience.reward_gaps, (behaviour - reference).detach(), self.config.beta)
        pair_terms = 0.5 * gaps * (policy.unsqueeze(-1) - policy.unsqueeze(-2))
        return LossOutput(-mean_over_pairs(pair_terms), ratio_metrics(*clamped_log_ratio(policy, behaviour)))


def train(path: str, steps: int) -> list[dict[str, int | float]]:
    """Train the model of this folder towards short answers; returns the metrics of every step."""
    policy, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    prompts = [f"Human: How do I {task}?\n\nAssistant:" for task in ("bake bread", "paint a wall", "brew tea")]
    config = OnlineConfig(
        steps=steps, prompts_per_step=3, responses_per_prompt=4, learning_rate=4e-4, max_new_tokens=32
    )
    trainer = OnlineTrainer(
        policy,
        frozen_copy(policy),
        tokenizer,
        SignedPairs(AlgorithmConfig(beta=0.1)),
        lambda _, responses: [-float(len(response)) for response in responses],
        prompts,
        config,
        seed=0,
    )
    return [trainer.step() for _ in range(steps)]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    for step, metrics in enumerate(train(sys.argv[1], steps=30), start=1):
        print(f"step {step}: reward {metrics['reward']:.1f}, KL {metrics['kl_k1']:.2f}")
