"""Serves a reward model or a reward function by our own interface (docs/rewards_service.md).

One request is computed at a time, in the order of arrival, and by itself: what it is answered does not depend on what others
ask, so rewards are the same to the last bit as those of the same model in the process that trains.

    POST /rewards   the rewards of a request
    GET  /health    what is served, and how many requests wait
"""

import asyncio
import math
import secrets
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from p3o.data.formats import Message
from p3o.errors import P3OError
from p3o.feedback.conversations import Conversations
from p3o.feedback.functions import call_reward_function, load_reward_function
from p3o.feedback.remote.interfaces import VERSION
from p3o.feedback.reward_model import RewardModel, load_reward_model
from p3o.models.language import load_tokenizer
from p3o.models.precision import choose_precision, compute_in

Score = Callable[[Sequence[str], Sequence[str], Conversations], Sequence[float]]
"""(prompts, responses, messages behind some of the prompts) -> one reward per response."""

LARGEST_BODY = 64 * 2**20
"""Bytes of a request."""


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Attributes:
        rows: responses in a request.
        waiting: requests that are there at a time, the one that is computed included; more are sent away with 503.
        timeout: seconds from a request's arrival to its answer; then 504, and it is not computed if it still waits.
    """

    rows: int = 4096
    waiting: int = 64
    timeout: float = 120.0


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str


class RewardRequest(BaseModel):
    """The body of POST /rewards."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1]
    prompts: list[str] = Field(description="As the policy reads them.")
    responses: list[str] = Field(description="responses[i] answers prompts[i].")
    messages: list[list[_Turn] | None] | None = Field(None, description="What each prompt was rendered from.")
    model: str | None = Field(None, description="Must be the name of what is served, if it is given.")

    @model_validator(mode="after")
    def rows(self) -> "RewardRequest":
        """All lists are equally long."""
        messages = len(self.prompts) if self.messages is None else len(self.messages)
        if not len(self.prompts) == len(self.responses) == messages:
            raise ValueError("prompts, responses and messages must be equally long")
        return self

    def conversations(self) -> dict[str, tuple[Message, ...]]:
        """The messages behind prompts, by prompt."""
        return {
            prompt: tuple(Message(turn.role, turn.content) for turn in turns)
            for prompt, turns in zip(self.prompts, self.messages or [None] * len(self.prompts), strict=True)
            if turns is not None
        }


def model_score(path: str, *, device: torch.device, batch_size: int, trust_remote_code: bool = False) -> Score:
    """The rewards of a reward model's folder or hub name, in the number formats of a run.

    Raises:
        P3OError: if it cannot be loaded.
    """
    precision = choose_precision("auto", device, trains_all_weights=False)
    model = load_reward_model(
        path, device=device, dtype=precision.weights, new_head=False, trust_remote_code=trust_remote_code
    )
    model = compute_in(model, precision.compute)
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)

    def score(prompts: Sequence[str], responses: Sequence[str], conversations: Conversations) -> list[float]:
        reward = RewardModel(model, tokenizer, batch_size=batch_size, conversations=conversations)
        return reward(prompts, responses)

    return score


def function_score(spec: str) -> Score:
    """The rewards of a Python function ``module:function`` of (prompts, responses).

    Raises:
        P3OError: if there is no such function.
    """
    function = load_reward_function(spec)
    return lambda prompts, responses, _: call_reward_function(function, prompts, responses, name=spec)


def make_app(score: Score, *, name: str, limits: Limits | None = None, key: str = "", threads: int = 0) -> FastAPI:
    """The application.

    Args:
        score: called from one thread, one request at a time.
        name: of what is served.
        limits: what it takes on.
        key: that requests must bring as a bearer token; "" asks for none.
        threads: of torch in the thread that computes; 0: torch's own choice.
    """
    limits = limits or Limits()
    # Threads of OpenMP are counted by each thread that calls it.
    setup = (lambda: torch.set_num_threads(threads)) if threads else None
    pool = ThreadPoolExecutor(1, thread_name_prefix="rewards", initializer=setup)
    app = FastAPI(title="p3o rewards", docs_url=None, redoc_url=None, openapi_url=None)
    waiting = 0

    @app.get("/health")
    async def health() -> JSONResponse:
        return _answer(200, reward=name, waiting=waiting)

    @app.post("/rewards")
    async def rewards(request: Request) -> JSONResponse:
        nonlocal waiting
        if key and not secrets.compare_digest(
            request.headers.get("authorization", "").encode(), f"Bearer {key}".encode()
        ):
            return _answer(401, error="the key is missing or wrong")
        if waiting >= limits.waiting:
            return _answer(503, error=f"{waiting} requests are already waiting", headers={"Retry-After": "1"})
        waiting += 1
        try:
            async with asyncio.timeout(limits.timeout):
                asked = await _read(request)
                if isinstance(asked, JSONResponse):
                    return asked
                if asked.model not in (None, name):
                    return _answer(404, error=f"this server serves {name!r}")
                if len(asked.prompts) > limits.rows:
                    return _answer(413, error=f"{len(asked.prompts)} responses; at most {limits.rows} in a request")
                work = (score, asked.prompts, asked.responses, asked.conversations())
                return await asyncio.get_running_loop().run_in_executor(pool, _computed, *work)
        except TimeoutError:
            return _answer(504, error=f"not computed within {limits.timeout:g} s")
        finally:
            waiting -= 1

    return app


async def _read(request: Request) -> RewardRequest | JSONResponse:
    """The request, or the answer to one that is too large or not as it should be."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            return _answer(413, error=f"more than {LARGEST_BODY} bytes; send fewer responses in a request")
    try:
        return RewardRequest.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        return _answer(422, error=f"{place + ': ' if place else ''}{first['msg']}")


def _computed(
    score: Score, prompts: Sequence[str], responses: Sequence[str], conversations: Conversations
) -> JSONResponse:
    try:
        rewards = [float(reward) for reward in score(prompts, responses, conversations)]
    except P3OError as error:  # it would be the same the next time
        return _answer(422, error=str(error))
    except Exception as error:
        traceback.print_exc()
        return _answer(500, error=f"{type(error).__name__}: {error}")
    # JSON has no NaN and no infinity.
    return _answer(200, rewards=[reward if math.isfinite(reward) else None for reward in rewards])


def _answer(status: int, *, headers: Mapping[str, str] | None = None, **content: Any) -> JSONResponse:
    return JSONResponse({"version": VERSION, **content}, status, headers)
