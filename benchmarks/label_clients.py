"""A labelling server as a process of its own, and annotators that use it over HTTP as the page's script does."""

import http.client
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from p3o.labeling.pairs import Sampled, pairs_of_responses, write_pairs

PATIENCE = 600.0
"""Seconds until a client gives up: it may be unlucky for long when the server is killed again and again."""


class Server:
    """``p3o label`` on a store; the links that it prints are kept over restarts."""

    def __init__(self, place: Sequence[str], pairs: Path, annotators: Sequence[str], *, overlap: int = 2) -> None:
        self._command = [sys.executable, "-m", "p3o", "label", *place, "--annotators", ",".join(annotators)]
        self.links: dict[str, str] = {}
        self.port = 0
        self.process = self._start("--pairs", str(pairs), "--overlap", str(overlap))

    def _start(self, *more: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*self._command, "--port", str(self.port), *more],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.match(r"(\S+): http://127\.0\.0\.1:\d+(/enter/\S+)", line):
                self.links[found[1]] = found[2]
            if found := re.match(r"serving http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                return process
        raise RuntimeError(f"the server has ended with {process.wait()}")

    def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is flushed."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def restart(self) -> None:
        """Start again on the same store and port."""
        self.process = self._start()

    def stop(self) -> None:
        """End it as a service manager would."""
        self.process.terminate()
        self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()


def write_sample_pairs(path: Path, count: int) -> None:
    """Pairs about nothing, a few hundred characters each."""
    words = "The quick brown fox jumps over the lazy dog. " * 4
    groups = [
        (f"Question {i}: {words}", [Sampled(f"Answer {i}. {words}"), Sampled(f"{words} {i}")]) for i in range(count)
    ]
    pairs, _ = pairs_of_responses(groups)
    write_pairs(path, pairs)


@dataclass
class Client:
    """One annotator's browser.

    Attributes:
        acknowledged: the choice of each form (by its key) that the server has said is saved.
        undone: events that the server has said are undone.
        seconds: of each request that was answered, by path.
        retries: requests that were sent again.
    """

    server: Server
    name: str
    cookie: str = ""
    acknowledged: dict[str, str] = field(default_factory=dict)
    undone: list[int] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    retries: int = 0
    _connection: http.client.HTTPConnection | None = None

    def log_in(self) -> None:
        """Open the link."""
        _, _, headers = self.request("GET", self.server.links[self.name])
        self.cookie = headers["set-cookie"].split(";")[0]

    def label_one(self, choice: str) -> bool:
        """Answer the pair that is open; False if there is none."""
        form = self._form("/label")
        if form is None:
            return False
        status, page, _ = self.request("POST", "/label", {**form, "choice": choice})
        if status != 303:
            raise RuntimeError(f"{status}: {page}")
        self.acknowledged[form["key"]] = choice
        return True

    def undo_one(self) -> None:
        """Take the newest label back, if there is one."""
        form = self._form("/undo")
        if form is not None:
            status, page, _ = self.request("POST", "/undo", form)
            if status != 303:
                raise RuntimeError(f"{status}: {page}")
            self.undone.append(int(form["event"]))

    def _form(self, action: str) -> dict[str, str] | None:
        _, page, _ = self.request("GET", "/")
        found = re.search(rf'action="{action}".*?</form>', page, re.DOTALL)
        return None if found is None else dict(re.findall(r'type="hidden" name="(\w+)" value="(\w+)"', found[0]))

    def request(self, method: str, path: str, form: dict[str, str] | None = None) -> tuple[int, str, dict[str, str]]:
        """Ask until there is an answer other than 5xx, as the page's script does."""
        until = time.monotonic() + PATIENCE
        problem = ""
        while time.monotonic() < until:
            started = time.monotonic()
            try:
                answer = self._ask(method, path, form)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                problem = repr(error)
            else:
                if answer[0] < 500:
                    self.seconds.setdefault(f"{method} {urlsplit(path).path}", []).append(time.monotonic() - started)
                    return answer
                problem = f"{answer[0]}: {answer[1]}"
            self.retries += 1
            time.sleep(0.05)
        raise TimeoutError(f"{method} {path}, at last {problem}")

    def _ask(self, method: str, path: str, form: dict[str, str] | None) -> tuple[int, str, dict[str, str]]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=15)
        headers = {"Cookie": self.cookie}
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        self._connection.request(method, path, urlencode(form) if form is not None else None, headers)
        response = self._connection.getresponse()
        page = response.read().decode()
        return response.status, page, {name.lower(): value for name, value in response.getheaders()}

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def fresh_names(count: int) -> list[str]:
    """Names of annotators that a store does not know yet."""
    stem = secrets.token_hex(3)
    return [f"{stem}-{i}" for i in range(count)]
