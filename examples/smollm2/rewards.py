"""A reward as a Python function: how positive a text sounds, by the VADER lexicon (pip install vaderSentiment)."""

from collections.abc import Sequence

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

_analyser = SentimentIntensityAnalyzer()


def positive(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """VADER's compound score of each response, from −1 (negative) to 1 (positive)."""
    del prompts  # the sentiment is that of the response alone
    return [_analyser.polarity_scores(response)["compound"] for response in responses]
