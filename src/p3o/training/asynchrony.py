"""Generation that overlaps training: rollouts are sampled some steps ahead, by the policy as it is then.

    step t of the learner      |  train on the groups of step t  |  train on those of t+1  |  …
    producer, limit d = 1      |  sample those of step t+1 by θ_t |  those of t+2 by θ_t+1  |  …

With a limit of d versions the groups of step t are sampled by θ_{t−d} (by θ_0 in the first d steps). The lag is fixed, never
"whatever happened to be ready": the learner waits for its groups, so which policy sampled what does not depend on the timing of
threads, and a run with the same seed has the same numbers. d = 1 is enough to overlap; a larger d evens out steps in which some
responses are much longer.

What belongs to which step. The policy's weights, the prompts and the sampling noise are those of the moment at which sampling
begins, and so is log π_old: a pass of the learner's kind through the weights that sampled, made when the groups have come.
Everything else belongs to the step that trains: the reward, the reference, the critic's values, β. So a reward model that was
fitted anew acts at once, a user's reward function is called from one thread only, and every algorithm corrects for the lag as
it does for its second epoch: by the ratio to π_old. With ``stale_ratio: arrival`` π_old is the policy with which the step
begins, as if that had sampled: biased, and often better (docs/asynchrony.md).

The producer's thread does nothing but the sampler's own work. Whatever several processes do together (taking the weights,
collecting the responses, passes through the models) is done in their main threads when a step begins, so no collective of one
thread ever meets one of another.

A checkpoint waits for the groups under way and holds them: resumed is the same as never stopped. Threads end with their draws;
an error of the sampler is raised by the step whose groups it was to make.
"""

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from p3o.algorithms.base import half_squared_log_ratio
from p3o.distributed.sharding import is_sharded
from p3o.distributed.world import world
from p3o.errors import P3OError
from p3o.functional.logprobs import sequence_logprobs
from p3o.models.tokens import GroupTokens, PromptBatch, ResponseBatch, split_groups
from p3o.training.checkpoint import State
from p3o.training.passes import Passes
from p3o.training.past import Past, past_of
from p3o.training.rollouts import Draw, Rollout, Rollouts
from p3o.training.samplers import Engine, LocalSampler, Part
from p3o.types import Experience

CANNOT_SAMPLE_AHEAD = (
    "rl.training.max_staleness: with parallel.mode: fsdp the learner cannot sample while it trains, for which every process "
    "would have to hold the whole weights; set it to 0, or use parallel.mode: data or rl.rollout.engine: vllm"
)


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


@dataclass(frozen=True)
class _Version:
    """A policy that samples: which one, its weights for the learner, and what the sampler took of it."""

    number: int
    past: Past
    taken: Any


@dataclass
class _Coming:
    """Groups that are being sampled, or are there and wait for their step."""

    chosen: list[int]
    prompts: PromptBatch
    version: int
    by: _Version | None
    """Who samples; None for what a checkpoint held."""
    part: "Future[Part]" = field(default_factory=Future)
    draw: Draw | None = None
    """When they are there, from all processes, with their log-probs."""


