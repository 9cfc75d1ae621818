"""Problem (b): short responses of a small transformer, enumerated on prompts that were never trained on.

A prompt is three attributes of six values; a response is up to five tokens of {end, 1, 2, 3} and ends with ``end`` or at the
limit: 364 responses, all enumerable. The reward adds what the first attribute thinks of each token, the second of each
pair of neighbours and the third of the first token and the length; it has standard deviation 1 under the reference.
Twenty-four of the 216 prompts are held out.

The reference is a random causal transformer that reads the attributes and the tokens so far; the policy begins as its copy and
all of its weights are trained. The critic is a transformer of the same size.
"""

from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from p3o.bench.network import BatchedTransformer
from p3o.bench.problems import Point, Rollout, SeededNoise, choose, exact_point, gibbs_point, on_grid

ATTRIBUTES = 3
VALUES = 6
VOCABULARY = 4
END = 0
LENGTH = 5
HELD_OUT = 24

# Attribute a with value v is token VALUES·a + v at position a; response tokens follow. The last response token is never read.
_PROMPT_TOKENS = ATTRIBUTES * VALUES
_SYMBOLS = (
    *((VALUES * a + value, a) for a in range(ATTRIBUTES) for value in range(VALUES)),
    *((_PROMPT_TOKENS + token, ATTRIBUTES + t) for t in range(LENGTH - 1) for token in range(VOCABULARY)),
)
POLICY = BatchedTransformer(_SYMBOLS, outputs=VOCABULARY)
CRITIC = BatchedTransformer(_SYMBOLS, outputs=1)


class EnumerableSequence:
    """Responses of up to five tokens, with held-out prompts."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = seeds
        instance = SeededNoise(seeds, stream=5)
        self._reference = POLICY.initialise(instance.normal(POLICY.parameters).float())
        self._critic = CRITIC.initialise(instance.normal(CRITIC.parameters).float())
        self._critic[:, -CRITIC.width :] = 0.0  # the output layer
        self._token_effect = instance.normal(VALUES, VOCABULARY)
        self._neighbour_effect = instance.normal(VALUES, VOCABULARY, VOCABULARY)
        self._first_effect = instance.normal(VALUES, VOCABULARY)
        self._length_effect = instance.normal(VALUES, LENGTH + 1)
        self._scale = torch.ones(len(seeds), dtype=torch.float64)
        prompts = torch.cartesian_prod(*[torch.arange(VALUES)] * ATTRIBUTES)
        order = instance.uniform(prompts.shape[0]).argsort(-1)
        self._train, self._held_out = prompts[order[:, HELD_OUT:]], prompts[order[:, :HELD_OUT]]
        self._responses, self._response_mask = _enumerate_responses()
        first_visit, prefix = _prefixes(self._responses, self._response_mask)
        outcomes = self._responses.expand(len(seeds), HELD_OUT, -1, -1)
        self._prefix_inputs = self.encode(self._held_out, outcomes).flatten(2, 3)[:, :, first_visit].flatten(1, 2)
        self._prefix_and_token = prefix * VOCABULARY + self._responses
        self._reference_logprobs = self._response_logprobs(self._reference)
        rewards = self._enumerated_rewards()
        probabilities = self._reference_logprobs.exp()
        centred = rewards - (probabilities * rewards).sum(-1, keepdim=True)
        self._scale = 1.0 / (probabilities * centred**2).sum(-1).mean(-1).sqrt()
        self._rewards = self._enumerated_rewards()
        self._noise = SeededNoise(seeds, stream=6)

    def initial_policy(self) -> Float[Tensor, "policy parameter"]:
        """The reference's weights."""
        return self._reference.clone()

    def initial_critic(self) -> Float[Tensor, "policy critic"]:
        """A network of the policy's size whose outputs are 0."""
        return self._critic.clone()

    def prompts(self, groups: int) -> Int[Tensor, "policy group attribute"]:
        """Training prompts, with replacement."""
        chosen = self._noise.integers(self._train.shape[1], groups)
        return self._train.gather(1, chosen.unsqueeze(-1).expand(-1, -1, ATTRIBUTES))

    def sample(
        self, policy: Float[Tensor, "policy parameter"], prompts: Int[Tensor, "policy group attribute"], responses: int
    ) -> Rollout:
        """Token by token; after ``end`` the response is padding."""
        policies, groups, _ = prompts.shape
        uniform = self._noise.uniform(groups, responses, LENGTH)
        tokens = torch.zeros(policies, groups, responses, LENGTH, dtype=torch.long)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        for t in range(LENGTH):
            contexts = self.encode(prompts, tokens[..., : t + 1])[..., -1, :].flatten(1, 2)
            probabilities = _next_token(policy, contexts).exp()
            chosen = choose(probabilities.reshape(policies, groups, responses, VOCABULARY), uniform[..., t])
            tokens[..., t] = chosen.masked_fill(~mask[..., t], END)
            if t + 1 < LENGTH:
                mask[..., t + 1] = mask[..., t] & (tokens[..., t] != END)
        return Rollout(tokens, mask)

    def encode(
        self, prompts: Int[Tensor, "policy group attribute"], tokens: Int[Tensor, "policy group response time"]
    ) -> UInt8[Tensor, "policy group response time symbol"]:
        """The encoded context of every token: the prompt and the tokens before it."""
        attributes = prompts + VALUES * torch.arange(ATTRIBUTES)
        start = attributes.unsqueeze(2).expand(-1, -1, tokens.shape[2], -1)
        read = tokens[..., :-1]
        response = read + _PROMPT_TOKENS + VOCABULARY * torch.arange(read.shape[-1])
        return POLICY.encode(torch.cat([start, response], -1))[..., ATTRIBUTES - 1 :, :]

    def logprobs(
        self,
        policy: Float[Tensor, "policy parameter"],
        inputs: UInt8[Tensor, "policy group response time symbol"],
        tokens: Int[Tensor, "policy group response time"],
    ) -> Float[Tensor, "policy group response time"]:
        """log π(y_t | x, y_<t); padding holds the log-prob of ``end``, which the mask hides."""
        logprobs = _next_token(policy, inputs.flatten(1, 3)).reshape(*tokens.shape, VOCABULARY)
        return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def values(
        self,
        critic: Float[Tensor, "policy critic"],
        inputs: UInt8[Tensor, "policy group response time symbol"],
        tokens: Int[Tensor, "policy group response time"],
    ) -> Float[Tensor, "policy group response time"]:
        """The critic's value of each token's state."""
        return CRITIC(critic, inputs.flatten(1, 3)).reshape(tokens.shape)

    def rewards(
        self, prompts: Int[Tensor, "policy group attribute"], rollout: Rollout
    ) -> Float[Tensor, "policy group response"]:
        """The four effects, summed and scaled, on the exact grid."""
        return self._reward(prompts.unsqueeze(2).expand(-1, -1, rollout.tokens.shape[2], -1), *rollout)

    def evaluate(self, policy: Float[Tensor, "policy parameter"]) -> Point:
        """Exact E[r] and KL on the held-out prompts."""
        return exact_point(self._response_logprobs(policy), self._reference_logprobs, self._rewards)

    def gibbs(self, beta: float) -> Point:
        """The Gibbs policy's, on the held-out prompts."""
        return gibbs_point(self._reference_logprobs, self._rewards, beta)

    def _response_logprobs(self, policy: Float[Tensor, "policy parameter"]) -> Float[Tensor, "policy prompt outcome"]:
        logprobs = _next_token(policy, self._prefix_inputs).double()
        table = logprobs.reshape(policy.shape[0], HELD_OUT, -1)
        return table[:, :, self._prefix_and_token].masked_fill(~self._response_mask, 0.0).sum(-1)

    def _enumerated_rewards(self) -> Float[Tensor, "policy prompt outcome"]:
        policies, prompts, _ = self._held_out.shape
        outcomes = self._responses.shape[0]
        return self._reward(
            self._held_out.unsqueeze(2).expand(-1, -1, outcomes, -1),
            self._responses.expand(policies, prompts, -1, -1),
            self._response_mask.expand(policies, prompts, -1, -1),
        )

    def _reward(
        self,
        prompts: Int[Tensor, "policy group response attribute"],
        tokens: Int[Tensor, "policy group response time"],
        mask: Bool[Tensor, "policy group response time"],
    ) -> Float[Tensor, "policy group response"]:
        row = torch.arange(tokens.shape[0])[:, None, None]
        a, b, c = prompts.unbind(-1)
        token = self._token_effect[row.unsqueeze(-1), a.unsqueeze(-1), tokens].masked_fill(~mask, 0.0).sum(-1)
        neighbours = self._neighbour_effect[row.unsqueeze(-1), b.unsqueeze(-1), tokens[..., :-1], tokens[..., 1:]]
        neighbour = neighbours.masked_fill(~mask[..., 1:], 0.0).sum(-1)
        first = self._first_effect[row, c, tokens[..., 0]]
        length = self._length_effect[row, c, mask.sum(-1)]
        return on_grid((token + neighbour + first + length) * self._scale[:, None, None])


