"""What a policy is worth: reward and KL of sampled responses on held-out prompts.

Both come from the same samples. The KL is the full-vocabulary estimate, in nats per response (``p3o.functional.kl``), at the
temperature of the sampling; greedy and best-of-n texts are not samples of the policy, so they have no KL here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan, sqrt
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from transformers import PreTrainedTokenizerBase

from p3o.distributed.world import world
from p3o.errors import P3OError, shorten
from p3o.evaluation.divergence import divergences
from p3o.evaluation.writing import OwnWriter, Writer, turns
from p3o.feedback.missing import rewards_may_be_missing
from p3o.models.tokens import ResponseBatch, decode_responses, encode_prompts, pad_id, pad_left, split_groups

Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]

Batch = dict[str, list[Any]]
"""Results of some prompts: columns by name."""


class EvaluationConfig(BaseModel):
    """Settings of the evaluation on held-out prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int = Field(512, gt=1, description="Number of held-out prompts, with one sampled response each.")
    every: int = Field(
        10, gt=0, description="RL steps between evaluations; the first and the last step are always evaluated."
    )
    best_of: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (4, 16), description="Values of n for best-of-n of the SFT model, chosen by the reward."
    )
    batch_size: int = Field(128, gt=0, description="Prompts per forward pass.")
    followed_prompts: int = Field(
        8, ge=0, description="Number of prompts whose responses are saved at every evaluation."
    )


@dataclass(frozen=True)
class PolicyEvaluation:
    """Per-prompt results, in the order of the prompts. ``gold``, ``kl`` and ``kl_k1`` may be absent (None).

    A reward that is not finite is NaN here and its response *unscored*: no part of means and comparisons, but counted.
    """

    responses: list[str]
    reward: list[float]
    gold: list[float] | None
    kl: list[float] | None
    kl_k1: list[float] | None
    length: list[int]
    ended: list[bool]

    @property
    def unscored(self) -> list[int]:
        """The places of responses without a finite reward."""
        return [place for place, reward in enumerate(self.reward) if not isfinite(reward)]

    def summary(self) -> dict[str, int | float]:
        """Means, with the standard error of each mean as ``NAME_se``; how many are unscored, if any is.

        What fewer than two responses have as a finite number is left out: it has no standard error.
        """
        row: dict[str, int | float] = {"prompts": len(self.responses)}
        if self.unscored:
            row["unscored"] = len(self.unscored)
        for name in ("reward", "gold", "kl", "kl_k1"):
            values = [value for value in getattr(self, name) or () if isfinite(value)]
            if len(values) > 1:
                row[name], row[f"{name}_se"] = mean_and_error(values)
        row["length"] = sum(self.length) / len(self.length)
        row["ended"] = sum(self.ended) / len(self.ended)
        return row

    def rows(self) -> list[dict[str, object]]:
        """One record per prompt; that of an unscored response has no reward."""
        names = [name for name in ("reward", "gold", "kl", "length", "ended") if getattr(self, name) is not None]
        return [
            {"response": text, **{name: value for name in names if isfinite(value := getattr(self, name)[i])}}
            for i, text in enumerate(self.responses)
        ]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, s/√n with the sample standard deviation.

    Raises:
        ValueError: for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"a mean with its error needs two values, got {len(values)}")
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, sqrt(variance / len(values))


