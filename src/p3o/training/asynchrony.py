"""Generation that overlaps training: rollouts are sampled some steps ahead, by the policy as it is then.

    step t of the learner      |  train on the groups of step t  |  train on those of t+1  |  …
    producer, limit d = 1      |  sample those of step t+1 by θ_t |  those of t+2 by θ_t+1  |  …

With a limit of d versions the groups of step t are sampled by θ_{t−d} (by θ_0 in the first d steps). The lag is fixed, never
"whatever happened to be ready": the learner waits for its groups, so which policy sampled what does not depend on the timing of
threads, and a run with the same seed has the same numbers. Two steps suffice to overlap; more even out the steps in which
some responses are much longer.

What belongs to which step. The policy's weights, the prompts and the sampling noise are those of the moment of sampling, and
so is log π_old: a pass of the learner's kind over the copy that sampled. Everything else belongs to the step that trains: the
reward, the reference, the critic's values, β. So a reward model that was fitted anew acts at once, a user's reward function is
called from one thread only, and every algorithm corrects for the lag as it does for its second epoch: by the ratio to π_old.
With ``stale_ratio: arrival`` π_old is the policy with which the step begins, as if that had sampled: biased, and often better
(docs/asynchrony.md).

A checkpoint waits for the groups under way and holds them: resumed is the same as never stopped. Threads end with their draws;
an error of the sampler is raised by the step whose groups it was to make.
"""

import copy
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from p3o.algorithms.base import half_squared_log_ratio
from p3o.distributed.world import world
from p3o.errors import P3OError
from p3o.functional.logprobs import sequence_logprobs
from p3o.models.language import frozen_copy
from p3o.models.tokens import GroupTokens, ResponseBatch, split_groups
from p3o.training.checkpoint import State
from p3o.training.passes import Passes
from p3o.training.rollouts import Draw, Rollout, Rollouts
from p3o.training.samplers import LocalSampler
from p3o.types import Experience


@dataclass
class Overlap:
    """How long it took, in seconds of the clock; in no file of metrics."""

    sampling: float = 0.0
    """The producer's time."""
    waiting: float = 0.0
    """The learner's time without groups."""

    @property
    def share(self) -> float:
        """How much of the sampling went on behind the learner's back: 0 none of it, 1 all."""
        return 0.0 if self.sampling == 0.0 else max(0.0, 1.0 - self.waiting / self.sampling)


class RolloutsAhead:
    """Makes the rollouts of the steps to come while the learner trains.

    Args:
        rollouts: what draws and rates; only this object may draw with it from now on. Where this process samples, the
            sampler gets a tokenizer of its own: tokenizers are not made for two threads.
        limit: of the staleness, in versions of the policy; at least 1.
        total: steps in all; nothing is sampled for later ones.
        still: steps at the start in which the policy does not change (the critic's warm-up).

    Raises:
        P3OError: if several processes train together.
    """

    def __init__(self, rollouts: Rollouts, *, limit: int, total: int, still: int = 0) -> None:
        if world().size > 1:
            raise P3OError(
                "rl.training.max_staleness: sampling ahead works in one process so far; set it to 0 or train in one process"
            )
        self._rollouts, self._limit, self._total, self._still = rollouts, limit, total, still
        if isinstance(rollouts.sampler, LocalSampler):
            rollouts.sampler.tokenizer = copy.deepcopy(rollouts.sampler.tokenizer)
        self._ahead: deque[Future[Draw]] = deque()
        self._last: _Production | None = None
        self._copies: list[nn.Module] = []
        self._published: int | None = None
        """The version that the sampler was told of last; for the producer's thread."""
        self.overlap = Overlap()

    def next(self, step: int, *, behaviour: bool) -> Rollout:
        """The rollout of this step; those of the steps after it are begun with the policy as it is.

        Args:
            step: its number, from 1.
            behaviour: log π_old is always there.

        Raises:
            NumericalError: as ``Rollouts.next``.
            Exception: what the sampler raised when it made this rollout.
        """
        del behaviour
        version = self._version(step)
        refused = self._refuse_what_is_too_old(version)
        if not self._ahead:
            self._begin(1, version)
        draw = self._wait(self._ahead[0])
        self._ahead.popleft()
        # Not before: the copy that made this draw is free by now, so ``limit`` copies of the policy suffice.
        self._begin(min(self._limit, self._total - step) - len(self._ahead), version)
        rollout = self._rollouts.rated(draw, step, behaviour=True, age=version - draw.version)
        return replace(rollout, refused=refused)

    def _version(self, step: int) -> int:
        return max(0, step - 1 - self._still)

    def _refuse_what_is_too_old(self, version: int) -> int:
        """Throw away whole what is older than the limit, as after a resumption with a smaller one; returns how many groups."""
        refused = 0
        while self._ahead and version - self._wait(self._ahead[0]).version > self._limit:
            refused += len(self._wait(self._ahead.popleft()).chosen)
        return refused

    def _begin(self, draws: int, version: int) -> None:
        """Let the policy as it is sample for the next steps that nobody samples for yet."""
        if draws <= 0:
            return
        policy = self._rollouts.policy
        sampler = self._copies.pop() if self._copies else frozen_copy(policy)
        _give_weights(policy, sampler)
        self._last = _Production(self, sampler, draws, version, after=self._last)
        self._ahead.extend(self._last.draws)
        self._last.start()

    def sample(self, sampler: nn.Module, version: int) -> Draw:
        """One draw by a copy of the policy, with its log-probs: what the producer's thread does."""
        start = time.perf_counter()
        if version != self._published:
            self._rollouts.sampler.publish(sampler)
            self._published = version
        draw, logprobs = self._rollouts.draw(sampler), None
        if self._rollouts.config.stale_ratio == "sampler":
            groups = split_groups(draw.prompts, draw.responses)
            logprobs = self._rollouts.passes.logprobs(sampler, groups, draw.responses.mask.shape[-1])
        self.overlap.sampling += time.perf_counter() - start
        return replace(draw, logprobs=logprobs, version=version)

    def publish(self) -> None:
        """Nothing to do: every production tells the sampler of its own version, in its turn."""

    def give_back(self, sampler: nn.Module) -> None:
        """A copy of the policy that has done its draws, to be used again."""
        self._copies.append(sampler)

    def _wait(self, coming: Future[Draw]) -> Draw:
        start = time.perf_counter()
        draw = coming.result()
        self.overlap.waiting += time.perf_counter() - start
        return draw

    def divert(self, attempt: int) -> None:
        """Sample other prompts and other responses from here on; what was sampled ahead goes, too."""
        self._drop()
        self._rollouts.divert(attempt)

    def _drop(self) -> None:
        """Forget all draws, and wait until nobody uses the sampler."""
        if self._last is not None:
            self._last.cancel()
            self._last.join()
        self._last = None
        self._published = None  # what is trained anew is not the version that had this number
        self._ahead.clear()

    def state_dict(self) -> State:
        """Where it stands, with what has been sampled ahead; waits for what is being sampled.

        Raises:
            Exception: what the sampler raised when it made one of them.
        """
        ahead = [_as_state(self._wait(coming)) for coming in self._ahead]
        if self._last is not None:
            self._last.join()
        return self._rollouts.state_dict() | {"ahead": ahead}

    def load_state_dict(self, state: State) -> None:
        """Go back to where ``state_dict`` was taken; a state without draws ahead is one, too."""
        self._drop()
        self._rollouts.load_state_dict(state)
        for saved in state.get("ahead", []):
            done: Future[Draw] = Future()
            done.set_result(self._from_state(saved))
            self._ahead.append(done)

    def _from_state(self, saved: State) -> Draw:
        device = self._rollouts.device
        return Draw(
            chosen=saved["chosen"],
            prompts=self._rollouts.encoded_batch(saved["chosen"]),
            responses=ResponseBatch(
                saved["tokens"], saved["mask"], saved["ended"], logprobs=saved["rollout_logprobs"]
            ).to(device),
            logprobs=None if saved["logprobs"] is None else saved["logprobs"].to(device),
            version=saved["version"],
        )


