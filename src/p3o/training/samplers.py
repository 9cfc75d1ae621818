"""Who writes the responses of a step: the learner's own processes, or an engine elsewhere behind the same interface."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from p3o.distributed.sharding import gathered
from p3o.distributed.shares import shares
from p3o.distributed.world import world
from p3o.functional.mismatch import Correction
from p3o.models.ends import end_ids
from p3o.models.sampling import draw_uniforms, sample_responses
from p3o.models.tokens import PromptBatch, ResponseBatch, joined_responses, pad_id
from p3o.training.checkpoint import State
from p3o.training.online_config import OnlineConfig

Part = dict[str, Any] | None
"""What one process wrote of a batch, as its sampler understands it: something that processes can tell each other."""


@runtime_checkable
class Sampler(Protocol):
    """Who writes the responses of a step.

    Where several processes train together, each of them calls every method, in the same order, in its main thread. The work of
    ``sample`` can also be done in three pieces, of which the long one needs no other process and may be done in another thread
    while the policy learns: ``taken = take(policy)``, ``part = begin(taken, prompts)()``, ``collect(part)``.

    Attributes:
        correction: what is done about log-probs that differ from the learner's; None if these are the learner's own.
    """

    correction: Correction | None

    def sample(self, policy: nn.Module, prompts: PromptBatch) -> ResponseBatch:
        """K responses for each prompt, by the policy as it was when it was last published, or as it is now if it never was.

        Every process calls this with all prompts of the step and gets all responses.
        """

    def publish(self, policy: nn.Module) -> None:
        """The policy has learned: sample from it as it is now."""

    def take(self, policy: nn.Module) -> Any:
        """The policy as it is, for ``begin``. A whole policy must stay as it is while there is work to do by it; a sharded one
        may go on learning at once."""

    def begin(self, taken: Any, prompts: PromptBatch) -> Callable[[], Part]:
        """This process's work on K responses for each prompt; its random numbers are drawn now."""

    def collect(self, part: Part) -> ResponseBatch:
        """All responses, from what each process's work gave."""

    def take_metrics(self) -> dict[str, int | float]:
        """Numbers for the log, of what happened since this was last asked."""

    def divert(self, attempt: int) -> None:
        """Draw other random numbers from here on."""

    def state_dict(self) -> State:
        """Everything that the next responses depend on, but for the policy."""

    def load_state_dict(self, state: State) -> None:
        """Go back to where ``state_dict`` was taken."""


@runtime_checkable
class Engine(Sampler, Protocol):
    """A sampler elsewhere, which can be asked for responses that are not learned from, too: those of an evaluation."""

    def write(
        self, policy: nn.Module, prompts: Sequence[Sequence[int]], *, responses: int, temperature: float, seed: int
    ) -> ResponseBatch:
        """So many responses to each prompt, given by its ids, by the policy as it is; published now if it is not yet."""

    def forget(self) -> None:
        """Let go of the version that was published last: the policy is about to change without being published."""


class LocalSampler:
    """The learner's own processes write the responses, each those of its share of the prompts.

    The random numbers belong to the response's place in the step: the number of processes changes nothing that is sampled.

    Args:
        tokenizer: of the policy.
        config: K, length limit, temperature, stop strings.
        seed: of the random numbers.
    """

    correction: Correction | None = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: OnlineConfig, *, seed: int) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.generator = torch.Generator().manual_seed(seed)

    def sample(self, policy: nn.Module, prompts: PromptBatch) -> ResponseBatch:
        """K responses for each prompt, by the policy as it is now."""
        write = self.begin(policy, prompts)
        with gathered(policy):
            part = world().together(write)
        return self.collect(part).to(prompts.tokens.device)

    def publish(self, policy: nn.Module) -> None:
        """Nothing to do: it samples from the policy itself."""

    def take(self, policy: nn.Module) -> nn.Module:
        """The policy itself."""
        return policy

    def begin(self, taken: nn.Module, prompts: PromptBatch) -> Callable[[], Part]:
        """The responses to this process's share of the prompts. A sharded policy must be gathered while it works."""
        together, responses = world(), self.config.responses_per_prompt
        groups = prompts.tokens.shape[0]
        uniforms = draw_uniforms(groups * responses, self.config.max_new_tokens, self.generator)
        lengths = prompts.mask.sum(-1).tolist()
        mine = shares(lengths, together.size, equal_counts=True)[together.rank]
        if not mine:
            return lambda: None
        width = max(lengths[i] for i in mine)
        share = PromptBatch(prompts.tokens[mine, -width:], prompts.mask[mine, -width:])
        rows = uniforms.view(groups, responses, -1)[mine].flatten(0, 1)
        return lambda: {"groups": mine, **vars(self._write(taken, share, rows))}

    def _write(self, policy: nn.Module, prompts: PromptBatch, uniforms: Tensor) -> ResponseBatch:
        return sample_responses(
            policy,
            prompts,
            responses_per_prompt=self.config.responses_per_prompt,
            max_new_tokens=self.config.max_new_tokens,
            eos_id=end_ids(policy, self.tokenizer),
            pad_id=pad_id(self.tokenizer),
            temperature=self.config.temperature,
            uniforms=uniforms,
            stop=self.config.stop,
            tokenizer=self.tokenizer,
        )

    def collect(self, part: Part) -> ResponseBatch:
        """The responses of all processes."""
        return _in_place([told for told in world().gather(part) if told is not None], pad_id(self.tokenizer))

    def take_metrics(self) -> dict[str, int | float]:
        """Nothing happens to it."""
        return {}

    def divert(self, attempt: int) -> None:
        """Draw other random numbers from here on."""
        self.generator.manual_seed(self.generator.initial_seed() + attempt)

    def state_dict(self) -> State:
        """Where in its random numbers it stands."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        """Go back to where ``state_dict`` was taken."""
        self.generator.set_state(state["generator"])


def _in_place(parts: Sequence[dict[str, Any]], fill: int) -> ResponseBatch:
    """The responses of all processes, each group where its prompt is, padded to the longest."""
    order = torch.tensor([group for part in parts for group in part["groups"]]).argsort()
    written = [ResponseBatch(part["tokens"], part["mask"], part["ended"]) for part in parts]
    found = joined_responses(written, fill)
    return ResponseBatch(found.tokens[order], found.mask[order], found.ended[order])
