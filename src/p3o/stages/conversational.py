"""The files of a run that hold prompts for people and programs: conversations as the messages that the user gave.

Inside a run a prompt is the text that the policy reads. In pairs.jsonl and preferences.jsonl a prompt that was rendered from
messages is these messages again: the labelling page shows them as such, any reward model reads them by its own template, and
``data.preferences`` takes the file. Responses are texts, as they were sampled.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from p3o.data.chat import ChatFormat, ChatTokenizer, adopt_turn_end
from p3o.data.formats import Example, Message
from p3o.feedback.conversations import Conversations
from p3o.files import read_jsonl
from p3o.inputs import Pair
from p3o.labeling.pairs import Messages


def as_given(prompt: str, conversations: Conversations) -> str | Messages:
    """The messages that a prompt was rendered from; a prompt that was a text as it is."""
    messages = conversations.get(prompt)
    return prompt if messages is None else [{"role": one.role, "content": one.content} for one in messages]


def preference_rows(pairs: Sequence[Pair], conversations: Conversations) -> list[dict[str, Any]]:
    """Rows of prompt/chosen/rejected."""
    return [{"prompt": as_given(x, conversations), "chosen": a, "rejected": b} for x, a, b in pairs]


def read_preference_rows(path: Path, tokenizer: ChatTokenizer) -> list[Pair]:
    """What ``preference_rows`` made, its prompts rendered again. As wherever conversations are read, the end of a turn becomes
    the tokenizer's end of sequence.

    Raises:
        P3OError: if the file cannot be read.
    """
    rows, chat = read_jsonl(path), ChatFormat(tokenizer)
    if any(not isinstance(row["prompt"], str) for row in rows):
        adopt_turn_end(tokenizer)

    def rendered(prompt: str | Messages) -> str:
        if isinstance(prompt, str):
            return prompt
        return chat.render(Example(tuple(Message(**message) for message in prompt), ()))[0]  # type: ignore[arg-type]

    return [(rendered(row["prompt"]), row["chosen"], row["rejected"]) for row in rows]
