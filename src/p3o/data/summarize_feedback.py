"""openai/summarize_from_feedback, part ``comparisons``: two summaries of a Reddit post and which one was preferred.

A row has ``info`` (``subreddit``, ``title``, ``post``; or ``article`` for news), two ``summaries`` with ``text`` and
``policy``, and ``choice``, 0 or 1, beside ``worker``, ``batch``, ``split``, ``extra``. The prompt is the one of ``tldr``, so
that fine-tuning, the reward model and RL see the same text. The validation split also holds news articles of CNN and the Daily
Mail: they are another task, left out and counted.

On the hub the data set is made by a script, which datasets >= 4 refuses: read ``revision: refs/convert/parquet`` with
``data_dir: comparisons``. Source: Stiennon et al. 2020, arXiv:2009.01325.
"""

from collections.abc import Mapping
from typing import Any

from p3o.data.rows import BadRowError, OtherTaskError
from p3o.data.tldr import summary_text, tldr_prompt

NOT_A_COMPARISON = "not a comparison"


def summarize_feedback(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """``prompt``, ``chosen`` and ``rejected`` of a comparison.

    Raises:
        OtherTaskError: for a news article.
        BadRowError: if the row is no comparison of two summaries.
    """
    info, summaries, choice = (columns.get(name) for name in ("info", "summaries", "choice"))
    if not isinstance(info, Mapping):
        raise BadRowError(NOT_A_COMPARISON, "no column 'info'; use the part 'comparisons' of the data set")
    if not info.get("post") and info.get("article"):
        raise OtherTaskError("news article, not a Reddit post", "a news article, which has no TL;DR prompt")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(s, Mapping) for s in summaries):
        raise BadRowError(NOT_A_COMPARISON, "'summaries' is not a list of two summaries")
    if choice not in (0, 1) or isinstance(choice, bool):
        raise BadRowError(NOT_A_COMPARISON, f"'choice' is {choice!r}; it must be 0 or 1")
    chosen, rejected = (summary_text(summaries[i].get("text"), f"summaries[{i}].text") for i in (choice, 1 - choice))
    return {"prompt": tldr_prompt(info), "chosen": chosen, "rejected": rejected}
