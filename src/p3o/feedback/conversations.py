"""From the text that a policy reads back to the messages it was rendered from.

A reward function is given texts. A reward model with a chat template of its own was trained on conversations rendered by that
template, so it must not read the policy's rendering; nor should a judge, to whom its marks are noise, or the end of the
question where they are special tokens of its own. The loop stays as it is: the messages are kept beside it, by text.
"""

from collections.abc import Mapping
from typing import Any, cast

from jinja2 import TemplateError

from p3o.data.chat import ChatTokenizer
from p3o.data.formats import Message
from p3o.errors import P3OError

Conversations = Mapping[str, tuple[Message, ...]]
"""The messages behind each rendered prompt; prompts that were plain texts are not in it."""


def in_plain_words(prompt: str, conversations: Conversations) -> str:
    """A prompt for readers: each message of a conversation after the name of its role; any other prompt as it is."""
    messages = conversations.get(prompt)
    if messages is None:
        return prompt
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in messages)


def render_conversation(messages: tuple[Message, ...], answer: str, tokenizer: ChatTokenizer) -> str:
    """The whole conversation with the assistant's answer, by this tokenizer's chat template.

    Raises:
        P3OError: if the template refuses the roles.
    """
    turns: list[dict[str, Any]] = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], tokenize=False)
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise P3OError(
            f"the reward model's chat template rejects a prompt with the roles {roles}: {error}; change the "
            f"messages as the reward model's card requires"
        ) from error
    return cast(str, text)
