"""A vLLM server in this process: the endpoints that p3o uses, a real small transformers model behind them, faults on request.

What it answers has the fields of recorded replies of vLLM 0.32 (recorded.json; ``test_fake.py`` compares them).
"""

import contextlib
import copy
import json
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch
from peft import PeftConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from p3o.functional.logprobs import token_logprobs
from p3o.models.loading import put_on
from p3o.models.sampling import sample_responses
from p3o.models.tokens import pad_left
from p3o.rollouts.group import GlooGroup

CONTEXT = 512
ONE_AT_A_TIME = threading.Lock()
"""peft's warnings are silenced where adapters are made, which two threads cannot do at once."""

UNUSED = {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}


class RefusalError(Exception):
    """A reply that is no success."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


class Work:
    """What is under way since the last start; a request from before that still ends is of no concern to it."""

    def __init__(self) -> None:
        self.busy, self.lock = 0, threading.Lock()


class FakeVLLM:
    """One server on loopback.

    Args:
        model: its weights at every start; never changed.
        key: asked for as bearer token.
        workers: as of tensor parallelism: each receives all weights.

    Attributes:
        faults: done to the next requests for completions, one each.
        seen: how often each path was asked.
        bodies: of the requests for completions.
        received: called with the name of every tensor that has come, in the thread of the first worker.
        dtypes: that were announced with the last weights.
        before: called with the body of every request for completions, in its thread.
        errors: what went wrong in here, apart from what it was told to do wrong.
        drift: added to the logits of the end of sequence, for a server that is not quite the learner.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, key: str | None = None, workers: int = 1
    ) -> None:
        self.original, self.tokenizer, self.key, self.workers = model, tokenizer, key, workers
        self.faults: deque[str] = deque()
        self.seen: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.before: Callable[[dict[str, Any]], None] = lambda _: None
        self.received: Callable[[str], None] = lambda _: None
        self.dtypes: set[str] = set()
        self.drift = 0.0
        self.ignores_weights = False
        self.port = 0
        self.errors: list[Exception] = []
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """As after a start of the process: the original weights, no version, no connection."""
        self.model = copy.deepcopy(self.original)
        self.adapters: dict[str, nn.Module] = {}
        self.version, self.paused, self.updating = "default", False, False
        self.groups: list[GlooGroup] = []
        self.work = Work()
        self.connections: set[Any] = set()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake.handle(self)

            def do_POST(self) -> None:
                fake.handle(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:  # a client that hung up
                pass

        self.http = Server(("127.0.0.1", self.port), Handler)
        self.port = self.http.server_address[1]
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def kill(self) -> None:
        """As kill -9: nothing listens, open connections are cut."""
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(2)
        self.leave()

    def leave(self) -> None:
        """The group, with all workers."""
        for group in self.groups:
            group.close()

    def end(self) -> None:
        """Kill, and wait for the requests under way: a thread that is in torch when Python ends takes the process with it."""
        self.kill()
        self.paused = False
        until = time.monotonic() + 10
        while self.connections and time.monotonic() < until:
            time.sleep(0.005)

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        self.connections.add(request.connection)
        try:
            parts = urlsplit(request.path)
            length = int(request.headers.get("Content-Length", 0))
            data = request.rfile.read(length)
            if len(data) < length:
                raise ConnectionError("the client hung up")
            body = json.loads(data or b"{}")
            self.seen[parts.path] += 1
            try:
                if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
                    raise RefusalError(401, "Unauthorized")
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                self.answer(request, 200, self.route(request.command, parts.path, body, query), {})
            except Exception as error:
                if isinstance(error, OSError):
                    raise
                if not isinstance(error, RefusalError):
                    self.errors.append(error)
                refused = error if isinstance(error, RefusalError) else RefusalError(500, repr(error))
                reply = {"error": {"message": str(refused), "type": "BadRequestError", "code": refused.status}}
                self.answer(request, refused.status, reply, refused.headers)
        except OSError:
            pass
        finally:
            self.connections.discard(request.connection)

    def answer(self, request: BaseHTTPRequestHandler, status: int, reply: Any, headers: dict[str, str]) -> None:
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data) + (10 if reply == b"cut" else 0)))
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)

    def route(self, method: str, path: str, body: dict[str, Any], query: dict[str, str]) -> Any:
        if method == "GET":
            return {
                "/health": lambda: b"",
                "/v1/models": lambda: {"object": "list", "data": [{"id": name} for name in ("policy", *self.adapters)]},
                "/weight_info": lambda: {"weight_version": self.version},
                "/get_world_size": lambda: {"world_size": self.workers},
            }[path]()
        if path == "/v1/completions":
            return self.completion(body)
        return getattr(self, path.rpartition("/")[2])(body, query)

    # Weights.

    def pause(self, body: dict[str, Any], query: dict[str, str]) -> Any:
        assert query["mode"] == "wait"
        self.paused = True
        work = self.work
        while work.busy:
            time.sleep(0.001)
        return {"status": "paused"}

    def resume(self, body: dict[str, Any], query: dict[str, str]) -> Any:
        self.paused = False
        return {"status": "resumed"}

    def reset_prefix_cache(self, body: dict[str, Any], query: dict[str, str]) -> Any:
        return b""

    def init_weight_transfer_engine(self, body: dict[str, Any], query: dict[str, str]) -> Any:
        info = body["init_info"]

        def join(worker: int) -> GlooGroup:
            rank = info["rank_offset"] + worker
            return GlooGroup.join(info["address"], info["port"], rank, info["world_size"], timeout=info["timeout"])

        self.leave()
        self.groups = self.of_all_workers(join)
        return {"message": "Weight transfer initialized"}

    def of_all_workers(self, action: Callable[[int], Any]) -> list[Any]:
        """What each returns. A group that breaks off is an error of the server, as in vLLM."""
        with ThreadPoolExecutor(self.workers) as executor:
            try:
                return list(executor.map(action, range(self.workers)))
            except RuntimeError as error:
                raise RefusalError(500, str(error)) from error

    def start_weight_update(self, body: dict[str, Any], query: dict[str, str]) -> Any:
        assert self.paused
        if self.updating:
            raise RefusalError(500, "start_weight_update called while a weight update is already active.")
        self.updating = True
        return {"message": "Weight update started"}

    def update_weights(self, body: dict[str, Any], query: dict[str, str]) -> Any:
        if not self.updating or not self.groups:
            raise RefusalError(500, "start_weight_update must be called before update_weights.")
        info, groups = body["update_info"], list(self.groups)
        self.dtypes = set(info["dtype_names"])

        def receive(worker: int) -> dict[str, torch.Tensor]:
            weights = {}
            for name, dtype_name, shape in zip(info["names"], info["dtype_names"], info["shapes"], strict=True):
                dtype = getattr(torch, dtype_name)
                data = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
                groups[worker].broadcast(data)
                if worker == 0:
                    self.received(name)
                weights[name] = data.view(dtype).view(shape)
            return weights

        try:
            first, *others = self.of_all_workers(receive)
            assert all(torch.equal(first[name], other[name]) for other in others for name in first)
            self.load(first)
        except BaseException:
            self.updating = False
            for group in groups:
                group.close()
            raise
        return {"message": "Weights updated"}

    def finish_weight_update(self, body: dict[str, Any], query: dict[str, str]) -> Any:
        if not self.updating:
            raise RefusalError(500, "finish_weight_update called without a matching start_weight_update.")
        self.updating, self.version = False, body.get("weight_version", self.version)
        return {"message": "Weight update finished"}

    def collective_rpc(self, body: dict[str, Any], query: dict[str, str]) -> Any:
        assert self.paused
        if body["method"] != "reload_weights":
            raise RefusalError(500, f"no method {body['method']}")
        folder = Path(body["kwargs"]["weights_path"])
        self.load({name: tensor for file in sorted(folder.iterdir()) for name, tensor in load_file(file).items()})
        return {"results": [None]}

    def update_weight_version(self, body: dict[str, Any], query: dict[str, str]) -> Any:
        self.version = body["new_version"]
        return {"success": True, "new_version": self.version}

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        if self.ignores_weights:
            return
        own = dict(self.model.named_parameters())
        assert set(weights) == set(own)
        with torch.no_grad():
            for name, tensor in weights.items():
                own[name].copy_(tensor)

    def load_lora_adapter(self, body: dict[str, Any], query: dict[str, str]) -> Any:
        if body["lora_name"] in self.adapters:
            raise RefusalError(400, "already loaded")
        adapted = copy.deepcopy(self.model)
        if not self.ignores_weights:
            config = PeftConfig.from_pretrained(body["lora_path"])
            config.base_model_name_or_path = None  # whatever the learner's was, ours is the one at hand
            with ONE_AT_A_TIME:
                adapted = put_on(adapted, config).eval()
            weights = load_file(Path(body["lora_path"]) / "adapter_model.safetensors")
            assert not set_peft_model_state_dict(adapted, weights).unexpected_keys
        self.adapters[body["lora_name"]] = adapted
        return b""

    def unload_lora_adapter(self, body: dict[str, Any], query: dict[str, str]) -> Any:
        del self.adapters[body["lora_name"]]
        return b""

    # Responses.

    def completion(self, body: dict[str, Any]) -> Any:
        self.before(body)
        while self.paused:
            time.sleep(0.001)
        probe = "prompt_logprobs" in body
        fault = "" if probe or not self.faults else self.faults.popleft()
        if fault == "slow":
            time.sleep(1.0)
        if fault.isdigit():
            raise RefusalError(int(fault), f"fault {fault}", {"Retry-After": "0.05"})
        if fault in ("garbage", "cut"):
            return fault.encode()
        choices = self.choices(body, probe=probe)
        if fault == "short":
            choices = choices[:-1]
        if fault == "aborted":
            choices[-1] |= {"finish_reason": "abort", "token_ids": choices[-1]["token_ids"][:1]}
        usage = {"prompt_tokens": len(body["prompt"]), "total_tokens": 0, "completion_tokens": 0}
        usage |= {"prompt_tokens_details": None, "completion_tokens_details": None}
        about = {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": body["model"]}
        return {
            **about,
            "choices": choices[::-1],
            "service_tier": None,
            "system_fingerprint": "fake",
            "usage": usage,
            **UNUSED,
        }

    def choices(self, body: dict[str, Any], *, probe: bool) -> list[dict[str, Any]]:
        if body["model"] not in ("policy", *self.adapters):
            raise RefusalError(404, f"The model `{body['model']}` does not exist.")
        if len(body["prompt"]) + body["max_tokens"] > CONTEXT:
            raise RefusalError(400, f"This model's maximum context length is {CONTEXT} tokens.")
        model, work = self.adapters.get(body["model"], self.model), self.work
        with work.lock:
            work.busy += 1
            try:
                if probe:
                    return [self.probed(model, body["prompt"])]
                self.bodies.append(body)
                return self.sampled(model, body)
            finally:
                work.busy -= 1

    def probed(self, model: nn.Module, prompt: list[int]) -> dict[str, Any]:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            logprobs = token_logprobs(model(input_ids=ids).logits[:, :-1], ids[:, 1:])[0].tolist()
        rows = [{str(token): {"logprob": value}} for token, value in zip(prompt[1:], logprobs, strict=True)]
        return {**self.choice(0, [0], [0.0], "length", None), "prompt_logprobs": [None, *rows]}

    def sampled(self, model: nn.Module, body: dict[str, Any]) -> list[dict[str, Any]]:
        prompt, (end, *_) = body["prompt"], body["stop_token_ids"]

        def drifted(module: nn.Module, _: Any, output: Any) -> Any:
            output.logits[..., end] += self.drift
            return output

        hook = model.register_forward_hook(drifted)
        try:
            batch = sample_responses(
                model,
                pad_left([prompt], end),
                responses_per_prompt=body["n"],
                max_new_tokens=body["max_tokens"],
                eos_id=-1,
                pad_id=end,
                temperature=body["temperature"],
                generator=torch.Generator().manual_seed(body["seed"]),
            )
            choices = []
            for k in range(body["n"]):
                tokens, ended = self.cut(batch.tokens[0, k].tolist(), body)
                ids = torch.tensor([prompt + tokens])
                with torch.no_grad():
                    logits = model(input_ids=ids).logits[:, len(prompt) - 1 : -1]
                values = token_logprobs(logits, ids[:, len(prompt) :], temperature=body["temperature"] or 1.0)[0]
                choices.append(self.choice(k, tokens, values.tolist(), "stop" if ended else "length", prompt))
            return choices
        finally:
            hook.remove()

    def cut(self, tokens: list[int], body: dict[str, Any]) -> tuple[list[int], bool]:
        """What is left of tokens that were written on and on, and whether it ended. As in vLLM, ids end a response wherever
        they come, and strings where the text has them: special tokens are in no text, so their names are never found."""
        for t, token in enumerate(tokens):
            text = self.tokenizer.decode(tokens[: t + 1], skip_special_tokens=True)
            if token in body["stop_token_ids"] or any(stop in text for stop in body["stop"]):
                return tokens[: t + 1], True
        return tokens, False

    @staticmethod
    def choice(index: int, tokens: list[int], values: list[float], reason: str, prompt: Any) -> dict[str, Any]:
        logprobs = {"text_offset": [0] * len(tokens), "token_logprobs": values, "tokens": [""] * len(tokens)}
        return {
            "index": index,
            "text": "",
            "logprobs": logprobs | {"top_logprobs": [{}] * len(tokens)},
            "finish_reason": reason,
            "stop_reason": None,
            "token_ids": tokens,
            "prompt_logprobs": None,
            "prompt_token_ids": prompt,
            "routed_experts": None,
        }
