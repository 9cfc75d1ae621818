"""Judges: whatever says which of two responses to a prompt is the better one, behind one interface.

    judge = open_judge(JudgeConfig(kind="openai", model="gpt-x", base_url="http://localhost:8000/v1"), cache=path)
    verdicts = judge.compare(prompts, responses_a, responses_b)   # list[Verdict], one per prompt, in order
    verdicts[0].preference    # 1: A is better, −1: B, 0: a tie, between: graded; None: no verdict (counted, never dropped)
    verdicts[0].reasons       # what the judge wrote, once for each order
    verdict_rates(verdicts)   # wins, ties, losses, flips, invalid, failed, how often the first position won

Kinds (``JudgeConfig.kind``): an OpenAI-compatible endpoint, a local transformers model, a reward model, a reward function of
(prompts, responses) and a comparing function of (prompts, responses_a, responses_b). Whoever reads the texts side by side is
asked in both orders, and if the two answers do not name the same response the verdict is a tie.

What an answer cost is not paid twice: answers are kept in an SQLite file the moment they arrive (``cache``), so a run that was
killed goes on where it stopped. ``p3o.feedback.judge`` itself imports neither openai nor torch.
"""

from p3o.feedback.judge.build import open_judge
from p3o.feedback.judge.cache import ANSWERS_FILE
from p3o.feedback.judge.config import JudgeConfig
from p3o.feedback.judge.verdicts import Answer, Judge, Verdict, VerdictRates, verdict_rates

__all__ = ["ANSWERS_FILE", "Answer", "Judge", "JudgeConfig", "Verdict", "VerdictRates", "open_judge", "verdict_rates"]
