"""Conversations as the chat template writes them, and where a turn ends."""

from dataclasses import dataclass
from typing import Any

import pytest
from jinja2 import Environment, TemplateError

from p3o.data.chat import ChatFormat, TurnEnd, adopt_turn_end
from p3o.data.formats import Example, Message
from p3o.data.rows import BadRowError
from p3o.errors import P3OError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Llama 2: the content is trimmed and stands between spaces.
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] | trim }} </s>{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}### {{ m['role'] }}\n{{ m['content'] }}\n### end\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>{% endif %}"
)
HI = (Message("user", "Hi"),)


@dataclass
class Token:
    content: str
    special: bool


class Tokenizer:
    """Renders a template with jinja, as transformers does."""

    def __init__(self, template: str | None, eos: str, special: tuple[str, ...] = ()) -> None:
        self.chat_template, self.eos_token = template, eos
        self.added_tokens_decoder = {i: Token(text, True) for i, text in enumerate(special)}
        self.added_tokens_decoder[99] = Token("<|im", False)

    def apply_chat_template(self, conversation: Any, /, **settings: Any) -> str:
        assert settings["tokenize"] is False
        if conversation[0]["role"] == "system":
            raise TemplateError("System role not supported")
        return Environment().from_string(self.chat_template or "").render(messages=conversation, **settings)


def test_a_text_stays_as_it_is() -> None:
    example = Example("{as} it <is>", (" yes",))
    assert ChatFormat(Tokenizer(None, "</s>")).render(example) == ("{as} it <is>", (" yes",))


@pytest.mark.parametrize(
    ("template", "eos", "prompt", "answer"),
    [
        (CHATML, "<|im_end|>", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Yo"),
        (INST, "</s>", "[INST] Hi [/INST]", " Yo "),
        (PLAIN, "</s>", "### user\nHi\n### end\n### assistant\n", "Yo\n### end"),
    ],
)
def test_an_answer_is_what_the_template_makes_of_it_up_to_its_end(
    template: str, eos: str, prompt: str, answer: str
) -> None:
    tokenizer = Tokenizer(template, eos, (eos,))
    assert ChatFormat(tokenizer).render(Example(HI, ("Yo",))) == (prompt, (answer,))
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], tokenize=False
    )
    ended = prompt + answer + (eos if eos in whole else "")
    assert whole.startswith(ended), "the text of training is the template's own"


def test_the_end_of_a_turn() -> None:
    assert ChatFormat(Tokenizer(CHATML, "<|im_end|>")).turn_end == TurnEnd("<|im_end|>\n", "", "<|im_end|>")
    assert ChatFormat(Tokenizer(INST, "</s>")).turn_end == TurnEnd(" </s>", " ", "</s>")
    assert ChatFormat(Tokenizer(PLAIN, "</s>")).turn_end == TurnEnd("\n### end\n", "\n### end", None)


def test_the_templates_end_of_turn_becomes_the_end_of_sequence() -> None:
    base = Tokenizer(CHATML, "<|endoftext|>", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    assert adopt_turn_end(base) == (
        "the chat template ends a turn with <|im_end|>, which replaces <|endoftext|> as the end of sequence"
    )
    assert base.eos_token == "<|im_end|>"
    assert adopt_turn_end(base) is None
    assert adopt_turn_end(Tokenizer(PLAIN, "</s>")) is None


def test_what_the_template_refuses_is_a_bad_row() -> None:
    example = Example((Message("system", "Be kind."), *HI))
    with pytest.raises(BadRowError, match="rejects the roles system, user: System role not supported"):
        ChatFormat(Tokenizer(CHATML, "<|im_end|>")).render(example)


def test_no_template_and_an_unfit_template_are_told() -> None:
    with pytest.raises(P3OError, match="no chat template; write the prompts as plain texts"):
        ChatFormat(Tokenizer(None, "</s>")).render(Example(HI))
    with pytest.raises(P3OError, match="renders the prompt differently once there is an answer"):
        ChatFormat(Tokenizer(THINKING, "</s>")).render(Example(HI, ("Yo",)))
