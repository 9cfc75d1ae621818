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

from p3o.data.formats import KINDS, Example, Kind, Message
from p3o.data.reading import read_examples
from p3o.data.sources import SourceConfig
from p3o.errors import P3OError

Write = Callable[..., Path]


def read(path: Path | str, kind: Kind) -> list[Example]:
    """The examples of a source whose bad rows stop."""
    examples, report = read_examples(SourceConfig(path=str(path)), kind)
    report.refuse_if_empty()
    return [placed.example for placed in examples]


def test_reads_texts_and_conversations(write: Write) -> None:
    user = {"role": "user", "content": "Hi"}
    rows = write(
        {"prompt": "a  b\u2028c", "completion": " d\n", "id": 7},
        "   ",
        {"prompt": [{"role": "system", "content": "Be kind."}, user], "completion": "Hello"},
        {"prompt": [{**user, "name": None}], "completion": [{"role": "assistant", "content": "Hello"}]},
    )
    hi = Message("user", "Hi")
    prompts = ["a  b\u2028c", (Message("system", "Be kind."), hi), (hi,)]
    assert read(rows, "demonstrations") == [
        Example(prompt, (answer,)) for prompt, answer in zip(prompts, (" d\n", "Hello", "Hello"), strict=True)
    ]
    assert read(rows, "prompts") == [Example(prompt) for prompt in prompts]


def test_reads_preferences_with_windows_line_ends_and_no_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'{"prompt": "p", "chosen": "c", "rejected": "r"}\r\n{"prompt": "p", "chosen": "r", "rejected": "c"}'
    )
    assert read(path, "preferences") == [Example("p", ("c", "r")), Example("p", ("r", "c"))]


GOOD = '{"prompt": "p", "completion": "c"}'


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"prompt": "p", "completion": "c"', "malformed JSON at column 34"),
        ('{"prompt": "p"} {"completion": "c"}', "each line must be one complete JSON object"),
        ('[{"prompt": "p"}]', "is a list; each line must be one complete JSON object"),
        ("null", "is null"),
        ("3", "is a number"),
        ("{}", "no column 'prompt': it is empty; add 'prompt'"),
        ('{"promt": "p", "completion": "c"}', "no column 'prompt', only 'promt', 'completion'; did you mean 'promt'?"),
        (
            '{"prompt": "p", "answer": "c"}',
            "add 'completion', or name the column to read instead: columns: {completion: …}",
        ),
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
        ('{"prompt": "a\\u0000b", "completion": "c"}', "'prompt' has a null character at position 2"),
        ('{"prompt": "ab\\ud83d", "completion": "c"}', "'prompt' has half of a surrogate pair at position 3"),
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
            "ends with a message by the assistant",
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
def test_a_bad_row_is_told_with_its_line(write: Write, row: str, told: str) -> None:
    path = write(GOOD, "", row)
    with pytest.raises(P3OError) as caught:
        read(path, "demonstrations")
    assert str(caught.value).startswith(f"{path}:3: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_equal_answers_are_refused(write: Write) -> None:
    path = write({"prompt": "p", "chosen": "same", "rejected": "same"})
    with pytest.raises(P3OError, match=r"rows\.jsonl:1: 'chosen' and 'rejected' are the same text"):
        read(path, "preferences")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "has no rows"),
        (b"\n  \n", "has no rows"),
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
        read(path, "prompts")
    assert str(caught.value).startswith(f"{path}")
    assert told in str(caught.value)


def test_a_missing_file_and_an_empty_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(P3OError, match=r"nowhere\.jsonl: cannot be read: no such file"):
        read(tmp_path / "nowhere.jsonl", "prompts")
    with pytest.raises(P3OError, match="cannot be read: no data files in this folder"):
        read(tmp_path, "prompts")
    with pytest.raises(P3OError, match="not a valid path"):
        read("a\0b", "prompts")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "assistant"]),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "prompt", "completion", "x"]), values, max_size=4)
    ),
    max_leaves=8,
)
ROWS = st.dictionaries(
    st.sampled_from(["prompt", "completion", "chosen", "rejected", "messages", "promt"]), JSON_VALUES
)


@pytest.fixture
def is_read_or_told(monkeypatch: pytest.MonkeyPatch) -> Callable[[Kind, bytes], bool]:
    """Whether reading this content gives rows or a P3OError; thousands of real files would be slow on some disks."""
    content = BytesIO()
    monkeypatch.setattr("p3o.data.jsonl.open_for_reading", lambda path: content)

    def check(kind: Kind, data: bytes) -> bool:
        nonlocal content
        content = BytesIO(data)
        try:
            return len(read("rows.jsonl", kind)) > 0
        except P3OError as error:
            return "rows.jsonl" in str(error)

    return check


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=ROWS)
def test_any_json_is_read_or_told(is_read_or_told: Callable[[Kind, bytes], bool], row: dict[str, Any]) -> None:
    for kind in KINDS:
        assert is_read_or_told(kind, json.dumps(row).encode())


