"""Where a run's feedback comes from: its own reward model, given rewards and their sum, or comparisons alone."""

from collections.abc import Callable, Mapping, Sequence

from p3o.config import RewardConfig, RewardPart
from p3o.data.formats import Message
from p3o.feedback.combined import CombinedReward, WeightedReward
from p3o.feedback.comparison import Comparator, FunctionComparator, load_comparison_function
from p3o.feedback.functions import call_reward_function, load_reward_function
from p3o.feedback.reward_model import RewardModel
from p3o.inputs import Scorer
from p3o.models.language import load_tokenizer
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
        finite: bool = True,
    ) -> None:
        self.config, self.models, self.conversations, self.finite = config, models, conversations, finite
        self._trained, self._references = trained, references

    def comparator(self) -> Comparator | None:
        """The user's comparison function, asked in both orders; None if the feedback is a reward."""
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
        """The user's Python functions, to be tried before the run starts."""
        specs = [self.config.function, *(part.function for part in self.config.parts.values())]
        return [self._function(spec) for spec in specs if spec is not None]

    def _part(self, part: RewardConfig | RewardPart) -> Scorer:
        if part.function is not None:
            return self._function(part.function)
        path = part.model or self._trained()
        # The run's own reward model learned from texts rendered by the policy's template, and goes on reading these.
        conversations = self.conversations if part.model is not None else None
        return RewardModel(
            self.models.reward(path, trained=False),
            load_tokenizer(path, trust_remote_code=self.models.config.trust_remote_code),
            conversations=conversations,
        )

    def _function(self, spec: str) -> Scorer:
        function = load_reward_function(spec)
        return lambda prompts, responses: call_reward_function(
            function, prompts, responses, name=spec, finite=self.finite
        )

    def _preference_over_references(self, comparator: Comparator) -> Scorer:
        def score(prompts: Sequence[str], responses: Sequence[str]) -> Sequence[float]:
            references = self._references()
            return comparator(prompts, responses, [references[prompt] for prompt in prompts])

        return score
