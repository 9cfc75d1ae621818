"""One vLLM server: its endpoints, typed, and every reply checked before it is believed."""

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from p3o.rollouts.http import ServerError, call


@dataclass(frozen=True)
class Completion:
    """One response as a server sent it.

    Attributes:
        tokens: its ids, the end of sequence included.
        logprobs: of each, by the server, at the sampling temperature.
        ended: whether it ended by itself; otherwise it was cut at the length limit.
    """

    tokens: list[int]
    logprobs: list[float]
    ended: bool


@dataclass(frozen=True)
class SamplingSettings:
    """What is the same for all prompts of a run.

    Attributes:
        responses: K.
        max_new_tokens: the length limit, end of sequence included.
        temperature: divides the logits.
        end_id: the id that ends a response and belongs to it: the tokenizer's end of sequence.
        stop: strings that end a response, too, where they are in its text, which holds no special tokens.
        stop_ids: of the special tokens that end a response, too, and belong to it: the model's other ends
            (``p3o.models.ends``), and stop strings that are such tokens (``p3o.models.stopping.split_stops``).
    """

    responses: int
    max_new_tokens: int
    temperature: float
    end_id: int
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()

    @property
    def ends(self) -> list[int]:
        """Every id that ends a response."""
        return list(dict.fromkeys((self.end_id, *self.stop_ids)))

    def request(self, model: str, prompt: Sequence[int], seed: int) -> dict[str, Any]:
        """The body of the request. Nothing is left to the server's defaults, which a model's generation_config.json may
        have changed: plain sampling from the whole vocabulary, and no token but ours that ends a response."""
        return {
            "model": model,
            "prompt": list(prompt),
            "n": self.responses,
            "seed": seed,
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "ignore_eos": True,
            "stop_token_ids": self.ends,
            "stop": list(self.stop),
            "logprobs": 0,
            "return_token_ids": True,
        }

    def read(self, reply: Any, prompt: Sequence[int]) -> list[Completion]:
        """The K responses of a reply.

        Raises:
            ServerError: if it is not K whole responses to this prompt.
        """
        try:
            choices = sorted(reply["choices"], key=lambda choice: choice["index"])
            indices = [choice["index"] for choice in choices]
            if indices != list(range(self.responses)):
                raise ServerError("broken", f"responses {indices} in the place of {self.responses}")
            return [self._completion(choice, prompt) for choice in choices]
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError("broken", f"the reply is no completion ({type(error).__name__}: {error})") from error

    def _completion(self, choice: dict[str, Any], prompt: Sequence[int]) -> Completion:
        tokens, reason = [int(token) for token in choice["token_ids"]], choice["finish_reason"]
        logprobs = [float(value) for value in choice["logprobs"]["token_logprobs"]]
        ended = reason == "stop"
        wrong = None
        if choice["prompt_token_ids"] != list(prompt):
            wrong = "it answers another prompt"
        elif reason not in ("stop", "length"):
            wrong = f"it was ended by {reason!r}"
        elif not 0 < len(tokens) <= self.max_new_tokens or (not ended and len(tokens) < self.max_new_tokens):
            wrong = f"{len(tokens)} tokens, ended by {reason!r}"
        elif len(logprobs) != len(tokens):
            wrong = f"{len(logprobs)} log-probs for {len(tokens)} tokens"
        elif not set(self.ends).isdisjoint(tokens[:-1]) or (tokens[-1] in self.ends) > ended:
            wrong = "it goes on after its end"
        if wrong is not None:
            raise ServerError("broken", f"a response is not whole: {wrong}")
        return Completion(tokens, logprobs, ended)


class VLLMServer:
    """One server.

    Args:
        url: its address.
        timeout: seconds for a request that computes or moves weights.
        key: sent as bearer token.
    """

    SHORT = 10.0
    """Seconds for a request that computes nothing."""

    def __init__(self, url: str, *, timeout: int | float, key: str | None = None) -> None:
        self.url, self.timeout, self.key = url.rstrip("/"), timeout, key
        self.lines: set[socket.socket] = set()

    def cut(self) -> None:
        """End all requests that are under way, in whatever thread: they raise ServerError."""
        for line in list(self.lines):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def get(self, path: str) -> Any:
        """What is there; soon, or an error."""
        seconds = min(self.SHORT, self.timeout)
        return call("GET", self.url + path, None, timeout=seconds, key=self.key, lines=self.lines)

    def post(self, path: str, body: dict[str, Any] | None = None, **query: str) -> Any:
        """The reply to a request."""
        address = self.url + path + (f"?{urlencode(query)}" if query else "")
        return call("POST", address, body or {}, timeout=self.timeout, key=self.key, lines=self.lines)

    def health(self) -> None:
        """Returns if it is well."""
        self.get("/health")

    def models(self) -> list[str]:
        """Names that it serves: the model, then its adapters."""
        reply = self.get("/v1/models")
        try:
            return [str(model["id"]) for model in reply["data"]]
        except (KeyError, TypeError) as error:
            raise ServerError("broken", "GET /v1/models: no list of models") from error

    def weight_version(self) -> str:
        """Of the weights that it has."""
        return str(self._field(self.get("/weight_info"), "weight_version", "/weight_info"))

    def world_size(self) -> int:
        """Its workers, over all data-parallel copies."""
        return int(self._field(self.get("/get_world_size"), "world_size", "/get_world_size"))

    def complete(self, model: str, prompt: Sequence[int], settings: SamplingSettings, seed: int) -> list[Completion]:
        """The K responses to a prompt, from one request.

        Raises:
            ServerError: if it gives no reply, or one that is not K whole responses.
        """
        return settings.read(self.post("/v1/completions", settings.request(model, prompt, seed)), prompt)

    def prompt_logprobs(self, model: str, tokens: Sequence[int]) -> list[float]:
        """log p of every token but the first, given those before it, at temperature 1."""
        body = {"model": model, "prompt": list(tokens), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        reply = self.post("/v1/completions", body)
        try:
            rows = reply["choices"][0]["prompt_logprobs"]
            if len(rows) != len(tokens):
                raise ServerError("broken", f"log-probs of {len(rows)} tokens for a prompt of {len(tokens)}")
            return [float(row[str(token)]["logprob"]) for row, token in zip(rows[1:], tokens[1:], strict=True)]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ServerError("broken", "POST /v1/completions: no log-probs of the prompt") from error

    @staticmethod
    def _field(reply: Any, name: str, path: str) -> Any:
        if not isinstance(reply, dict) or name not in reply:
            raise ServerError("broken", f"GET {path}: no {name}; start the server with VLLM_SERVER_DEV_MODE=1")
        return reply[name]
