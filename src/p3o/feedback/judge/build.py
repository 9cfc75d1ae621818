"""A judge from its configuration."""

from pathlib import Path

from p3o.feedback.conversations import Conversations
from p3o.feedback.judge.cache import AnswerCache
from p3o.feedback.judge.config import JudgeConfig
from p3o.feedback.judge.prompts import Question
from p3o.feedback.judge.sidebyside import Asker, SideBySideJudge
from p3o.feedback.judge.verdicts import Judge


def open_judge(config: JudgeConfig, *, cache: Path | None = None, conversations: Conversations | None = None) -> Judge:
    """The judge that the configuration describes, ready to compare.

    Args:
        config: its settings.
        cache: file of answers, for the kinds that are asked in words; None keeps nothing.
        conversations: the messages behind rendered prompts: what is asked in words is shown these, and a reward model with a
            chat template reads them by that. Functions get the prompts as they are.

    Raises:
        P3OError: if its model, function, template, key or cache cannot be used.
    """
    if config.kind in ("openai", "transformers"):
        question = Question(config.template, config.answer if config.kind == "openai" else "sentence")
        return SideBySideJudge(_asker(config), question, AnswerCache(cache), config, conversations)
    if config.kind == "reward_model":
        return _reward_model(config, conversations)
    return _function(config)


def _asker(config: JudgeConfig) -> Asker:
    if config.kind == "openai":
        from p3o.feedback.judge.endpoint import EndpointAsker

        return EndpointAsker(config)
    from p3o.feedback.judge.local import load_local_asker

    _without_bars()

    return load_local_asker(config.model or "", device=config.device, batch_size=config.batch_size)


def _reward_model(config: JudgeConfig, conversations: Conversations | None) -> Judge:
    import torch

    from p3o.feedback.judge.scores import ScoreJudge
    from p3o.feedback.reward_model import RewardModel, load_reward_model
    from p3o.models.language import load_tokenizer

    _without_bars()
    path = config.model or ""
    model = load_reward_model(path, device=torch.device(config.device), new_head=False)
    reward = RewardModel(model, load_tokenizer(path), batch_size=config.batch_size, conversations=conversations)
    return ScoreJudge(reward, name=path, log_odds=True)


def _without_bars() -> None:
    """Our own progress is the one to watch."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _function(config: JudgeConfig) -> Judge:
    from p3o.feedback.functions import call_reward_function, load_function, load_reward_function
    from p3o.feedback.judge.scores import FunctionJudge, ScoreJudge

    spec = config.function or ""
    if config.kind == "function":
        return FunctionJudge(
            load_function(spec, kind="judge", parameters=("prompts", "responses_a", "responses_b")),
            name=spec,
            contradictions=config.contradictions,
        )
    function = load_reward_function(spec)
    return ScoreJudge(lambda p, r: call_reward_function(function, p, r, name=spec), name=spec, log_odds=False)
