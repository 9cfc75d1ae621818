"""Everything that a server can do in the place of answering, and that none of it takes longer than allowed."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from p3o.rollouts.http import ServerError, call

Speak = Callable[[socket.socket], None]


@pytest.fixture
def speaking() -> Iterator[Callable[[Speak], str]]:
    """A server that says what it is told to, to one client after the other."""
    listeners: list[socket.socket] = []

    def start(speak: Speak) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            while True:
                try:
                    line, _ = listener.accept()
                except OSError:
                    return
                with line:
                    line.recv(65536)
                    with contextlib.suppress(OSError):
                        speak(line)

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def reply(status: str, body: bytes = b"{}", kind: str = "application/json", *headers: str) -> Speak:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers, "", ""]
    return lambda line: line.sendall("\r\n".join(lines).encode() + body)


def test_json_comes_back(speaking: Callable[[Speak], str]) -> None:
    url = speaking(reply("200 OK", b'{"a": [1]}'))
    assert call("POST", url + "/x", {"b": 2}, timeout=5) == {"a": [1]}
    assert call("GET", url + "/x", None, timeout=5) == {"a": [1]}


def test_an_empty_reply_and_plain_text_are_nothing(speaking: Callable[[Speak], str]) -> None:
    assert call("GET", speaking(reply("200 OK", b"")), None, timeout=5) is None
    assert call("GET", speaking(reply("200 OK", b"fine", "text/plain")), None, timeout=5) is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("400 Bad Request", "refused"),
        ("401 Unauthorized", "refused"),
        ("404 Not Found", "missing"),
        ("422 Unprocessable", "refused"),
        ("429 Too Many Requests", "busy"),
        ("500 Internal Server Error", "broken"),
        ("502 Bad Gateway", "broken"),
        ("503 Service Unavailable", "busy"),
    ],
)
def test_the_kind_of_a_refusal(speaking: Callable[[Speak], str], status: str, kind: str) -> None:
    url = speaking(reply(status, b'{"error": {"message": "so\\nit is"}}'))
    with pytest.raises(ServerError, match=r"POST /v1/x: \d+ 'so\\nit is'") as error:
        call("POST", url + "/v1/x?y=1", {}, timeout=5)
    assert error.value.kind == kind


@pytest.mark.parametrize(("asked", "kept"), [("7", 7.0), ("100000", 60.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 1.0)])
def test_a_pause_that_is_asked_for_is_kept_within_limits(
    speaking: Callable[[Speak], str], asked: str, kept: float
) -> None:
    url = speaking(reply("429 Too Many Requests", b"", "text/plain", f"Retry-After: {asked}"))
    with pytest.raises(ServerError) as error:
        call("GET", url, None, timeout=5)
    assert error.value.pause == kept


def test_what_is_no_json_is_broken(speaking: Callable[[Speak], str]) -> None:
    with pytest.raises(ServerError, match="no JSON") as error:
        call("GET", speaking(reply("200 OK", b"<html>")), None, timeout=5)
    assert error.value.kind == "broken"


def dribble(line: socket.socket) -> None:
    line.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    while True:
        line.sendall(b" ")
        threading.Event().wait(0.02)


@pytest.mark.parametrize(
    "speak",
    [
        lambda line: None,  # hangs up
        lambda line: line.sendall(b"SSH-2.0-OpenSSH\r\n"),
        lambda line: line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}"),  # less than announced
        lambda line: threading.Event().wait(1.0),  # says nothing
        dribble,  # a byte now and then: no single wait is too long
    ],
    ids=["hangs up", "other protocol", "cut", "silent", "dribble"],
)
def test_a_connection_that_gives_nothing_in_time_is_lost(speaking: Callable[[Speak], str], speak: Speak) -> None:
    with pytest.raises(ServerError) as error:
        call("GET", speaking(speak), None, timeout=0.3)
    assert error.value.kind == "lost"


def test_a_head_that_comes_byte_by_byte_takes_no_longer_than_it_may(speaking: Callable[[Speak], str]) -> None:
    sent, gone = [], threading.Event()

    def dribble_the_head(line: socket.socket) -> None:
        line.sendall(b"HTTP/1.1 200 OK\r\nX-Filling: ")
        try:
            for _ in range(100):
                line.sendall(b"a")
                sent.append(1)
                threading.Event().wait(0.02)
        finally:
            gone.set()

    with pytest.raises(ServerError, match=r"GET /x: no reply in 0\.2 s"):
        call("GET", speaking(dribble_the_head) + "/x", None, timeout=0.2)
    assert gone.wait(10)
    assert len(sent) < 50, "the client hung up in the middle"


def test_nobody_there_is_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ServerError, match="GET /health") as error:
        call("GET", f"http://127.0.0.1:{port}/health", None, timeout=1)
    assert error.value.kind == "lost"


def test_another_thread_can_cut_a_connection(speaking: Callable[[Speak], str]) -> None:
    lines: set[socket.socket] = set()

    def speak(line: socket.socket) -> None:
        next(iter(lines)).shutdown(socket.SHUT_RDWR)
        threading.Event().wait(2.0)

    with pytest.raises(ServerError) as error:
        call("GET", speaking(speak), None, timeout=60, lines=lines)
    assert error.value.kind == "lost"
    assert not lines


def test_a_key_goes_into_the_header_and_nowhere_else(speaking: Callable[[Speak], str]) -> None:
    heard: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        line, _ = listener.accept()
        with line:
            heard.append(line.recv(65536))
            reply("500 Error", b"secret was wrong")(line)

    threading.Thread(target=serve, daemon=True).start()
    with pytest.raises(ServerError) as error, listener:
        call("POST", f"http://127.0.0.1:{listener.getsockname()[1]}/x", {}, timeout=5, key="hunter2")
    assert b"Authorization: Bearer hunter2" in heard[0]
    assert "hunter2" not in str(error.value)
