"""A problem small enough to write down every response, in float64: what the losses estimate is then a number.

Two prompts, a vocabulary of three tokens of which 0 ends the response, at most three tokens: 15 responses per prompt and
225 pairs. A policy is a table of next-token logits, one row per prefix, so that it can be any distribution over responses.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from p3o.algorithms import Algorithm
from p3o.functional.advantages import reward_gaps
from p3o.functional.logprobs import sequence_logprobs, token_logprobs
from p3o.types import Experience

END, VOCAB, TIME, PROMPTS = 0, 3, 3, 2


def every_response() -> list[tuple[int, ...]]:
    """All token sequences that end with END or are cut at TIME."""
    words = [
        word
        for length in range(1, TIME + 1)
        for word in itertools.product(range(VOCAB), repeat=length)
        if END not in word[:-1] and (word[-1] == END or length == TIME)
    ]
    assert len(words) == 15
    return words


RESPONSES = every_response()
PREFIXES = sorted({word[:t] for word in RESPONSES for t in range(len(word))}, key=lambda prefix: (len(prefix), prefix))
TOKENS = torch.tensor([[*word, *[END] * (TIME - len(word))] for word in RESPONSES])
STATES = torch.tensor([[PREFIXES.index(word[:t]) if t < len(word) else 0 for t in range(TIME)] for word in RESPONSES])
MASK = torch.tensor([[t < len(word) for t in range(TIME)] for word in RESPONSES])


def random_table(seed: int, scale: float = 1.0) -> Tensor:
    """Next-token logits, [prompt, prefix, vocab]."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(PROMPTS, len(PREFIXES), VOCAB, dtype=torch.float64, generator=generator)


def random_rewards(seed: int) -> Tensor:
    """[prompt, response], multiples of 2^-10, so that adding a shift is exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2048, 2049, (PROMPTS, len(RESPONSES)), generator=generator).double() / 1024


def logprobs_of_tokens(table: Tensor) -> Tensor:
    """[prompt, response, time]; padding holds the log-prob of a token that was never sampled."""
    return token_logprobs(table[:, STATES], TOKENS.expand(PROMPTS, -1, -1))


def logprobs_of_responses(table: Tensor) -> Tensor:
    """[prompt, response]."""
    return sequence_logprobs(logprobs_of_tokens(table), MASK.expand(PROMPTS, -1, -1))


def kl(table: Tensor, reference: Tensor) -> Tensor:
    """KL(policy ‖ reference), mean over prompts."""
    policy = logprobs_of_responses(table)
    return (policy.exp() * (policy - logprobs_of_responses(reference))).sum(-1).mean()


def expected_reward(table: Tensor, rewards: Tensor) -> Tensor:
    """E_{y∼policy} r(y|x), mean over prompts."""
    return (logprobs_of_responses(table).exp() * rewards).sum(-1).mean()


def gradient(function: Callable[[Tensor], Tensor], table: Tensor) -> Tensor:
    """∇ of a scalar function of the table."""
    leaf = table.clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


def gibbs_logprobs(reference: Tensor, rewards: Tensor, beta: float) -> Tensor:
    """log π*(y|x) = log π_ref + r/β − log Z(x), [prompt, response]."""
    return torch.log_softmax(logprobs_of_responses(reference) + rewards / beta, dim=-1)


def table_of(logprobs: Tensor) -> Tensor:
    """The table whose distribution over responses is this one: next-token probabilities from sums over continuations."""
    mass = torch.zeros(PROMPTS, len(PREFIXES), VOCAB, dtype=torch.float64)
    for index, word in enumerate(RESPONSES):
        for t, token in enumerate(word):
            mass[:, PREFIXES.index(word[:t]), token] += logprobs[:, index].exp()
    return mass.log()


@dataclass(frozen=True)
class Enumeration:
    """Every group of K responses that ``behaviour`` can sample, with its probability."""

    behaviour: Tensor
    reference: Tensor
    rewards: Tensor
    responses: int

    @cached_property
    def index(self) -> Tensor:
        """[group, response]: which responses a group holds; all groups of the first prompt, then of the second."""
        tuples = torch.tensor(list(itertools.product(range(len(RESPONSES)), repeat=self.responses)))
        return tuples.repeat(PROMPTS, 1)

    @cached_property
    def prompt(self) -> Tensor:
        """[group, 1]."""
        return torch.arange(PROMPTS).repeat_interleave(len(self.index) // PROMPTS).unsqueeze(-1)

    @cached_property
    def probability(self) -> Tensor:
        """[group], sums to 1 with prompts equally likely."""
        return logprobs_of_responses(self.behaviour)[self.prompt, self.index].sum(-1).exp() / PROMPTS

    @cached_property
    def experience(self) -> Experience:
        """All groups as one batch; the critic knows nothing (values of 0)."""
        rewards = self.rewards[self.prompt, self.index]
        behaviour = logprobs_of_tokens(self.behaviour)[self.prompt, self.index]
        return Experience(
            response_mask=MASK[self.index],
            behaviour_logprobs=behaviour,
            reference_logprobs=logprobs_of_tokens(self.reference)[self.prompt, self.index],
            reward_gaps=reward_gaps(rewards),
            rewards=rewards,
            age=torch.zeros(len(rewards), dtype=torch.long),
            values=torch.zeros_like(behaviour),
        )

    def slopes(self, algorithm: Algorithm, table: Tensor) -> Tensor:
        """−∂loss/∂log π of every token, [group, response, time], in units of a loss of one group.

        Losses are means over groups (PPO's over tokens, rescaled here to the sum over a response, mean over responses).
        """
        policy = logprobs_of_tokens(table)[self.prompt, self.index].detach().requires_grad_()
        values = torch.zeros_like(policy) if algorithm.needs_critic else None
        loss = algorithm.loss(policy, algorithm.prepare(self.experience), values).loss
        share = self.experience.response_mask.sum() / self.responses if algorithm.needs_critic else len(self.index)
        return -share * torch.autograd.grad(loss, policy)[0]

    def expected_ascent(self, algorithm: Algorithm, table: Tensor) -> Tensor:
        """The expectation of the ascent direction −∇loss over every group, [prompt, prefix, vocab]."""
        weight = self.slopes(algorithm, table) * self.probability[:, None, None]
        return gradient(lambda leaf: (weight * logprobs_of_tokens(leaf)[self.prompt, self.index]).sum(), table)

    def ascents(self, algorithm: Algorithm, table: Tensor) -> Tensor:
        """−∇loss of each group by itself, [group, parameter]."""
        jacobian = torch.func.jacrev(logprobs_of_tokens)(table).flatten(-3)[self.prompt, self.index]
        return torch.einsum("gkt,gktp->gp", self.slopes(algorithm, table), jacobian)

    def variance(self, algorithm: Algorithm, table: Tensor) -> float:
        """Total variance of the ascent direction of one sampled group."""
        each = self.ascents(algorithm, table)
        mean = (self.probability.unsqueeze(-1) * each).sum(0)
        return ((each - mean) ** 2).sum(-1).dot(self.probability).item()
