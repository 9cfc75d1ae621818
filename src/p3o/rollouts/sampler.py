"""The sampler of a run whose responses are written by vLLM servers: ``p3o.training.rollouts.Sampler`` over a pool of them."""

import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from p3o.errors import P3OError
from p3o.functional.mismatch import Correction
from p3o.models.tokens import PromptBatch, ResponseBatch, pad_right
from p3o.rollouts.config import RolloutConfig
from p3o.rollouts.http import ServerError
from p3o.rollouts.links import GlooLink, NcclLink
from p3o.rollouts.pool import Limits, Pool
from p3o.rollouts.probe import check_weights, own_logprobs
from p3o.rollouts.publishing import Adapter, Broadcast, Disk, Publisher, each
from p3o.rollouts.server import Completion, SamplingSettings, VLLMServer


class VLLMSampler:
    """K responses for each prompt from vLLM servers that have the learner's current weights.

    Args:
        config: servers, limits, and how weights reach them.
        settings: of the sampling.
        fill: the id that padding holds.
        probe: ids of the fixed text whose log-probs are compared after every push.
        folder: for weights that go by files, if the configuration names none.
        seed: of the prompts' seeds.
        warn: told in words which servers are lost and back.
        overlapped: whether the policy learns while ``sample`` runs in another thread. Then a server that comes back gets its
            weights with the next ``publish`` and not before: those at hand would be newer than the version's name says.

    Raises:
        P3OError: if the environment variable of the key is not set, or several processes learn together: each would push
            versions of its own.
    """

    def __init__(
        self,
        config: RolloutConfig,
        settings: SamplingSettings,
        *,
        fill: int,
        probe: Sequence[int],
        folder: Path,
        seed: int,
        warn: Callable[[str], None],
        overlapped: bool = False,
    ) -> None:
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            raise P3OError(
                "rl.rollout.engine: vllm works with one learner process so far; use engine: local, or one process"
            )
        self.config, self.settings, self.fill, self.probe = config, settings, fill, list(probe)
        self.overlapped = overlapped
        self.correction: Correction | None = Correction(config.correction, config.weight_limit, config.drop_beyond)
        self.generator = torch.Generator().manual_seed(seed)
        key = _key(config.api_key_env)
        servers = [VLLMServer(url, timeout=config.timeout, key=key) for url in config.urls]
        self.publisher = _publisher(config, folder)
        limits = Limits(config.in_flight, config.attempts, config.check_every, config.patience, config.timeout)
        self.pool = Pool(servers, limits, rejoin=self._rejoin, lost=self.publisher.forget, warn=warn)
        # The name of a version is used once in the world: what an earlier run left on a server is never taken for ours.
        self.family = f"p3o-{secrets.token_hex(4)}"
        self.updates = 0
        self.published: nn.Module | None = None
        self.served: dict[str, str] = {}
        self.own: list[float] = []
        self.told: dict[str, float] = {}
        # A batch is of one version: weights change between batches only, whoever asks from whichever thread.
        self.lock = threading.RLock()

    @property
    def version(self) -> str:
        """Of the weights that the servers have been given last."""
        return f"{self.family}-{self.updates}"

    def sample(self, policy: nn.Module, prompts: PromptBatch) -> ResponseBatch:
        """K responses for each prompt, with the servers' own log-probs.

        Raises:
            P3OError: as ``Pool.run`` and ``publish``.
        """
        with self.lock:
            if self.published is not policy:
                self.publish(policy)
            started, version = time.monotonic(), self.version
            seeds = torch.randint(2**62, (prompts.tokens.shape[0],), generator=self.generator).tolist()
            rows = [
                tokens[mask].tolist() for tokens, mask in zip(prompts.tokens.cpu(), prompts.mask.cpu(), strict=True)
            ]

            def ask(server: VLLMServer, group: int) -> list[Completion]:
                model = self.publisher.model(self.served[server.url], version)
                completions = server.complete(model, rows[group], self.settings, seeds[group])
                found = self.publisher.version(server, version)
                if found != version:
                    raise ServerError("stale", f"its weights are {found!r} and not {version!r}; it was started again")
                return completions

            groups = self.pool.run(len(rows), ask)
            self.told["rollout_seconds"] = time.monotonic() - started
            return self._batch(groups).to(prompts.tokens.device)

    def _batch(self, groups: Sequence[Sequence[Completion]]) -> ResponseBatch:
        flat = [completion for group in groups for completion in group]
        tokens, mask = pad_right([completion.tokens for completion in flat], self.fill)
        logprobs = torch.zeros(mask.shape)
        logprobs[mask] = torch.tensor([value for completion in flat for value in completion.logprobs])
        shape = (len(groups), self.settings.responses)
        return ResponseBatch(
            tokens.view(*shape, -1),
            mask.view(*shape, -1),
            torch.tensor([completion.ended for completion in flat]).view(shape),
            logprobs.view(*shape, -1),
        )

    def publish(self, policy: nn.Module) -> None:
        """Give the policy's weights to all servers that are well, as a new version, and check that they have them.

        Raises:
            P3OError: if a server's log-probs of the fixed text are not the learner's, or at the first push no server can be
                reached.
        """
        with self.lock:
            started, first = time.monotonic(), self.published is None
            self.updates += 1
            self.published = policy
            self.own = own_logprobs(policy, self.probe)
            failed: dict[str, str] = {}
            well = each(self.pool.servers, self._greet, failed)
            failed |= self.publisher.push(well, policy, self.version)
            checked = each([server for server in well if server.url not in failed], self._check, failed)
            for server in self.pool.servers:
                if server.url in failed:
                    self.pool.dismiss(server, failed[server.url])
            for server in checked:
                self.pool.admit(server)
            self.told["push_seconds"] = time.monotonic() - started
            if first and not checked:
                raise P3OError(self.pool.none_left())

    def _greet(self, server: VLLMServer) -> None:
        server.health()
        names = server.models()
        if not names:
            raise ServerError("broken", "it serves no model")
        self.served[server.url] = names[0]

    def _check(self, server: VLLMServer) -> None:
        """The server's version, and the numbers that it gives with it."""
        found = self.publisher.version(server, self.version)
        if found != self.version:
            raise ServerError("stale", f"after the push its weights are {found!r} and not {self.version!r}")
        difference = check_weights(
            server,
            self.publisher.model(self.served[server.url], self.version),
            self.probe,
            self.own,
            version=self.version,
            tolerance=self.config.probe_tolerance,
        )
        self.told["probe_difference"] = max(difference, self.told.get("probe_difference", 0.0))

    def _rejoin(self, server: VLLMServer) -> bool:
        """Bring a server that answers again to the current version."""
        if self.overlapped or self.published is None:
            return False
        failed: dict[str, str] = {}
        if each([server], self._greet, failed):
            failed |= self.publisher.push([server], self.published, self.version)
        if not failed:
            each([server], self._check, failed)
        if failed:
            self.pool.dismiss(server, failed[server.url])
            return False
        self.pool.admit(server)
        return True

    def take_metrics(self) -> dict[str, int | float]:
        """What happened since this was last asked."""
        told, counts = self.told, self.pool.counts
        self.told, self.pool.counts = {}, type(counts)()
        names = ("asked_again", "servers_lost", "servers_rejoined", "wrong_version", "busy", "broken")
        return {
            **told,
            "policy_version": self.updates,
            "servers": len(self.pool.ready),
            **{name: counts[name] for name in names if counts[name]},
        }

    def divert(self, attempt: int) -> None:
        """Draw other random numbers from here on."""
        self.generator.manual_seed(self.generator.initial_seed() + attempt)

    def state_dict(self) -> dict[str, Any]:
        """Where in its random numbers it stands, and how many versions there have been."""
        return {"generator": self.generator.get_state(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where ``state_dict`` was taken; the weights are pushed anew before the next responses."""
        self.generator.set_state(state["generator"])
        self.updates = max(self.updates, state.get("updates", 0))  # none if this process sampled before
        self.published = None

    def close(self) -> None:
        """End what is under way and give back connections and files. The servers go on."""
        for server in self.pool.servers:
            server.cut()
        self.pool.close()
        self.publisher.close()


def _publisher(config: RolloutConfig, folder: Path) -> Publisher:
    place = Path(config.folder) if config.folder is not None else folder
    if config.weights == "disk":
        return Disk(place)
    if config.weights == "lora":
        return Adapter(place)
    link: type[GlooLink | NcclLink] = GlooLink if config.weights == "gloo" else NcclLink
    return Broadcast(lambda server: link(server, config.address, timeout=config.timeout))


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise P3OError(f"rl.rollout.api_key_env: the environment variable {variable} is not set")
    return key
