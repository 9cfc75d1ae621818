"""A judge without a model: answers chat completions on loopback as an OpenAI-compatible server would, by a rule.

    python examples/judge_feedback/judge_server.py [PORT]

Better is the answer that names more of the words asked for; of two that name as many, the one that gives more steps ("first",
"then"). Where both are equal it takes the first, as judges do, so that the two orders contradict each other, which is a tie.
"""

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 8123
STEPS = frozenset(["first", "then"])


def words_of(text: str) -> set[str]:
    """Its different words, in lower case."""
    return set(re.findall(r"[a-z]+", text.lower()))


COMMON = words_of("a best can do how I is me of please tell the to way what would you")
"""What questions have in common, which says nothing of what is asked for."""


def quality(conversation: str, answer: str) -> tuple[int, int]:
    """How many words of the last question the answer names, and how many steps it gives."""
    question = conversation.rpartition("Human:")[2].partition("Assistant:")[0]
    said = words_of(answer)
    return len(said & words_of(question) - COMMON), len(said & STEPS)


def judge(question: str) -> str:
    """The verdict on a question in the form of the template ``helpfulness``.

    Raises:
        ValueError: if the question has another form.
    """
    parts = []
    for tag in ("conversation", "answer_a", "answer_b"):
        found = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", question, re.DOTALL)
        if found is None:
            raise ValueError(f"no <{tag}> in the question; this judge reads the template helpfulness")
        parts.append(found.group(1))
    conversation, *answers = parts
    a, b = (quality(conversation, answer) for answer in answers)
    comparison = f"A names {a[0]} of the words asked for and gives {a[1]} steps, B {b[0]} and {b[1]}."
    return f"Comparison: {comparison}\nPreferred: {'A' if a >= b else 'B'}"


class Handler(BaseHTTPRequestHandler):
    """POST /v1/chat/completions, and no other request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing for each of thousands of questions."""

    def do_POST(self) -> None:
        """Answer one question; 400 says why it is none."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/v1/chat/completions":
            self.reply(404, {"error": {"message": f"no {self.path} here"}})
            return
        try:
            request = json.loads(body)
            question = request["messages"][-1]["content"]
            text = judge(question)
        except (ValueError, LookupError, TypeError) as error:
            self.reply(400, {"error": {"message": str(error)}})
            return
        read, written = len(question.split()), len(text.split())  # a token a word
        self.reply(
            200,
            {
                "id": "rule",
                "object": "chat.completion",
                "created": 0,
                "model": "rule",
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
                "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
            },
        )

    def reply(self, status: int, content: object) -> None:
        """A body of JSON."""
        sent = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)


def start(port: int = PORT) -> ThreadingHTTPServer:
    """A server that listens on loopback; ``serve_forever`` answers."""
    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    try:
        server = start(int(sys.argv[1]) if len(sys.argv) > 1 else PORT)
    except OSError as error:
        raise SystemExit(f"cannot listen there ({error.strerror}); name another port, here and in base_url") from error
    print(f"judging at http://127.0.0.1:{server.server_port}/v1 until Ctrl-C", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