class _Production(threading.Thread):
    """Some draws by one copy of the policy, one after another, when the production before it is done.

    Its end is the process's: no daemon, which could be cut off within a kernel, but once the main thread has ended it begins
    no further draw. A draw that fails takes those after it along, for the sampler's random numbers are no longer known.
    """

    def __init__(
        self, owner: RolloutsAhead, sampler: nn.Module, draws: int, version: int, *, after: "_Production | None"
    ) -> None:
        super().__init__(name=f"rollouts of version {version}")
        self.draws: list[Future[Draw]] = [Future() for _ in range(draws)]
        self.failure: BaseException | None = None
        self._owner, self._sampler, self._version, self._after = owner, sampler, version, after
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Begin no further draw, in this production and those before it."""
        self._cancelled.set()
        after = self._after  # which its own thread sets to None
        if after is not None:
            after.cancel()

    def run(self) -> None:
        """The thread."""
        if self._after is not None:
            self._after.join()
            self.failure, self._after = self._after.failure, None
        for number, draw in enumerate(self.draws, start=1):
            if self.failure is None and (self._cancelled.is_set() or not threading.main_thread().is_alive()):
                self.failure = CancelledError("the training has ended")
            if self.failure is None:
                try:
                    made = self._owner.sample(self._sampler, self._version)
                except BaseException as error:  # raised by the step that waits for this draw
                    self.failure = error
            if number == len(self.draws):
                self._owner.give_back(self._sampler)  # before anybody can ask for the next copy
            if self.failure is None:
                draw.set_result(made)
            else:
                draw.set_exception(self.failure)


def _give_weights(policy: nn.Module, sampler: nn.Module) -> None:
    """The policy's trained weights to its copy; frozen ones are shared or equal already."""
    own = dict(sampler.named_parameters())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                own[name].copy_(parameter)


def _as_state(draw: Draw) -> State:
    responses = draw.responses
    return {
        "version": draw.version,
        "chosen": draw.chosen,
        "tokens": responses.tokens,
        "mask": responses.mask,
        "ended": responses.ended,
        "rollout_logprobs": responses.logprobs,
        "logprobs": draw.logprobs,
    }


def with_start(
    experience: Experience, policy: nn.Module, groups: Sequence[GroupTokens], passes: Passes
) -> tuple[Experience, dict[str, float]]:
    """Late groups with the log-probs of the policy with which the step begins, from which ``kl_stop`` measures.

    Nothing changes where the youngest groups were sampled by that policy: then it is π_old.

    Returns:
        The experience, and ``moved_since_sampling``: mean ½·(log π_start/π_old)² of the youngest groups, nats per response.
    """
    youngest = experience.age == experience.age.min()
    if not bool(experience.age.min()):
        return experience, {}
    chosen = youngest.nonzero().squeeze(-1)
    start = experience.behaviour_logprobs.clone()
    time_steps = experience.response_mask.shape[-1]
    found: Float[Tensor, "chosen response time"] = passes.logprobs(
        policy, [groups[i] for i in chosen.tolist()], time_steps
    )
    start[chosen] = found
    mask = experience.response_mask[chosen]
    moved = half_squared_log_ratio(
        sequence_logprobs(found, mask), sequence_logprobs(experience.behaviour_logprobs[chosen], mask)
    )
    return experience.replace(start_logprobs=start), {"moved_since_sampling": moved.item()}