def test_any_damage_is_read_or_told(is_read_or_told: Callable[[Kind, bytes], bool]) -> None:
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
        assert is_read_or_told(random.choice(KINDS), damaged), damaged


def test_messages_are_a_demonstration_of_the_last_answer(write: Write) -> None:
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "How are you?"), ("assistant", "Fine")]
    rows = write({"messages": [{"role": role, "content": text} for role, text in turns]})
    prompt = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "How are you?"))
    assert read(rows, "demonstrations") == [Example(prompt, ("Fine",))]
    assert read(rows, "prompts") == [Example(prompt)]


def conversation(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_the_prompt_of_two_conversations_is_what_they_share(write: Write) -> None:
    rows = write(
        {"chosen": conversation("Hi", "Hello", "Age?", "Six"), "rejected": conversation("Hi", "Hello", "Age?", "9")}
    )
    prompt = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Age?"))
    assert read(rows, "preferences") == [Example(prompt, ("Six", "9"))]
    assert read(rows, "prompts") == [Example(prompt)]


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("Q: Colour?\nA: blue", "Q: Colour?\nA: red", ("Q: Colour?\nA:", " blue", " red")),
        # No word is cut in two where two words begin alike.
        ("Say: bluebell", "Say: bluebird", ("Say:", " bluebell", " bluebird")),
        ("Sum: 41 or so", "Sum: 42 or so", ("Sum:", " 41 or so", " 42 or so")),
        # Where one text is the beginning of the other, both keep a word (trl #6079, #6960 lose the shorter answer).
        ("Q: go on\nA: yes", "Q: go on\nA: yes, do", ("Q: go on\nA:", " yes", " yes, do")),
        ("Q: go on\nA: yes please", "Q: go on\nA: yes", ("Q: go on\nA:", " yes please", " yes")),
        ("Q: go on\nA: yes", "Q: go on\nA: yes and no", ("Q: go on\nA:", " yes", " yes and no")),
    ],
)
def test_the_prompt_of_two_texts_ends_before_the_word_in_which_they_differ(
    write: Write, chosen: str, rejected: str, expected: tuple[str, str, str]
) -> None:
    prompt, *answers = expected
    assert read(write({"chosen": chosen, "rejected": rejected}), "preferences") == [Example(prompt, tuple(answers))]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"chosen": "Yes it is", "rejected": "No it is not"}, "begin with different words; add a column 'prompt'"),
        ({"chosen": "same", "rejected": "same"}, "are the same text"),
        ({"promt": "Q", "chosen": "a b", "rejected": "a c"}, "did you mean 'promt'?"),
        ({"chosen": conversation("Hi", "a"), "rejected": conversation("Ho", "b")}, "begin with different messages"),
        (
            {"chosen": conversation("Hi", "a"), "rejected": conversation("Hi", "a", "And?", "b")},
            "'rejected' has 3 messages after the last one they share",
        ),
        (
            {"chosen": conversation("Hi", "a", "Ho", "b"), "rejected": conversation("Hi", "c", "Ho", "d")},
            "'chosen' has 3 messages after the last one they share",
        ),
        (
            {"chosen": conversation("Hi", "a", "x"), "rejected": conversation("Hi", "a", "y")},
            "'chosen[2].role' is 'user'; it must be 'assistant'",
        ),
    ],
)
def test_answers_without_a_shared_prompt_are_told(write: Write, row: dict[str, Any], told: str) -> None:
    with pytest.raises(P3OError, match=r"rows\.jsonl:1: ") as caught:
        read(write(row), "preferences")
    assert told in str(caught.value)


ULTRAFEEDBACK = {
    "prompt": "Hi",
    "prompt_id": "f0e3",
    "chosen": conversation("Hi", "Hello."),
    "rejected": conversation("Hi", "Go away."),
    "messages": conversation("Hi", "Hello."),
    "score_chosen": 8.0,
    "score_rejected": 2.0,
}
"""The columns of HuggingFaceH4/ultrafeedback_binarized."""


def test_whole_conversations_beside_their_prompt_as_a_text_are_read_if_that_is_left_unread(write: Write) -> None:
    path = write(ULTRAFEEDBACK)
    with pytest.raises(P3OError, match=r"whole conversation, ignore 'prompt' \(columns: \{prompt: null\}\)"):
        read(path, "preferences")
    source = SourceConfig(path=str(path), columns={"prompt": None})
    (placed,), _ = read_examples(source, "preferences")
    assert placed.example == Example((Message("user", "Hi"),), ("Hello.", "Go away."))


def test_a_prompt_that_is_said_not_to_be_there_is_no_slip_of_the_name(write: Write) -> None:
    row = {"prompt_id": "f0e3", "chosen": "Say: yes", "rejected": "Say: no"}
    with pytest.raises(P3OError, match="did you mean 'prompt_id'"):
        read(write(row), "preferences")
    (placed,), _ = read_examples(SourceConfig(path=str(write(row)), columns={"prompt": None}), "preferences")
    assert placed.example == Example("Say:", (" yes", " no"))
