"""The stage that samples pairs of responses from the SFT model and has them labelled."""

from collections.abc import Callable, Sequence

from p3o.data.embedded import task
from p3o.feedback.simulated import SimulatedLabeller
from p3o.files import write_jsonl
from p3o.inputs import Pair, Scorer
from p3o.stages.context import PREFERENCES_FILE, RunContext, sample_texts


def sample(run: RunContext) -> None:
    """Pairs of responses, labelled. Only the embedded task labels by itself; own data bring their preferences."""
    sizes = run.config.embedded
    if sizes is None:
        run.progress.print("sample: skipped, preferences come from data.preferences or are not needed")
        return
    with run.folder.stage("sample"):
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