class Evaluator:
    """Evaluates policies on the same held-out prompts with the same random numbers.

    Args:
        tokenizer: of the policies.
        reference: what the KL is measured from.
        prompts: held-out prompts, rendered.
        scorer: the reward, without training-time offsets.
        gold: an exact reward, where there is one.
        max_new_tokens: length limit, end of sequence included.
        temperature: of sampling and of the KL.
        missing_eos_penalty: subtracted from the reward and the gold reward of a cut response, as in training.
        batch_size: responses that are sampled, rated or passed through the models at a time.
        seed: of sampling; every evaluation starts from it anew.
        stop: texts that end a response too, as in training.
        tolerant: whether a reward that is not finite, or did not come from where it is served, leaves its response unscored
            and is no error.
        write: who writes the responses; None: these processes.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        reference: nn.Module,
        prompts: Sequence[str],
        scorer: Scorer,
        *,
        gold: Scorer | None,
        max_new_tokens: int,
        temperature: float,
        missing_eos_penalty: float,
        batch_size: int,
        seed: int,
        stop: Sequence[str] = (),
        tolerant: bool = False,
        write: Writer | None = None,
    ) -> None:
        self.stop, self.tolerant = tuple(stop), tolerant
        self.tokenizer, self.reference, self.prompts = tokenizer, reference, list(prompts)
        self.scorer, self.gold, self.missing_eos_penalty = scorer, gold, missing_eos_penalty
        self.temperature, self.batch_size, self.seed = temperature, batch_size, seed
        self.encoded = encode_prompts(tokenizer, prompts)
        self.write = write or OwnWriter(tokenizer, max_new_tokens, batch_size, self.stop)

    @torch.no_grad()
    def sampled(self, policy: nn.Module) -> PolicyEvaluation:
        """One sampled response per prompt, with its KL."""
        return self._evaluate(policy, temperature=self.temperature, best_of=1, with_kl=True)

    @torch.no_grad()
    def greedy(self, policy: nn.Module) -> PolicyEvaluation:
        """The greedy response to each prompt."""
        return self._evaluate(policy, temperature=0.0, best_of=1, with_kl=False)

    @torch.no_grad()
    def best_of(self, policy: nn.Module, n: int) -> PolicyEvaluation:
        """The response with the highest reward among n samples of each prompt."""
        return self._evaluate(policy, temperature=self.temperature, best_of=n, with_kl=False)

    def _evaluate(self, policy: nn.Module, *, temperature: float, best_of: int, with_kl: bool) -> PolicyEvaluation:
        """Responses, then what they are worth, then their KL; several processes divide each, and all know the whole."""
        responses = self.write(policy, self.encoded, responses=best_of, temperature=temperature, seed=self.seed)
        pieces = turns(len(self.prompts), self.batch_size // best_of)
        worth = world().in_turns(pieces, lambda part: self._worth(part, responses))
        columns = {name: [value for piece in worth for value in piece[name]] for name in worth[0]}
        if sum(map(isfinite, columns["reward"])) < 2:
            raise P3OError("evaluation: fewer than two responses have a finite reward; fix the reward and run again")
        if with_kl:
            columns |= self._kl(policy, responses)
        return PolicyEvaluation(
            columns["responses"],
            columns["reward"],
            columns.get("gold"),
            columns.get("kl"),
            columns.get("kl_k1"),
            columns["length"],
            columns["ended"],
        )

    def _worth(self, part: slice, responses: ResponseBatch) -> Batch:
        """The best response to each of some prompts and its results, by the names of ``PolicyEvaluation``, but for the KL."""
        prompts = self.prompts[part]
        batch = ResponseBatch(responses.tokens[part], responses.mask[part], responses.ended[part])
        candidates = decode_responses(self.tokenizer, batch, stop=self.stop)
        penalty = self.missing_eos_penalty * (~batch.ended).double()
        reward = self._scores(self.scorer, prompts, candidates) - penalty
        chosen = reward.nan_to_num(nan=-inf, posinf=-inf).argmax(-1)
        pick = torch.arange(len(prompts)), chosen
        best = [group[i] for group, i in zip(candidates, chosen.tolist(), strict=True)]
        finite = [value if isfinite(value) else nan for value in reward[pick].tolist()]
        found: Batch = {"responses": best, "reward": finite}
        if self.gold is not None:
            gold = self._scores(self.gold, prompts, [[text] for text in best]).squeeze(-1)
            found["gold"] = (gold - penalty[pick]).tolist()
        found["length"] = batch.mask.sum(-1)[pick].tolist()
        found["ended"] = batch.ended[pick].tolist()
        return found

    def _kl(self, policy: nn.Module, responses: ResponseBatch) -> Batch:
        """The KL of the only response to each prompt, by both estimates.

        Raises:
            P3OError: if there are not two that are numbers.
        """
        fill = pad_id(self.tokenizer)
        groups = split_groups(pad_left(self.encoded, fill), responses)
        full, k1 = divergences(
            policy, self.reference, groups, temperature=self.temperature, fill=fill, most=self.batch_size
        )
        if int(full.isfinite().sum()) < 2:
            raise P3OError(
                "evaluation: fewer than two responses have a finite KL: the policy no longer gives valid "
                "probabilities; lower the "
                "learning rate or raise beta"
            )
        return {"kl": full.flatten().tolist(), "kl_k1": k1.flatten().tolist()}

    def _scores(self, scorer: Scorer, prompts: Sequence[str], candidates: Sequence[Sequence[str]]) -> torch.Tensor:
        """Scores of [prompt][candidate], float64.

        Raises:
            P3OError: if one is not finite and the evaluation is not tolerant.
        """
        repeated = [prompt for prompt, group in zip(prompts, candidates, strict=True) for _ in group]
        flat = [text for group in candidates for text in group]
        with rewards_may_be_missing(self.tolerant):
            scores = torch.tensor(list(scorer(repeated, flat)), dtype=torch.float64)
        if not self.tolerant and not bool(scores.isfinite().all()):
            at = int((~scores.isfinite()).nonzero()[0])
            raise P3OError(
                f"evaluation: the reward of a response is {scores[at].item()}; prompt {shorten(repeated[at])}, response "
                f"{shorten(flat[at])}: a reward must be a finite number (on_fault: skip counts such responses)"
            )
        return scores.view(len(prompts), -1)
