"""Where a run's feedback comes from: its own reward model, given rewards and their sum, or comparisons alone."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from p3o.config_feedback import RewardConfig, RewardPart
from p3o.data.formats import Message
from p3o.errors import P3OError
from p3o.feedback.combined import CombinedReward, WeightedReward
from p3o.feedback.comparison import Comparator, FunctionComparator, load_comparison_function
from p3o.feedback.functions import call_reward_function, load_reward_function
from p3o.feedback.judge import open_judge
from p3o.feedback.judge.comparator import JudgeComparator
from p3o.feedback.remote import RewardServiceConfig
from p3o.feedback.reward_model import RewardModel, encode_for_server, padding_id
from p3o.inputs import Scorer
from p3o.models.language import load_model_config, load_tokenizer
from p3o.stages.models import Models

Conversations = Mapping[str, tuple[Message, ...]]


class Feedback:
    """Builds what scores or compares responses.

    Args:
        config: the reward section.
        models: loads reward models.
        trained: finds the folder of the reward model that this run trains.
        conversations: the messages behind rendered prompts, for given reward models with a template of their own.
        references: one response of the SFT model for each held-out prompt, to compare with where there is no reward.
        warn: told, in a line, when rewards that may be missing are.
        answers: file of a judge's answers, for a judge that is asked in words; None keeps nothing.
        finite: whether a function that returns NaN or an infinity is an error here; False leaves that to who asked.
    """

    def __init__(
        self,
        config: RewardConfig,
        models: Models,
        *,
        trained: Callable[[], str],
        conversations: Conversations,
        references: Callable[[], Mapping[str, str]],
        warn: Callable[[str], None] = lambda _: None,
        answers: Path | None = None,
        finite: bool = True,
    ) -> None:
        self.config, self.models, self.conversations, self.finite = config, models, conversations, finite
        self._trained, self._references, self._warn = trained, references, warn
        self._answers = answers

    def comparator(self) -> Comparator | None:
        """The user's judge or comparison function, asked in both orders; None if the feedback is a reward."""
        if self.config.judge is not None:
            judge = open_judge(self.config.judge, cache=self._answers, conversations=self.conversations)
            return JudgeComparator(judge, tell=self._warn)
        spec = self.config.comparison
        if spec is None:
            return None
        return FunctionComparator(load_comparison_function(spec), spec, self.config.comparison_scale, self.finite)

    def scorer(self) -> Scorer:
        """A number for each response. Where there are only comparisons: how much it is preferred to the SFT model's own."""
        comparator = self.comparator()
        if comparator is not None:
            return self._preference_over_references(comparator)
        if self.config.parts:
            return CombinedReward(
                {name: WeightedReward(self._part(part), part.weight) for name, part in self.config.parts.items()}
            )
        return self._part(self.config)

    def functions(self) -> list[Scorer]:
        """The user's Python functions and reward services, to be tried before the run starts."""
        sources: list[RewardConfig | RewardPart] = [self.config, *self.config.parts.values()]
        functions = [self._function(source.function) for source in sources if source.function is not None]
        return [*functions, *(self._service(source.service) for source in sources if source.service is not None)]

    def _part(self, part: RewardConfig | RewardPart) -> Scorer:
        if part.function is not None:
            return self._function(part.function)
        if part.service is not None:
            return self._service(part.service)
        path = part.model or self._trained()
        # The run's own reward model learned from texts rendered by the policy's template, and goes on reading these.
        conversations = self.conversations if part.model is not None else None
        return RewardModel(
            self.models.reward(path, trained=False),
            load_tokenizer(path, trust_remote_code=self.models.config.trust_remote_code),
            conversations=conversations,
            form=part.form,
            layout=self.config.train.layout,
        )

    def _function(self, spec: str) -> Scorer:
        function = load_reward_function(spec)
        return lambda prompts, responses: call_reward_function(
            function, prompts, responses, name=spec, finite=self.finite
        )

    def _service(self, config: RewardServiceConfig) -> Scorer:
        from p3o.feedback.remote.client import RemoteReward

        encode = None
        if config.tokenizer is not None:
            trusted = self.models.config.trust_remote_code
            tokenizer = load_tokenizer(config.tokenizer, trust_remote_code=trusted)
            fill = _fill(config.tokenizer, tokenizer, trusted)
            encode = partial(encode_for_server, tokenizer, conversations=self.conversations, fill=fill)
        return RemoteReward(config, conversations=self.conversations, encode=encode, tell=self._warn)

    def _preference_over_references(self, comparator: Comparator) -> Scorer:
        def score(prompts: Sequence[str], responses: Sequence[str]) -> Sequence[float]:
            references = self._references()
            return comparator(prompts, responses, [references[prompt] for prompt in prompts])

        return score


def _fill(path: str, tokenizer: PreTrainedTokenizerBase, trusted: bool) -> int | None:
    """The padding id of the classifier in this folder; None if the folder holds a tokenizer alone that has none."""
    try:
        return padding_id(tokenizer, load_model_config(path, trust_remote_code=trusted))
    except P3OError:
        known: int | None = tokenizer.pad_token_id
        return known
