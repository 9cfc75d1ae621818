"""Conversations as text, by the model's own chat template.

A prompt is rendered up to where the assistant begins to write. An answer is what the template then makes of the assistant's
message, up to the token that ends the turn (``<|im_end|>`` and its like). That token is the end of sequence of the whole run:
it is appended to answers in fine-tuning and in the reward model, and it is where sampling stops in RL. Some base models have
a template whose turns end otherwise than their tokenizer's end of sequence; ``adopt_turn_end`` makes the two agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast, runtime_checkable

from p3o.data.formats import Example, Message, Prompt, half_surrogate
from p3o.data.rows import BadRowError
from p3o.errors import P3OError, first_line

_PROBE = "zebra"


@runtime_checkable
class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that renders conversations."""

    chat_template: Any
    eos_token: Any

    def apply_chat_template(self, conversation: Any, /, **settings: Any) -> Any:
        """The conversation as one text (with ``tokenize=False``)."""

    @property
    def added_tokens_decoder(self) -> Any:
        """Added tokens by id, each with ``content`` and ``special``."""


@dataclass(frozen=True)
class TurnEnd:
    """How a template ends the assistant's turn.

    Attributes:
        tail: all that follows the message.
        kept: the part of it that belongs to the answer's text: what precedes the token, or a tail without any token.
        token: the special token that ends the turn, or None.
    """

    tail: str
    kept: str
    token: str | None


class ChatFormat:
    """Renders examples for one tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer

    def render(self, example: Example) -> tuple[str, tuple[str, ...]]:
        """The prompt's text and the answers' texts, without the end of sequence. Texts stay as they are.

        A template writes its own special tokens: tokenise a rendered conversation with ``add_special_tokens=False``.

        Raises:
            BadRowError: if the template refuses the conversation.
            P3OError: if there is no template, or it renders an answered conversation otherwise than its prompt.
        """
        if isinstance(example.prompt, str):
            return example.prompt, example.answers
        prompt = self._apply(example.prompt, add_generation_prompt=True)
        return prompt, tuple(self._answer(example.prompt, prompt, answer) for answer in example.answers)

    @cached_property
    def turn_end(self) -> TurnEnd:
        """How the template ends the assistant's turn, found with a conversation of two words.

        Raises:
            P3OError: if there is no template or it cannot be understood.
        """
        probe = (Message("user", "horse"), Message("assistant", _PROBE))
        try:
            tail = self._apply(probe).rpartition(_PROBE)[2]
        except BadRowError as error:
            raise P3OError(
                f"the tokenizer's chat template rejects a question with its answer: {error.problem}"
            ) from error
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        found = [token for token in {*special, self.tokenizer.eos_token} if token and token in tail]
        if not found:
            return TurnEnd(tail, tail.rstrip(), None)
        # The first; of two that begin at the same place the longer.
        token = min(found, key=lambda token: (tail.index(token), -len(token)))
        return TurnEnd(tail, tail[: tail.index(token)], token)

    def _answer(self, messages: Sequence[Message], prompt: str, answer: str) -> str:
        whole = self._apply((*messages, Message("assistant", answer)))
        if not whole.startswith(prompt) or not whole.endswith(self.turn_end.tail):
            raise P3OError(
                "the tokenizer's chat template renders the prompt differently once there is an answer, so the "
                "part that the model should write cannot be identified; use another template, or write prompts "
                "and completions as plain texts"
            )
        return whole[len(prompt) : len(whole) - len(self.turn_end.tail)] + self.turn_end.kept

    def _apply(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        if not self.tokenizer.chat_template:
            raise P3OError(
                "a prompt is a list of messages, but the model's tokenizer has no chat template; "
                "write the prompts as plain texts or use a chat model"
            )
        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            rendered = self.tokenizer.apply_chat_template(
                plain, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template is somebody else's program: it may raise anything
            roles = ", ".join(message.role for message in messages)
            raise BadRowError(
                "rejected by the chat template",
                f"the tokenizer's chat template rejects the roles {roles}: {first_line(error)}; "
                "change the messages as the model's card asks",
            ) from error
        if half_surrogate(rendered):
            raise BadRowError(
                "rejected by the chat template",
                "the tokenizer's chat template writes half of a surrogate pair; correct it",
            )
        return cast(str, rendered)


def adopt_turn_end(tokenizer: ChatTokenizer) -> str | None:
    """Make the token that ends an assistant's turn the tokenizer's end of sequence.

    Returns:
        A line that tells of the change; None if the two agreed already or the template uses no token.
    """
    token, before = ChatFormat(tokenizer).turn_end.token, tokenizer.eos_token
    if token is None or token == before:
        return None
    tokenizer.eos_token = token
    return f"the chat template ends a turn with {token}, which replaces {before} as the end of sequence"


def is_conversation(prompt: Prompt) -> bool:
    """Whether a prompt needs the chat template."""
    return not isinstance(prompt, str)
