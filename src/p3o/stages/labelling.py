"""Who says which of two responses is better: the simulated labeller, a function, a judge, or people at the labelling page."""

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from p3o.config_feedback import LabellerConfig
from p3o.errors import P3OError
from p3o.feedback.comparison import FunctionComparator, load_comparison_function
from p3o.feedback.conversations import Conversations
from p3o.feedback.judge import ANSWERS_FILE, open_judge
from p3o.feedback.simulated import SimulatedLabeller
from p3o.inputs import Pair, Scorer
from p3o.stages.conversational import as_given
from p3o.stopping import stop_if_asked
from p3o.training.progress import Progress

if TYPE_CHECKING:
    from p3o.labeling.store import Store

_LOOK_AGAIN = 2.0
"""Seconds between two looks at a store that people are working on."""


class Labelled(NamedTuple):
    """What came of candidates.

    Attributes:
        preferences: (prompt, preferred response, other response); of several people who labelled a pair, one for each.
        ties: pairs that nobody preferred either response of.
        unlabelled: pairs without a valid answer.
    """

    preferences: list[Pair]
    ties: int
    unlabelled: int


def label(
    config: LabellerConfig,
    pairs: Sequence[Pair],
    *,
    gold: Scorer | None,
    scale: float,
    seed: int,
    folder: Path,
    progress: Progress,
    conversations: Conversations | None = None,
) -> Labelled:
    """Have pairs of distinct responses labelled.

    Args:
        config: who labels.
        pairs: (prompt, response a, response b).
        gold: the exact reward, for the simulated labeller.
        scale: gold reward to log-odds of the simulated labeller.
        seed: of the simulated labeller.
        folder: of the run; a judge's answers are kept there, so that none is paid twice.
        progress: shows how many are done.
        conversations: the messages behind rendered prompts, for a judge and for people.

    Raises:
        P3OError: if the labeller cannot be used.
        Stopped: if a training around it has noted a signal while people were waited for. The same pairs, given again, have the
            labels that they have got.
    """
    if config.kind == "people":
        return _by_people(config, pairs, progress, conversations or {})
    columns = tuple([pair[i] for pair in pairs] for i in range(3))
    preferences: list[float | None]
    if config.kind == "simulated":
        if gold is None:
            raise P3OError(
                "labeller: simulated needs a gold reward, which only the embedded task has; choose another kind"
            )
        labeller = SimulatedLabeller(lambda prompts, texts: list(gold(prompts, texts)), scale=scale, seed=seed)
        preferences = [1.0 if first else -1.0 for first in labeller.label(*columns)]
    elif config.kind == "function":
        spec = str(config.function)
        preferences = list(FunctionComparator(load_comparison_function(spec), spec)(*columns))
    else:
        assert config.judge is not None
        judge = open_judge(config.judge, cache=folder / ANSWERS_FILE, conversations=conversations)
        preferences = [verdict.preference for verdict in judge.compare(*columns)]
    chosen = [
        (prompt, a, b) if preference > 0 else (prompt, b, a)
        for (prompt, a, b), preference in zip(pairs, preferences, strict=True)
        if preference is not None and abs(preference) > config.tie_margin
    ]
    unlabelled = sum(preference is None for preference in preferences)
    return Labelled(chosen, len(pairs) - len(chosen) - unlabelled, unlabelled)


def _by_people(
    config: LabellerConfig, pairs: Sequence[Pair], progress: Progress, conversations: Conversations
) -> Labelled:
    """Put the pairs into the store and wait until none of them is to get another label there."""
    store = _open_store(str(config.store))
    from p3o.labeling.pairs import Pair as Candidate
    from p3o.labeling.pairs import key_of
    from p3o.labeling.records import settled

    shown = [(as_given(prompt, conversations), a, b) for prompt, a, b in pairs]
    prompts = {key_of(*pair): prompt for pair, (prompt, _, _) in zip(shown, pairs, strict=True)}
    keys = set(prompts)
    store.add_items([Candidate(key_of(*pair), *pair) for pair in shown])
    progress.print(
        f"{len(keys)} pairs are waiting to be labelled; run: p3o label {_option(str(config.store))} "
        f"--annotators NAME,NAME"
    )
    with progress.stage("labels", total=len(keys)) as advance:
        done = 0
        while (found := settled(store, keys)) < len(keys):
            advance(found - done)
            done = found
            stop_if_asked(f"{len(keys) - found} of {len(keys)} pairs were waiting for people")
            time.sleep(_LOOK_AGAIN)
        advance(found - done)
    return _exported(store, prompts)


def _option(place: str) -> str:
    """How ``p3o label`` is told of this store; without its password, which it can find where libpq looks."""
    if "://" not in place:
        return f"--store {shlex.quote(place)}"
    from p3o.labeling.database import without_password

    return f"--database-url {shlex.quote(without_password(place))}"


def _exported(store: "Store", prompts: Mapping[str, str]) -> Labelled:
    """A preference for each label that prefers a response; of pairs that have none, how many are ties and how many nothing.

    Args:
        prompts: of the pairs, as the policy reads them, by key.
    """
    from p3o.labeling.records import holding_records

    preferences: list[Pair] = []
    answers: dict[str, set[str]] = {key: set() for key in prompts}
    for record in holding_records(store):
        item, choice = record.item, record.event.choice
        if item.key not in prompts or choice in (None, "skip"):
            continue
        answers[item.key].add(str(choice))
        if choice in ("a", "b"):
            texts = (item.response_a, item.response_b)
            better, worse = texts if choice == "a" else texts[::-1]
            preferences.append((prompts[item.key], better, worse))
    ties = sum(bool(found) and found.isdisjoint("ab") for found in answers.values())
    return Labelled(preferences, ties, sum(not found for found in answers.values()))


def _open_store(place: str) -> "Store":
    try:
        from p3o.labeling.store import Store
    except ModuleNotFoundError as error:
        raise P3OError(f"labels by people need the package {error.name!r}; run: pip install 'p3o[label]'") from error
    return Store.open(place if "://" in place else Path(place), create=True)
