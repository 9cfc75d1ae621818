"""The stage that samples pairs of responses from the SFT model and has them labelled."""

from collections.abc import Callable, Sequence

import torch

from p3o.config import EmbeddedTaskConfig
from p3o.config_feedback import SamplingConfig
from p3o.data.embedded import task
from p3o.feedback.simulated import SimulatedLabeller
from p3o.files import write_jsonl
from p3o.inputs import Pair, Scorer
from p3o.labeling.pairs import Sampled, pairs_of_responses, with_prompt, write_pairs
from p3o.stages.context import PAIRS_FILE, PREFERENCES_FILE, SFT_POLICY, RunContext, sample_texts
from p3o.stages.conversational import as_given, preference_rows
from p3o.stages.labelling import label


def sample(run: RunContext) -> None:
    """Pairs of responses of the SFT model: labelled ones of the embedded task; of own prompts, as ``sampling`` says."""
    if run.config.embedded is not None and not run.config.reward.is_trained:
        run.progress.print(f"sample: skipped, no reward model is trained ({run.config.reward.source})")
    elif run.config.embedded is not None:
        with run.folder.stage("sample"):
            _sample_embedded(run, run.config.embedded)
    elif run.config.sampling is not None:
        with run.folder.stage("sample"):
            _sample_own(run, run.config.sampling)
    else:
        run.progress.print("sample: skipped, preferences come from data.preferences or are not needed")


def _sample_own(run: RunContext, config: SamplingConfig) -> None:
    """pairs.jsonl, and preferences.jsonl if there is a labeller."""
    seed = run.seed("pairs")
    order = torch.randperm(len(run.inputs.prompts), generator=torch.Generator().manual_seed(seed))
    prompts = [run.inputs.prompts[i] for i in order[: config.prompts].tolist()]
    policy = run.models.fixed(run.sft_folder)
    groups = sample_texts(run, policy, prompts, responses=config.responses_per_prompt, seed=seed)
    sampled = [
        (prompt, [Sampled(text, SFT_POLICY) for text in group]) for prompt, group in zip(prompts, groups, strict=True)
    ]
    pairs, counts = pairs_of_responses(sampled)
    talks = run.inputs.conversations
    write_pairs(run.folder.path / PAIRS_FILE, [with_prompt(pair, as_given(str(pair.prompt), talks)) for pair in pairs])
    row: dict[str, str | int] = {"stage": "sample", **vars(counts)}
    run.progress.print(
        f"sample: {counts.pairs} pairs; left out {counts.identical_dropped} duplicate responses, "
        f"{counts.empty_dropped} empty ones and {counts.unholdable_dropped} with characters that no page or database can store"
    )
    if config.labeller is None:
        run.progress.print(f"sample: to label them, run: p3o label --pairs {run.folder.path / PAIRS_FILE}")
    else:
        candidates = [(str(pair.prompt), pair.response_a, pair.response_b) for pair in pairs]
        labelled = label(
            config.labeller,
            candidates,
            gold=None,
            scale=1.0,
            seed=seed,
            folder=run.folder.path,
            progress=run.progress,
            conversations=talks,
        )
        rows = preference_rows(labelled.preferences, talks)
        write_jsonl(run.folder.path / PREFERENCES_FILE, rows)
        row |= {"labelled": len(rows), "ties": labelled.ties, "unlabelled": labelled.unlabelled}
    run.folder.metrics(row)


def _sample_embedded(run: RunContext, sizes: EmbeddedTaskConfig) -> None:
    seed = run.seed("pairs")
    sampled = round(sizes.pairs * sizes.sampled_share)
    prompts = [row.prompt for row in task.demonstrations(sampled, seed=seed, split="train")]
    written = task.comparison_candidates(sizes.pairs - sampled, seed=seed, split="train")
    pairs = [("policy", *pair) for pair in sample_pairs(run, prompts, seed=seed)]
    pairs += [(pair.kind, pair.prompt, pair.response_a, pair.response_b) for pair in written]
    # Two equal texts are no comparison.
    distinct = [pair for pair in pairs if pair[2] != pair[3]]
    distinct = [distinct[i] for i in task.curriculum_order([pair[0] for pair in distinct], seed=seed)]
    assert run.inputs.gold is not None
    labeller = SimulatedLabeller(_as_lists(run.inputs.gold), scale=sizes.label_scale, seed=seed)
    first = labeller.label(*([pair[i] for pair in distinct] for i in (1, 2, 3)))
    rows = [
        {"prompt": prompt, "chosen": a if prefer_a else b, "rejected": b if prefer_a else a, "kind": kind}
        for (kind, prompt, a, b), prefer_a in zip(distinct, first, strict=True)
    ]
    write_jsonl(run.folder.path / PREFERENCES_FILE, rows)
    run.folder.metrics({"stage": "sample", "pairs": len(rows), "identical_dropped": len(pairs) - len(distinct)})


def sample_pairs(run: RunContext, prompts: Sequence[str], *, seed: int) -> list[Pair]:
    """Two responses of the SFT policy to each prompt."""
    texts = sample_texts(run, run.models.fixed(run.sft_folder), prompts, responses=2, seed=seed)
    return [(prompt, a, b) for prompt, (a, b) in zip(prompts, texts, strict=True)]


def _as_lists(scorer: Scorer) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    return lambda prompts, responses: list(scorer(prompts, responses))
