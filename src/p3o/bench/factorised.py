"""Problem (c): long responses whose tokens are independent given the prompt, so E[r] and KL are sums over tokens.

    π_θ(y_t | x) = softmax( Σ_f φ_f(x) W_tf )[y_t]        r(y|x) = φ(x)·b + Σ_t φ(x)·A_t[y_t]

Every prompt is new: φ(x) = (1, z) with z normal. The reward's standard deviation under the reference is 1 at every length, so
the frontier hardly depends on the length and a token's own effect falls as 1/√T. The critic is linear too, sees the
prompt and the tokens so far, and can represent the true value function.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from p3o.bench.problems import Point, Rollout, SeededNoise, choose, on_grid

VOCABULARY = 4
FEATURES = 3
EVALUATION_PROMPTS = 32


class Factorised:
    """Responses of a fixed length over 4 tokens; prompts are 3 features, the first constant."""

    def __init__(self, seeds: Sequence[int], length: int) -> None:
        self.seeds = seeds
        self._length = length
        instance = SeededNoise(seeds, stream=3)
        self._reference = 0.5 * instance.normal(length, FEATURES, VOCABULARY)
        effects = instance.normal(length, FEATURES, VOCABULARY)
        self._offset = instance.normal(FEATURES)
        self._evaluation_prompts = self._with_constant(instance.normal(EVALUATION_PROMPTS, FEATURES - 1))
        self._reference_logprobs = self._next_token(self._reference, self._evaluation_prompts)
        deviation = self._variance(self._token_rewards(effects, self._evaluation_prompts)).mean(-1).sqrt()
        self._effects = effects / deviation[:, None, None, None]
        self._noise = SeededNoise(seeds, stream=4)

    def initial_policy(self) -> Float[Tensor, "policy parameter"]:
        """The reference's weights."""
        return self._reference.float().flatten(1)

    def initial_critic(self) -> Float[Tensor, "policy critic"]:
        """Weights of the tokens so far and of the position, for every feature of the prompt."""
        return torch.zeros(len(self.seeds), self._length * FEATURES * (VOCABULARY + 1))

    def prompts(self, groups: int) -> Float[Tensor, "policy group feature"]:
        """New prompts."""
        return self._with_constant(self._noise.normal(groups, FEATURES - 1)).float()

    def sample(
        self, policy: Float[Tensor, "policy parameter"], prompts: Float[Tensor, "policy group feature"], responses: int
    ) -> Rollout:
        """Independent tokens."""
        probabilities = self._next_token(self._shaped(policy), prompts).exp().unsqueeze(2)
        uniform = self._noise.uniform(prompts.shape[1], responses, self._length)
        tokens = choose(probabilities.expand(-1, -1, responses, -1, -1), uniform)
        return Rollout(tokens, torch.ones_like(tokens, dtype=torch.bool))

    def encode(
        self, prompts: Float[Tensor, "policy group feature"], tokens: Int[Tensor, "policy group response time"]
    ) -> Float[Tensor, "policy group feature"]:
        """The prompts themselves."""
        del tokens
        return prompts

    def logprobs(
        self,
        policy: Float[Tensor, "policy parameter"],
        inputs: Float[Tensor, "policy group feature"],
        tokens: Int[Tensor, "policy group response time"],
    ) -> Float[Tensor, "policy group response time"]:
        """log π(y_t | x)."""
        table = self._next_token(self._shaped(policy), inputs)
        return table.gather(-1, tokens.transpose(2, 3)).transpose(2, 3)

    def values(
        self,
        critic: Float[Tensor, "policy critic"],
        inputs: Float[Tensor, "policy group feature"],
        tokens: Int[Tensor, "policy group response time"],
    ) -> Float[Tensor, "policy group response time"]:
        """V_t = φ(x)·d_t + Σ_{s<t} φ(x)·C_s[y_s]."""
        weights = critic.reshape(len(self.seeds), self._length, FEATURES, VOCABULARY + 1)
        table = torch.einsum("pgf,ptfv->pgtv", inputs, weights)
        effects = table[..., :VOCABULARY].gather(-1, tokens.transpose(2, 3)).transpose(2, 3)
        return table[..., VOCABULARY].unsqueeze(2) + effects.cumsum(-1) - effects

    def rewards(
        self, prompts: Float[Tensor, "policy group feature"], rollout: Rollout
    ) -> Float[Tensor, "policy group response"]:
        """φ(x)·b + Σ_t φ(x)·A_t[y_t], on the exact grid."""
        table = self._token_rewards(self._effects, prompts.double())
        effects = table.gather(-1, rollout.tokens.transpose(2, 3)).sum(2)
        return on_grid(effects + torch.einsum("pgf,pf->pg", prompts.double(), self._offset).unsqueeze(-1))

    def evaluate(self, policy: Float[Tensor, "policy parameter"]) -> Point:
        """Exact E[r] and KL as sums over tokens, on the evaluation prompts; the reward without φ(x)·b."""
        return self._point(self._next_token(self._shaped(policy).double(), self._evaluation_prompts))

    def gibbs(self, beta: float) -> Point:
        """The Gibbs policy factorises: π*_t ∝ π_ref,t exp(φ(x)·A_t/β)."""
        tilted = self._reference_logprobs + self._token_rewards(self._effects, self._evaluation_prompts) / beta
        return self._point(torch.log_softmax(tilted, -1))

    def _point(self, logprobs: Float[Tensor, "policy prompt time vocab"]) -> Point:
        probabilities = logprobs.exp()
        reward = (probabilities * self._token_rewards(self._effects, self._evaluation_prompts)).sum((-2, -1)).mean(-1)
        return Point(reward, (probabilities * (logprobs - self._reference_logprobs)).sum((-2, -1)).mean(-1))

    def _shaped(self, policy: Float[Tensor, "policy parameter"]) -> Float[Tensor, "policy time feature vocab"]:
        return policy.reshape(len(self.seeds), self._length, FEATURES, VOCABULARY)

    def _variance(self, token_rewards: Float[Tensor, "policy prompt time vocab"]) -> Float[Tensor, "policy prompt"]:
        probabilities = self._reference_logprobs.exp()
        mean = (probabilities * token_rewards).sum(-1, keepdim=True)
        return (probabilities * (token_rewards - mean) ** 2).sum((-2, -1))

    @staticmethod
    def _with_constant(features: Float[Tensor, "policy prompt varying"]) -> Float[Tensor, "policy prompt feature"]:
        return torch.cat([torch.ones_like(features[..., :1]), 0.7 * features], -1)

    @staticmethod
    def _token_rewards(
        effects: Float[Tensor, "policy time feature vocab"], prompts: Float[Tensor, "policy prompt feature"]
    ) -> Float[Tensor, "policy prompt time vocab"]:
        return torch.einsum("pgf,ptfv->pgtv", prompts, effects)

    @staticmethod
    def _next_token(
        weights: Float[Tensor, "policy time feature vocab"], prompts: Float[Tensor, "policy prompt feature"]
    ) -> Float[Tensor, "policy prompt time vocab"]:
        return torch.log_softmax(torch.einsum("pgf,ptfv->pgtv", prompts.to(weights.dtype), weights), -1)
