"""Problem (a): a tabular contextual bandit whose reward is shifted on every prompt by its own offset δ(x) ∼ N(0, s²).

One token per response. Offsets change neither which response is better nor the Gibbs policy: whatever a method loses
as s grows, it loses to its own sensitivity. Evaluation is on the same prompts with the offsets taken out.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from p3o.bench.problems import Point, Rollout, SeededNoise, choose, exact_point, gibbs_point, on_grid

PROMPTS = 64
ACTIONS = 16


class ShiftedBandit:
    """64 prompts, 16 responses, standard normal rewards; the reference is a softmax of normal logits."""

    def __init__(self, seeds: Sequence[int], shift: float) -> None:
        self.seeds = seeds
        instance = SeededNoise(seeds, stream=1)
        self._reference = 0.7 * instance.normal(PROMPTS, ACTIONS)
        self._rewards = on_grid(instance.normal(PROMPTS, ACTIONS))
        self._offsets = on_grid(shift * instance.normal(PROMPTS))
        self._reference_logprobs = torch.log_softmax(self._reference, -1)
        self._noise = SeededNoise(seeds, stream=2)

    def initial_policy(self) -> Float[Tensor, "policy parameter"]:
        """The reference's logits."""
        return self._reference.float().flatten(1)

    def initial_critic(self) -> Float[Tensor, "policy critic"]:
        """One value per prompt."""
        return torch.zeros(len(self.seeds), PROMPTS)

    def prompts(self, groups: int) -> Int[Tensor, "policy group"]:
        """Indices of prompts, with replacement."""
        return self._noise.integers(PROMPTS, groups)

    def sample(
        self, policy: Float[Tensor, "policy parameter"], prompts: Int[Tensor, "policy group"], responses: int
    ) -> Rollout:
        """Independent actions."""
        groups = prompts.shape[1]
        probabilities = self._logprobs(policy, prompts).exp()
        uniform = self._noise.uniform(groups, responses)
        actions = choose(probabilities.unsqueeze(2).expand(-1, -1, responses, -1), uniform)
        tokens = actions.unsqueeze(-1)
        return Rollout(tokens, torch.ones_like(tokens, dtype=torch.bool))

    def encode(
        self, prompts: Int[Tensor, "policy group"], tokens: Int[Tensor, "policy group response 1"]
    ) -> Int[Tensor, "policy group"]:
        """The prompts themselves."""
        del tokens
        return prompts

    def logprobs(
        self,
        policy: Float[Tensor, "policy parameter"],
        inputs: Int[Tensor, "policy group"],
        tokens: Int[Tensor, "policy group response 1"],
    ) -> Float[Tensor, "policy group response 1"]:
        """log π(y|x)."""
        return self._logprobs(policy, inputs).gather(-1, tokens.squeeze(-1)).unsqueeze(-1)

    def values(
        self,
        critic: Float[Tensor, "policy critic"],
        inputs: Int[Tensor, "policy group"],
        tokens: Int[Tensor, "policy group response 1"],
    ) -> Float[Tensor, "policy group response 1"]:
        """V(x), the same for every response."""
        return critic.gather(1, inputs)[:, :, None, None].expand(tokens.shape)

    def rewards(self, prompts: Int[Tensor, "policy group"], rollout: Rollout) -> Float[Tensor, "policy group response"]:
        """r(y|x) + δ(x)."""
        row = torch.arange(len(self.seeds)).unsqueeze(1)
        return self._rewards[row, prompts].gather(-1, rollout.tokens.squeeze(-1)) + self._offsets[
            row, prompts
        ].unsqueeze(-1)

    def evaluate(self, policy: Float[Tensor, "policy parameter"]) -> Point:
        """Exact E[r] and KL, offsets taken out."""
        logprobs = torch.log_softmax(policy.double().reshape(self._reference.shape), -1)
        return exact_point(logprobs, self._reference_logprobs, self._rewards)

    def gibbs(self, beta: float) -> Point:
        """The Gibbs policy's, offsets taken out."""
        return gibbs_point(self._reference_logprobs, self._rewards, beta)

    def _logprobs(
        self, policy: Float[Tensor, "policy parameter"], prompts: Int[Tensor, "policy group"]
    ) -> Float[Tensor, "policy group vocab"]:
        logits = policy.reshape(len(self.seeds), PROMPTS, ACTIONS)
        chosen = logits.gather(1, prompts.unsqueeze(-1).expand(-1, -1, ACTIONS))
        return torch.log_softmax(chosen, -1)
