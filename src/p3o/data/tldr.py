"""Reddit TL;DR: prompts that are posts, completions that are their authors' summaries.

Reads ``trl-lib/tldr`` (columns ``prompt``, ``completion``) and the form of OpenAI's own release (``subreddit``, ``title``,
``post``, ``summary``). The prompt keeps its blank lines and ends without white space; the completion begins with one space, so
that the two may be tokenised apart:

    SUBREDDIT: r/relationships⏎⏎TITLE: …⏎⏎POST: …⏎⏎TL;DR:

Source: Stiennon et al. 2020, arXiv:2009.01325; the prompt's form is that of its released code and of TRL's data set.
"""

import re
from collections.abc import Mapping
from typing import Any

from p3o.data.rows import BadRowError

NOT_TLDR = "not a TL;DR row"
_FORM = re.compile(r"SUBREDDIT: r/.*?\n\nTITLE: .*?\n\nPOST: .*\n\nTL;DR:\Z", re.DOTALL)


def tldr(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """``prompt`` and ``completion`` of a TL;DR row.

    Raises:
        BadRowError: if the prompt has not the form above, or the completion does not begin with a space.
    """
    if "prompt" not in columns and "post" in columns:
        return {"prompt": tldr_prompt(columns), "completion": summary_text(columns.get("summary"), "summary")}
    prompt, completion = columns.get("prompt"), columns.get("completion")
    if isinstance(prompt, str) and not _FORM.match(prompt):
        raise BadRowError(
            NOT_TLDR,
            "'prompt' is not of the form SUBREDDIT: r/…, TITLE: …, POST: …, TL;DR: with blank lines between; "
            "otherwise the reward model and RL would see a different text from the published one",
        )
    if isinstance(completion, str) and completion.strip() and not re.match(r" \S", completion):
        raise BadRowError(NOT_TLDR, "'completion' must begin with one space, because it follows 'TL;DR:'")
    return columns


def tldr_prompt(post: Mapping[str, Any]) -> str:
    """The prompt of a post, given as ``subreddit``, ``title`` and ``post``.

    Raises:
        BadRowError: if one of the three is no text.
    """
    for name in ("subreddit", "title", "post"):
        if not isinstance(post.get(name), str):
            raise BadRowError(NOT_TLDR, f"'{name}' is missing or not a text; a TL;DR row has subreddit, title and post")
    return f"SUBREDDIT: r/{post['subreddit']}\n\nTITLE: {post['title']}\n\nPOST: {post['post']}\n\nTL;DR:"


def summary_text(text: Any, name: str) -> str:
    """A summary as a completion: one space, then the text without the white space around it.

    Raises:
        BadRowError: if it is no text or empty.
    """
    if not isinstance(text, str):
        raise BadRowError(NOT_TLDR, f"'{name}' is missing or not a text")
    if not text.strip():
        raise BadRowError("empty", f"'{name}' is empty")
    return f" {text.strip()}"