class RolloutsAhead:
    """Makes the rollouts of the steps to come while the learner trains.

    Args:
        rollouts: what draws and rates; only this object may draw with it from now on. Where this process samples, the
            sampler gets a tokenizer of its own: tokenizers are not made for two threads.
        limit: of the staleness, in versions of the policy; at least 1.
        total: steps in all; nothing is sampled for later ones.
        still: steps at the start in which the policy does not change (the critic's warm-up).

    Raises:
        P3OError: if a sharded policy is to sample by itself: it would have to be whole on every process all the time.
    """

    def __init__(self, rollouts: Rollouts, *, limit: int, total: int, still: int = 0) -> None:
        self._rollouts, self._limit, self._total, self._still = rollouts, limit, total, still
        if isinstance(rollouts.sampler, LocalSampler):
            if is_sharded(rollouts.policy):
                raise P3OError(CANNOT_SAMPLE_AHEAD)
            rollouts.sampler.tokenizer = copy.deepcopy(rollouts.sampler.tokenizer)
        self._ahead: deque[_Coming] = deque()
        self._last: _Production | None = None
        self._pasts: list[Past] = []
        self._newest: _Version | None = None
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
        draw = self._finished(self._ahead[0])
        self._ahead.popleft()
        # Not before: the weights that made this draw are not needed by now, so ``limit`` places for them suffice.
        self._begin(min(self._limit, self._total - step) - len(self._ahead), version)
        rollout = self._rollouts.rated(draw, step, behaviour=True, age=version - draw.version)
        return replace(rollout, refused=refused)

    def _version(self, step: int) -> int:
        return max(0, step - 1 - self._still)

    def _refuse_what_is_too_old(self, version: int) -> int:
        """Throw away whole what is older than the limit, as after a resumption with a smaller one; returns how many groups."""
        refused = 0
        while self._ahead and version - self._ahead[0].version > self._limit:
            refused += len(self._finished(self._ahead[0]).chosen)
            self._ahead.popleft()
        return refused

    def _begin(self, draws: int, version: int) -> None:
        """Let the policy as it is sample for the next steps that nobody samples for yet."""
        if draws <= 0:
            return
        by = self._newest
        if by is None or by.number != version:
            past = self._free_past()
            past.remember()
            by = self._newest = _Version(version, past, self._rollouts.sampler.take(past.source))
        work = []
        for _ in range(draws):
            chosen, prompts = self._rollouts.choose()
            coming = _Coming(chosen, prompts, version, by)
            work.append((self._rollouts.sampler.begin(by.taken, prompts), coming.part))
            self._ahead.append(coming)
        self._last = _Production(version, work, self.overlap, after=self._last)
        self._last.start()

    def _free_past(self) -> Past:
        """A place for the policy's weights that no groups are sampled from."""
        used = {id(coming.by.past) for coming in self._ahead if coming.by is not None}
        for past in self._pasts:
            if id(past) not in used:
                return past
        for_passes = self._rollouts.config.stale_ratio == "sampler"
        self._pasts.append(past_of(self._rollouts.policy, for_passes=for_passes))
        return self._pasts[-1]

    def _finished(self, coming: _Coming) -> Draw:
        """The groups when they are there, on all processes, with the log-probs of the policy that sampled them."""
        if coming.draw is None:
            assert coming.by is not None
            part = world().together(lambda: self._wait(coming.part), patient=True)
            responses = self._rollouts.sampler.collect(part).to(self._rollouts.device)
            draw = Draw(coming.chosen, coming.prompts, responses, version=coming.version)
            if self._rollouts.config.stale_ratio == "sampler":
                groups = split_groups(draw.prompts, responses)
                with coming.by.past.present() as policy:
                    logprobs = self._rollouts.passes.logprobs(policy, groups, responses.mask.shape[-1])
                draw = replace(draw, logprobs=logprobs)
            coming.draw = draw
        return coming.draw

    def _wait(self, part: "Future[Part]") -> Part:
        start = time.perf_counter()
        made = part.result()
        self.overlap.waiting += time.perf_counter() - start
        return made

    def publish(self) -> None:
        """Nothing to do: the sampler takes every version when sampling by it begins."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing is being sampled for the training: all that was begun is there, on every process.

        Whatever version an engine was given meanwhile is forgotten, and the next one is taken anew, whether or not the policy
        has changed: the engine may have let go of an older one.
        """
        world().together(self._join, patient=True)
        yield
        if isinstance(self._rollouts.sampler, Engine):
            self._rollouts.sampler.forget()
            self._newest = None

    def _join(self) -> None:
        if self._last is not None:
            self._last.join()

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
        self._newest = None  # what is trained anew is not the version that had this number
        self._ahead.clear()

    def state_dict(self) -> State:
        """Where it stands, with what has been sampled ahead; waits for what is being sampled.

        Raises:
            Exception: what the sampler raised when it made one of them.
        """
        ahead = [_as_state(self._finished(coming)) for coming in self._ahead]
        self._join()
        return self._rollouts.state_dict() | {"ahead": ahead}

    def load_state_dict(self, state: State) -> None:
        """Go back to where ``state_dict`` was taken; a state without draws ahead is one, too."""
        self._drop()
        self._rollouts.load_state_dict(state)
        for saved in state.get("ahead", []):
            draw = self._from_state(saved)
            self._ahead.append(_Coming(draw.chosen, draw.prompts, draw.version, None, draw=draw))

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
    """Some draws by one version of the policy, one after another, when the production before it is done.

    Its end is the process's: no daemon, which could be cut off within a kernel, but once the main thread has ended it begins
    no further draw. A draw that fails takes those after it along: what the sampler would do next is no longer known.

    Args:
        version: that samples.
        work: the sampler's work for each draw, and who waits for what it gives.
        overlap: told how long it took.
        after: the production before.
    """

    def __init__(
        self,
        version: int,
        work: "Sequence[tuple[Callable[[], Part], Future[Part]]]",
        overlap: Overlap,
        *,
        after: "_Production | None",
    ) -> None:
        super().__init__(name=f"rollouts of version {version}")
        self.failure: BaseException | None = None
        # A new thread is on the first GPU, whichever this process has: kernels that ask no tensor for its device run there.
        self._gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self._work, self._overlap, self._after = work, overlap, after
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Begin no further draw, in this production and those before it."""
        self._cancelled.set()
        after = self._after  # which its own thread sets to None
        if after is not None:
            after.cancel()

    def run(self) -> None:
        """The thread."""
        if self._gpu is not None:
            torch.cuda.set_device(self._gpu)
        if self._after is not None:
            self._after.join()
            self.failure, self._after = self._after.failure, None
        for write, part in self._work:
            if self.failure is None and (self._cancelled.is_set() or not threading.main_thread().is_alive()):
                self.failure = CancelledError("the training has ended")
            if self.failure is None:
                start = time.perf_counter()
                try:
                    made = write()
                except BaseException as error:  # raised by the step that waits for this draw
                    self.failure = error
                self._overlap.sampling += time.perf_counter() - start
            if self.failure is None:
                part.set_result(made)
            else:
                part.set_exception(self.failure)


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
