"""Every bad row is told with its line; nothing malformed ends in anything but a P3OError."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from p3o.data.formats import (
    Demonstration,
    Message,
    Preference,
    read_demonstrations,
    read_preferences,
    read_prompts,
    render_prompt,
)
from p3o.errors import P3OError


def write(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def test_reads_texts_and_conversations(tmp_path: Path) -> None:
    user = {"role": "user", "content": "Hi"}
    rows = write(
        tmp_path,
        {"prompt": "a  b\u2028c", "completion": " d\n", "id": 7},
        "   ",
        {"prompt": [{"role": "system", "content": "Be kind."}, user], "completion": "Hello"},
        {"prompt": [{**user, "name": None}], "completion": [{"role": "assistant", "content": "Hello"}]},
    )
    hi = Message("user", "Hi")
    assert read_demonstrations(rows) == [
        Demonstration("a  b\u2028c", " d\n"),
        Demonstration((Message("system", "Be kind."), hi), "Hello"),
        Demonstration((hi,), "Hello"),
    ]
    assert read_prompts(rows) == ["a  b\u2028c", (Message("system", "Be kind."), hi), (hi,)]


def test_reads_preferences_with_windows_line_ends_and_no_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'{"prompt": "p", "chosen": "c", "rejected": "r"}\r\n{"prompt": "p", "chosen": "r", "rejected": "c"}'
    )
    assert read_preferences(path) == [Preference("p", "c", "r"), Preference("p", "r", "c")]


GOOD = '{"prompt": "p", "completion": "c"}'


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"prompt": "p", "completion": "c"', "malformed JSON at column 34"),
        ('{"prompt": "p"} {"completion": "c"}', "each line must be one whole JSON object"),
        ('[{"prompt": "p"}]', "is a list; each line must be one whole JSON object"),
        ("null", "is null"),
        ("3", "is a number"),
        ("{}", "no column 'prompt': it is empty; add 'prompt'"),
        ('{"promt": "p", "completion": "c"}', "no column 'prompt', only 'promt', 'completion'; did you mean 'promt'?"),
        ('{"prompt": "p", "answer": "c"}', "no column 'completion', only 'prompt', 'answer'; add 'completion'"),
        ('{"prompt": null, "completion": "c"}', "'prompt' is null; it must be a text or a list of messages"),
        ('{"prompt": 3, "completion": "c"}', "'prompt' is a number"),
        ('{"prompt": {"role": "user"}, "completion": "c"}', "'prompt' is an object"),
        ('{"prompt": "", "completion": "c"}', "'prompt' is empty; fill it in or remove the row"),
        ('{"prompt": " \\n\\t", "completion": "c"}', "'prompt' is only white space"),
        ('{"prompt": "p", "completion": true}', "'completion' is true or false; it must be a text"),
        ('{"prompt": "p", "completion": "  "}', "'completion' is only white space"),
        ('{"prompt": "p", "completion": "c", "weight": NaN}', "NaN is not a JSON value"),
        ('{"prompt": "p", "completion": -Infinity}', "-Infinity is not a JSON value"),
        ('{"prompt": "p", "completion": ' + "9" * 5000 + "}", "malformed JSON"),
        ('{"prompt": "p", "prompt": "q", "completion": "c"}', "'prompt' appears twice in one object"),
        ('{"prompt": "a\\u0000b", "completion": "c"}', "'prompt' holds a null character at position 2"),
        ('{"prompt": "ab\\ud83d", "completion": "c"}', "'prompt' holds half of a surrogate pair at position 3"),
        ("[" * 100_000, "nested too deeply"),
        ('{"prompt": [], "completion": "c"}', "'prompt' is an empty list"),
        ('{"prompt": ["Hi"], "completion": "c"}', "'prompt[0]' is a text; it must be a message"),
        ('{"prompt": [{"role": "user"}], "completion": "c"}', "'prompt[0]' has no 'content', only 'role'"),
        (
            '{"prompt": [{"role": "human", "content": "Hi"}], "completion": "c"}',
            "'prompt[0].role' is 'human'; it must be one",
        ),
        (
            '{"prompt": [{"role": "user", "content": " "}], "completion": "c"}',
            "'prompt[0].content' is only white space",
        ),
        (
            '{"prompt": [{"role": "user", "content": "Hi", "tool_calls": [1]}], "completion": "c"}',
            "'prompt[0]' has 'tool_calls' beside",
        ),
        (
            '{"prompt": [{"role": "assistant", "content": "Hi"}], "completion": "c"}',
            "ends with a message of the assistant",
        ),
        (
            '{"prompt": "p", "completion": [{"role": "assistant", "content": "c"}]}',
            "'completion' is a list of messages but 'prompt' is a text",
        ),
        (
            '{"prompt": [{"role": "user", "content": "Hi"}], "completion": []}',
            "'completion' has 0 messages; give it exactly one",
        ),
        (
            '{"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "user", "content": "c"}]}',
            "'completion[0].role' is 'user'; it must be 'assistant'",
        ),
    ],
)
def test_a_bad_row_is_told_with_its_line(tmp_path: Path, row: str, told: str) -> None:
    path = write(tmp_path, GOOD, "", row)
    with pytest.raises(P3OError) as caught:
        read_demonstrations(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_equal_answers_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "p", "chosen": "same", "rejected": "same"})
    with pytest.raises(P3OError, match=r"rows\.jsonl:1: 'chosen' and 'rejected' are the same text"):
        read_preferences(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no rows"),
        (b"\n  \n", "holds no rows"),
        (b'\xef\xbb\xbf{"prompt": "p"}', ":1: begins with a byte order mark"),
        ('{"prompt": "p"}'.encode("utf-16"), ":1: begins with a byte order mark"),
        (b'{"prompt": "p"}\n{"prompt": "caf\xe9"}', ":2: not UTF-8 (byte 0xe9 at position 16)"),
        (b"\x00\x01\x02", ":1: malformed JSON"),
        (b"\x1f\x8b\x08\x00", ":1: not UTF-8"),
    ],
)
def test_a_bad_file_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(P3OError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}")
    assert told in str(caught.value)


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(P3OError, match=r"nowhere\.jsonl: cannot be read: no such file"):
        read_prompts(tmp_path / "nowhere.jsonl")
    with pytest.raises(P3OError, match="cannot be read: it is a folder"):
        read_prompts(tmp_path)
    for impossible in ("a\0b", "a\ud800b"):
        with pytest.raises(P3OError, match="not a possible path"):
            read_prompts(impossible)


Reader = Callable[[Path], list[Any]]
READERS: tuple[Reader, ...] = (read_prompts, read_demonstrations, read_preferences)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "assistant"]),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "prompt", "completion", "x"]), values, max_size=4)
    ),
    max_leaves=8,
)
ROWS = st.dictionaries(st.sampled_from(["prompt", "completion", "chosen", "rejected", "promt"]), JSON_VALUES)


@pytest.fixture
def is_read_or_told(monkeypatch: pytest.MonkeyPatch) -> Callable[[Reader, bytes], bool]:
    """Whether reading this content gives rows or a P3OError; thousands of real files would be slow on some disks."""
    content = BytesIO()
    monkeypatch.setattr("p3o.data.formats.open_for_reading", lambda path: content)

    def check(read: Reader, data: bytes) -> bool:
        nonlocal content
        content = BytesIO(data)
        try:
            return len(read(Path("rows.jsonl"))) > 0
        except P3OError as error:
            return "rows.jsonl" in str(error)

    return check


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=ROWS)
def test_any_json_is_read_or_told(is_read_or_told: Callable[[Reader, bytes], bool], row: dict[str, Any]) -> None:
    for read in READERS:
        assert is_read_or_told(read, json.dumps(row).encode())


def test_any_damage_is_read_or_told(is_read_or_told: Callable[[Reader, bytes], bool]) -> None:
    whole = b'{"prompt": "p\\u00e9", "completion": "c", "chosen": [{"role": "user"}], "rejected": "\xc3\xa9"}\n' * 2
    pieces = [
        b"",
        b"\0",
        b"\n",
        b'"',
        b"{",
        b"}",
        b"[",
        b"\\u",
        b"\\ud800",
        b"NaN",
        b"\xff",
        b"\xed\xa0\x80",
        b"1e999",
        b":",
    ]
    random = Random(0)
    for _ in range(3000):
        start = random.randrange(len(whole))
        damaged = whole[:start] + random.choice(pieces) + whole[start + random.choice((0, 1, 1, 5, 40)) :]
        assert is_read_or_told(random.choice(READERS), damaged), damaged


class Tokenizer:
    """Renders conversations as ``<role>content`` and refuses system messages, as some templates do."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def apply_chat_template(self, conversation: Any, /, **options: Any) -> str:
        assert options == {"tokenize": False, "add_generation_prompt": True}
        if conversation[0]["role"] == "system":
            raise TemplateError("System role not supported")
        return "".join(f"<{message['role']}>{message['content']}" for message in conversation) + "<assistant>"


def test_render_prompt() -> None:
    conversation = (Message("user", "Hi"),)
    assert render_prompt("{as} it <is>", Tokenizer(None)) == "{as} it <is>"
    assert render_prompt(conversation, Tokenizer("template")) == "<user>Hi<assistant>"
    with pytest.raises(P3OError, match="no chat template; write the prompts as plain texts"):
        render_prompt(conversation, Tokenizer(None))
    with pytest.raises(P3OError, match="refuses a prompt with the roles system, user: System role not supported"):
        render_prompt((Message("system", "Be kind."), *conversation), Tokenizer("template"))