def _next_token(
    policy: Float[Tensor, "policy parameter"], contexts: UInt8[Tensor, "policy row symbol"]
) -> Float[Tensor, "policy row vocab"]:
    return torch.log_softmax(POLICY(policy, contexts), -1)


def _enumerate_responses() -> tuple[Int[Tensor, "outcome time"], Bool[Tensor, "outcome time"]]:
    """All responses and their masks: ``end`` after 0 … LENGTH − 1 symbols, or a symbol at the limit."""
    symbols = range(1, VOCABULARY)
    responses = [
        [*start, last] + [END] * (LENGTH - 1 - steps)
        for steps in range(LENGTH)
        for start in product(symbols, repeat=steps)
        for last in (range(VOCABULARY) if steps == LENGTH - 1 else [END])
    ]
    tokens = torch.tensor(responses)
    ended_before = torch.nn.functional.pad((tokens == END).cumsum(-1)[:, :-1], (1, 0))
    return tokens, ended_before == 0


def _prefixes(
    responses: Int[Tensor, "outcome time"], mask: Bool[Tensor, "outcome time"]
) -> tuple[Int[Tensor, " prefix"], Int[Tensor, "outcome time"]]:
    """Distinct prefixes before any token of any response: where each one first occurs in the flattened responses, and which one
    each token has (padding: that of the first token)."""
    time = torch.arange(LENGTH)
    earlier = responses.unsqueeze(1) * (time < time.unsqueeze(1))
    rows = torch.cat([time.expand_as(responses).unsqueeze(-1), earlier], -1) * mask.unsqueeze(-1)
    prefixes, prefix = torch.unique(rows.flatten(0, 1), dim=0, return_inverse=True)
    visits = torch.arange(prefix.shape[0])
    first_visit = torch.full_like(prefixes[:, 0], prefix.shape[0]).scatter_reduce(0, prefix, visits, reduce="amin")
    return first_visit, prefix.reshape(responses.shape)
