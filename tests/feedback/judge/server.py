"""An OpenAI-compatible server on loopback whose answers and faults the test chooses.

    with server(behave) as (base_url, log): ...

``behave(question, attempt)`` returns what to do with the n-th request (from 1) that asks this question: a text to answer
with, or a ``Fault``.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong: a status, a body that is no completion, a cut connection, a wait in seconds."""

    status: int = 200
    body: str | None = None
    cut: bool = False
    wait: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


Behaviour = Callable[[str, int], "str | Fault"]


@dataclass
class Log:
    """What the server saw and sent."""

    requests: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    answered: Counter = field(default_factory=Counter)
    at_once: int = 0
    most_at_once: int = 0


@contextmanager
def server(behave: Behaviour) -> Iterator[tuple[str, Log]]:
    log, lock = Log(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = body["messages"][-1]["content"]
            with lock:
                log.requests.append(question)
                log.bodies.append(body)
                log.keys.add(self.headers.get("Authorization", ""))
                attempt = log.requests.count(question)
                log.at_once += 1
                log.most_at_once = max(log.most_at_once, log.at_once)
            try:
                self._act(behave(question, attempt), question)
            except OSError:  # the client has left
                self.close_connection = True
            finally:
                with lock:
                    log.at_once -= 1

        def _act(self, act: "str | Fault", question: str) -> None:
            if isinstance(act, str):
                act = Fault(body=completion(act))
                whole = True
            else:
                whole = False
            time.sleep(act.wait)
            if act.cut:
                self.close_connection = True
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{")
                return
            content = (act.body or json.dumps({"error": {"message": f"status {act.status}"}})).encode()
            self.send_response(act.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            for name, value in act.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            if whole:
                with lock:
                    log.answered[question] += 1

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1", log
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def completion(text: str, candidates: Sequence[Mapping[str, float]] = ()) -> str:
    """A chat completion; ``candidates`` are the likeliest tokens at each place, with their log-probs."""
    content = [
        {"token": max(place, key=place.get), "logprob": max(place.values()), "bytes": None}
        | {"top_logprobs": [{"token": token, "logprob": value, "bytes": None} for token, value in place.items()]}
        for place in candidates
    ]
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "judge-2026-01-01",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
                | ({"logprobs": {"content": content, "refusal": None}} if candidates else {})
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
    )


def prefer_longer(question: str) -> str:
    """An unbiased judge: the longer of the two answers, wherever it stands."""
    a, b = (question.partition(f"<answer_{x}>\n")[2].partition(f"\n</answer_{x}>")[0] for x in "ab")
    return f"Comparison: one is longer.\nPreferred: {'A' if len(a) > len(b) else 'B'}"
