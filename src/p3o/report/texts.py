"""Which responses the report shows, chosen by a rule and not by hand: some prompts at even distances, and the extremes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from p3o.report.frontiers import Measure, judge
from p3o.report.rundata import Response, RunData, Sample

EVEN_PROMPTS = 4
"""Prompts taken at even distances through the held-out set, whatever the policies made of them."""


@dataclass(frozen=True)
class Shown:
    """One held-out prompt with the SFT model's response and every trained policy's, and why it is shown.

    ``reasons`` pairs a policy ("" for none) with words.
    """

    prompt: str
    reasons: list[tuple[str, str]]
    responses: list[Response]


def before_and_after(data: RunData) -> list[Shown]:
    """The prompts to show: evenly spaced ones first, then each policy's greatest rise and fall against SFT, and its highest
    and lowest value.

    Changes are in the judging reward (gold where it exists) between one sample of each; ties go to the smaller prompt
    index. Only prompts with a sampled SFT response count.
    """
    measure = judge(data)
    by_policy: dict[str, dict[int, Response]] = {}
    for response in data.responses:
        if response.decoding == "sample":
            by_policy.setdefault(response.policy, {}).setdefault(response.prompt_index, response)
    before = by_policy.pop("sft", {})
    trained = {policy: by_policy[policy] for policy in data.trained_policies if policy in by_policy}
    if not before or not trained:
        return []
    reasons: dict[int, list[tuple[str, str]]] = {index: [("", "by position")] for index in _even(sorted(before))}
    for policy, responses in trained.items():
        for index, words in [*_extremes(before, responses, measure), *_best_and_worst(before, responses, measure)]:
            reasons.setdefault(index, []).append((policy, words))
    return [
        Shown(
            prompt=before[index].prompt,
            reasons=why,
            responses=[before[index], *(rows[index] for rows in trained.values() if index in rows)],
        )
        for index, why in reasons.items()
    ]


def followed(samples: Sequence[Sample]) -> Mapping[str, list[Sample]]:
    """The first prompt that was followed through training, one list of samples per policy in the order of steps."""
    if not samples:
        return {}
    first = min(sample.prompt_index for sample in samples)
    chosen: dict[str, list[Sample]] = {}
    for sample in sorted((s for s in samples if s.prompt_index == first), key=lambda s: s.step):
        chosen.setdefault(sample.policy, []).append(sample)
    return chosen


def _even(indices: Sequence[int]) -> list[int]:
    count = min(EVEN_PROMPTS, len(indices))
    return [indices[position * len(indices) // count] for position in range(count)]


def _extremes(before: Mapping[int, Response], after: Mapping[int, Response], measure: Measure) -> list[tuple[int, str]]:
    """Prompt indices of the greatest rise and the greatest fall, where there was one."""
    old, new = _values(before, measure), _values(after, measure)
    changes = sorted((new[index] - old[index], -index) for index in old if index in new)
    if not changes:
        return []
    (fall, worst), (rise, best) = changes[0], changes[-1]
    return [
        *([(-best, "largest rise")] if rise > 0 else []),
        *([(-worst, "largest fall")] if fall < 0 else []),
    ]


def _best_and_worst(
    before: Mapping[int, Response], after: Mapping[int, Response], measure: Measure
) -> list[tuple[int, str]]:
    """Prompt indices of the policy's highest and lowest value."""
    values = sorted((value, -index) for index, value in _values(after, measure).items() if index in before)
    return [(-values[-1][1], "its highest"), (-values[0][1], "its lowest")] if values else []


def _values(responses: Mapping[int, Response], measure: Measure) -> dict[int, float]:
    """By prompt index; responses without a reward are left out."""
    found = {
        index: row.gold if measure == "gold" and row.gold is not None else row.reward
        for index, row in responses.items()
    }
    return {index: value for index, value in found.items() if value is not None}
