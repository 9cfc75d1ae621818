"""A training loop of one's own from p3o's parts: sample pairs, score them, take P3O-V2 steps. No pipeline, no configuration.

p3o demo --quick                                      # makes a small model to start from
python examples/custom_loop.py runs/demo-quick/sft
"""

import sys
from collections.abc import Iterator, Sequence

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from p3o.algorithms.p3o import p3o_joint_clip_loss
from p3o.functional.advantages import reward_gaps
from p3o.functional.logprobs import sequence_logprobs
from p3o.models.ends import end_ids
from p3o.models.language import frozen_copy, response_logprobs
from p3o.models.sampling import sample_responses
from p3o.models.tokens import decode_responses, encode_prompts, pad_id, pad_left

PROMPTS = [f"Human: How do I {task}?\n\nAssistant:" for task in ("bake bread", "paint a wall", "brew tea")]


def brief(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The reward: short answers."""
    return [-float(len(response)) for response in responses]


def train(path: str, steps: int, *, learning_rate: float = 4e-4, updates: int = 2) -> Iterator[tuple[float, float]]:
    """Train the model of this folder; yields the mean reward and the loss of each step's last update."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    policy = AutoModelForCausalLM.from_pretrained(path).eval()  # no dropout: the first ratio is exactly 1
    reference, eos, pad = frozen_copy(policy), end_ids(policy, tokenizer), pad_id(tokenizer)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=learning_rate)
    generator = torch.Generator().manual_seed(0)
    prompts = pad_left(encode_prompts(tokenizer, PROMPTS), pad)
    for _ in range(steps):
        responses = sample_responses(
            policy, prompts, responses_per_prompt=2, max_new_tokens=32, eos_id=eos, pad_id=pad, generator=generator
        )
        texts = [text for group in decode_responses(tokenizer, responses) for text in group]
        rewards = torch.tensor(brief([prompt for prompt in PROMPTS for _ in range(2)], texts), dtype=torch.float64)
        rewards = rewards.view(len(PROMPTS), 2)

        def log_probs(model: torch.nn.Module, responses=responses) -> torch.Tensor:
            return sequence_logprobs(response_logprobs(model, prompts, responses, temperature=1.0), responses.mask)

        with torch.no_grad():
            behaviour, start = log_probs(policy), log_probs(reference)
        for _ in range(updates):
            output = p3o_joint_clip_loss(
                log_probs(policy), behaviour, start, reward_gaps(rewards), epsilon=0.2, beta=0.1
            )
            optimiser.zero_grad()
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimiser.step()
        yield rewards.mean().item(), output.loss.item()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    for step, (reward, loss) in enumerate(train(sys.argv[1], steps=30), start=1):
        print(f"step {step}: reward {reward:.1f}, loss {loss:.3f}")
