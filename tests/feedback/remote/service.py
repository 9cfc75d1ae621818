"""Reward services on loopback: one whose replies and faults the test chooses, and our own in a thread.

    with service(behave) as (url, log): ...

``behave(path, body, attempt)`` returns what to do with the n-th request (from 1) of this body: the JSON to reply, or a
``Fault``.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import uvicorn
from tests.feedback.judge.server import Fault

from p3o.feedback.listening import address_of, listen

__all__ = ["Fault", "Log", "running", "service"]

Behaviour = Callable[[str, dict[str, Any], int], "dict[str, Any] | Fault"]


@dataclass
class Log:
    """What the server saw."""

    paths: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    at_once: int = 0
    most_at_once: int = 0


@contextmanager
def service(behave: Behaviour) -> Iterator[tuple[str, Log]]:
    log, lock = Log(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                log.paths.append(self.path)
                log.bodies.append(body)
                log.keys.add(self.headers.get("Authorization", ""))
                attempt = log.bodies.count(body)
                log.at_once += 1
                log.most_at_once = max(log.most_at_once, log.at_once)
            try:
                self._act(behave(self.path, body, attempt))
            except OSError:  # the client has left
                self.close_connection = True
            finally:
                with lock:
                    log.at_once -= 1

        def _act(self, act: "dict[str, Any] | Fault") -> None:
            fault = act if isinstance(act, Fault) else Fault(body=json.dumps(act))
            time.sleep(fault.wait)
            if fault.cut:
                self.close_connection = True
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
                return
            content = (fault.body or json.dumps({"version": 1, "error": f"status {fault.status}"})).encode()
            self.send_response(fault.status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in fault.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", log
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@contextmanager
def running(app: Any) -> Iterator[str]:
    """An ASGI application at the address that this gives."""
    socket = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield address_of(socket)
    finally:
        server.should_exit = True
        thread.join()
        socket.close()
