"""Chat templates and judge templates that are malformed, wrong for their purpose, or reach for what they must not have."""

from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from tests.chat_model import CHATML, chat_tokenizer
from tests.torture.cases import FUZZ, any_text, read_or_told

from p3o.data.chat import ChatFormat, adopt_turn_end
from p3o.data.formats import Example, Message
from p3o.data.reading import PlacedExample, render_rows
from p3o.data.rows import RowReport
from p3o.feedback.judge.prompts import TEMPLATES, Question

EXPRESSIONS = [
    "messages",
    "messages[0].content + 1",
    "messages[9].content",
    "nothing.at.all",
    "1 // 0",
    "messages|first|upper",
    "''.__class__.__mro__",
    "cycler.__init__.__globals__",
    "raise_exception('no')",
    "messages|sort",
    "range(10**9)|list",
    "messages[0]['content'].format(x=1)",
    "'%d' % 'x'",
    "joiner()",
    "{}|tojson",
    "strftime_now('%Y')",
    "prompt",
    "response_a",
    "response_b",
    "9 ** 9",
    "prompt[999]",
    "'a'|int(base=99)",
    "messages|map('nothing')|list",
    "1|length",
    "[1]|join(attribute='a.b')",
    "dict(a=1).items()|list",
    "self",
    "loop.index",
    "caller()",
    "lipsum()",
    "'\\ud800'",
    "[]|max|string",
    "messages|groupby('role')",
]
PIECES = [
    *(f"{{{{ {expression} }}}}" for expression in EXPRESSIONS),
    "{% for m in messages %}",
    "{% endfor %}",
    "{% if add_generation_prompt %}",
    "{% endif %}",
    "{% macro f() %}{{ f() }}{% endmacro %}",
    "{{ f() }}",
    "{% set x = messages %}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "{% raw %}",
    "{% generation %}",
    "{% endgeneration %}",
    "<|im_end|>",
    "\0",
    "\u202e",
    "{{ m.content }}",
    "{{ m['role'] }}",
]
templates = st.lists(st.sampled_from(PIECES) | any_text, max_size=5).map("".join)
RECURSION = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"


def spliced(whole: str) -> st.SearchStrategy[str]:
    """A sound template with a piece put into it, or a part left out."""
    cut = st.tuples(st.integers(0, len(whole)), st.integers(0, 12), st.sampled_from(PIECES) | any_text)
    return cut.map(lambda at: whole[: at[0]] + at[2] + whole[at[0] + at[1] :])


ROWS = [
    PlacedExample("f:1", Example((Message("user", "Who?"),), ("I.", "You."))),
    PlacedExample(
        "f:2",
        Example(
            (Message("system", "{{ 7 * 7 }}"), Message("user", "Who?"), Message("assistant", "I"), Message("user", "?"))
        ),
    ),
]


@FUZZ
@given(templates | spliced(CHATML))
@example(RECURSION)
@example("{{ messages[0].content + 1 }}")
def test_chat_templates(template: str) -> None:
    tokenizer = chat_tokenizer(template=template)
    read_or_told("chat templates", lambda: adopt_turn_end(tokenizer))
    report = RowReport("f", "preferences", "skip", read=len(ROWS))
    rows = read_or_told("chat templates", lambda: render_rows(ROWS, tokenizer, report))
    if rows is not None:
        assert len(rows) == report.kept, "a row that is not rendered is counted"


def test_texts_in_a_conversation_are_values_and_no_templates() -> None:
    chat = ChatFormat(chat_tokenizer())
    prompt, _ = chat.render(ROWS[1].example)
    assert "{{ 7 * 7 }}" in prompt
    assert "49" not in prompt


@FUZZ
@given(templates | spliced(TEMPLATES["tldr"]), any_text, any_text)
@example(RECURSION + "{{ prompt }}{{ response_a }}{{ response_b }}", "p", "a")
def test_judge_templates(tmp_path: Path, template: str, prompt: str, answer: str) -> None:
    path = tmp_path / "template.jinja"
    path.write_bytes(template.encode("utf-8", "surrogatepass"))
    question = read_or_told("judge templates", lambda: Question(str(path)))
    if question is not None:
        read_or_told("judge templates", lambda: question.fill(prompt, answer, "b"))
