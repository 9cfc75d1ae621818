"""A judge that is asked for the letter alone: its log-probs as verdict, for models too weak for a form of two lines."""

import math
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.feedback.judge.server import Fault, completion, prefer_longer, server
from tests.feedback.judge.test_endpoint import PROMPTS, WANTED, A, B, config, judged, preferences

from p3o.feedback.judge import Answer, open_judge, verdict_rates
from p3o.feedback.judge.cache import AnswerCache, key_of
from p3o.feedback.judge.endpoint import letter_log_odds
from p3o.feedback.judge.prompts import TEMPLATES, Question


def logprobs(*places: dict[str, float]) -> SimpleNamespace:
    """As the client reads them."""
    tokens = [[SimpleNamespace(token=token, logprob=value) for token, value in place.items()] for place in places]
    return SimpleNamespace(content=[SimpleNamespace(top_logprobs=candidates) for candidates in tokens])


def leaning(question: str, _attempt: int) -> Fault:
    """The longer answer by 1 nat, and the first by 3: it always writes A."""
    odds = 3.0 + (1.0 if prefer_longer(question).endswith("A") else -1.0)
    return Fault(body=completion("A", [{"A": -0.5, "B": -0.5 - odds, "The": -9.0}]))


def test_log_odds_by_hand() -> None:
    assert letter_log_odds(logprobs({"A": -0.1, "B": -2.4, "C": -5.0})) == pytest.approx(2.3)
    spellings = logprobs({" A": math.log(0.2), "A": math.log(0.1), "**B": math.log(0.6), "or": math.log(0.1)})
    assert letter_log_odds(spellings) == pytest.approx(math.log(0.3 / 0.6))
    only_one = logprobs({"B": -0.1, "The": -3.0, "It": -4.0})
    assert letter_log_odds(only_one) == pytest.approx(-4.0 + 0.1), "A is no likelier than the least likely of them"
    later = logprobs({"\n": -0.1, "The": -2.0}, {"A": -1.0, "B": -1.5})
    assert letter_log_odds(later) == pytest.approx(0.5)
    assert letter_log_odds(logprobs({"The": -0.1})) is None
    assert letter_log_odds(None) is None
    assert letter_log_odds(logprobs({"A": 0.0, "B": -math.inf})) == 50.0
    with pytest.raises(ValueError, match="log-probs nan"):
        letter_log_odds(logprobs({"A": math.nan, "B": -1.0}))


def test_a_taste_for_the_first_place_cancels_where_contradictions_are_averaged() -> None:
    with server(leaning) as (url, log):
        tied = judged(url, answer="letter")
        averaged = judged(url, answer="letter", contradictions="average")
    assert preferences(tied) == [0.0] * 12
    assert verdict_rates(tied).flip_rate == verdict_rates(averaged).flip_rate == 1.0
    # In favour of the longer one: σ(4) − σ(2), by hand.
    share = 1 / (1 + math.exp(-4)) - 1 / (1 + math.exp(-2))
    assert preferences(averaged) == pytest.approx([wanted * share for wanted in WANTED])
    assert {body["max_tokens"] for body in log.bodies} == {4}
    assert {(body["logprobs"], body["top_logprobs"]) for body in log.bodies} == {(True, 20)}


def test_both_readings_are_of_the_same_answers_and_paid_once(tmp_path: Path) -> None:
    cache = tmp_path / "answers.sqlite"
    with server(leaning) as (url, log):
        judged(url, cache, answer="letter")
        assert preferences(judged(url, cache, answer="letter", contradictions="average"))[0] > 0
        assert len(log.requests) == 24
        judged(url, cache, max_tokens=4)
    assert len(log.requests) == 48, "a sentence is another answer"


def test_without_log_probs_the_letter_that_was_written_counts() -> None:
    with server(lambda q, _: prefer_longer(q)[-1]) as (url, _):
        assert preferences(judged(url, answer="letter")) == WANTED
    with server(lambda *_: "Both are good") as (url, _):
        assert verdict_rates(judged(url, answer="letter")).invalid == 12


def test_thoughts_that_could_have_begun_with_a_letter_are_no_verdict() -> None:
    thinking = Fault(body=completion("<think>\nOkay", [{"<think>": 0.0, "A": -19.0, "The": -20.0}]))
    with server(lambda *_: thinking) as (url, _):
        assert verdict_rates(judged(url, answer="letter")).invalid == 12


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_question_asks_for_one_thing(name: str, tmp_path: Path) -> None:
    asked = Question(name, "letter").fill("p", "a", "b")
    assert asked.endswith("Answer with that one letter and nothing else.\n")
    assert "two lines" not in asked
    own = tmp_path / "mine.jinja"
    own.write_text("{{ prompt }}|{{ response_a }}|{{ response_b }}")
    assert Question(str(own), "letter").fill("p", "a", "b").startswith("p|a|b\n\nWhich is better, A or B?")


def test_the_estimate_knows_that_a_letter_is_short() -> None:
    judge = open_judge(config("http://127.0.0.1:1/v1", answer="letter", price_input=0.0, price_output=1e6))
    assert judge.estimate(PROMPTS, A, B).cost == 24 * 4


def test_a_file_of_answers_from_before_is_read_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as old:
        old.execute(
            "CREATE TABLE answers (model TEXT, pair TEXT, shown_first INTEGER, parameters TEXT, choice TEXT, text TEXT, "
            "input_tokens INTEGER, output_tokens INTEGER, served_by TEXT, "
            "PRIMARY KEY (model, pair, shown_first, parameters)) WITHOUT ROWID"
        )
        key = key_of("m", "p", "a", "b", "{}")
        row = (key.model, key.pair, key.shown_first, key.parameters, "first", "Preferred: A", 7, 5, "m-1")
        old.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    other = key_of("m", "p", "a", "c", "{}")
    with AnswerCache(path) as cache:
        assert cache.tokens("m") == (7, 5), "what its answers say is counted from the first"
        cache.keep(other, Answer("second", "B", lean=-0.25, input_tokens=3, output_tokens=1))
    with AnswerCache(path) as cache:
        assert cache.tokens("m") == (10, 6)
        assert cache.tokens("n") == (0, 0)
        assert cache.find([key, other]) == {
            key: Answer("first", "Preferred: A", "", 7, 5, "m-1"),
            other: Answer("second", "B", lean=-0.25, input_tokens=3, output_tokens=1),
        }
