"""Anthropic/hh-rlhf: two transcripts of the same conversation, of which the first was preferred.

    ⏎⏎Human: …⏎⏎Assistant: …⏎⏎Human: …⏎⏎Assistant: …

The columns ``chosen`` and ``rejected`` hold whole transcripts. The prompt is what both share up to their last common
"⏎⏎Assistant:", itself included; the completions are the rest. Cutting at the last "Assistant:" of one of them, as is often
done, gives an empty or foreign completion wherever the two have different numbers of turns. Such rows go on for several turns
after the place where they part, and are no pair of answers to one prompt: they are bad rows, with a reason of their own.

A response should end at "Human:", should a policy write it: the next turn is not its own. Source: Bai et al. 2022,
arXiv:2204.05862.
"""

from collections.abc import Mapping
from typing import Any

from p3o.data.prefixes import common_prefix
from p3o.data.rows import BadRowError

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def hh(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """``prompt``, ``chosen`` and ``rejected`` of two transcripts.

    Raises:
        BadRowError: if they are no transcripts, share no turn, or one of the completions is empty or has several turns.
    """
    chosen, rejected = (_transcript(columns, name) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise BadRowError(
            "equal answers",
            "'chosen' and 'rejected' are the same transcript, so the row states no preference; remove it",
        )
    prompt = shared_prompt(chosen, rejected)
    answers = {"chosen": chosen[len(prompt) :], "rejected": rejected[len(prompt) :]}
    for name, text in answers.items():
        if not text.strip():
            raise BadRowError("empty", f"'{name}' has nothing after the last turn that both transcripts share")
        if HUMAN in text or ASSISTANT in text:
            raise BadRowError(
                "more than one turn",
                f"'{name}' continues for several turns after the last one that both transcripts share, so the two "
                f"do not answer the same prompt",
            )
    return {"prompt": prompt, **answers}


def shared_prompt(chosen: str, rejected: str) -> str:
    """The start that both transcripts share, up to its last "Assistant:".

    Raises:
        BadRowError: if they share no turn of the assistant.
    """
    shared = common_prefix(chosen, rejected)
    end = shared.rfind(ASSISTANT)
    if end < 0:
        raise BadRowError(
            "no shared prompt", "'chosen' and 'rejected' begin differently and share no turn; remove the row"
        )
    return shared[: end + len(ASSISTANT)]


def _transcript(columns: Mapping[str, Any], name: str) -> str:
    text = columns.get(name)
    if not isinstance(text, str) or not text.startswith(HUMAN):
        raise BadRowError(
            "not a transcript", f"'{name}' is not a transcript; it must begin with two line breaks and 'Human:'"
        )
    return text
