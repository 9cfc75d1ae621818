"""The stage that samples pairs of responses from the SFT model and has them labelled."""

from collections.abc import Callable, Sequence

import torch

from p3o.data.embedded import task
from p3o.feedback.simulated import SimulatedLabeller
from p3o.files import write_jsonl
from p3o.inputs import Pair, Scorer
from p3o.models.language import load_language_model
from p3o.models.sampling import sample_responses
from p3o.models.tokens import decode_responses, encode_prompts, end_id, pad_id, pad_left
from p3o.stages.context import PREFERENCES_FILE, RunContext


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
    policy = load_language_model(run.sft_folder, device=run.device)
    generator = torch.Generator().manual_seed(seed)
    training = run.config.rl.training
    pairs: list[Pair] = []
    size = run.config.evaluation.batch_size
    with run.progress.stage("sample", total=len(prompts)) as advance:
        for start in range(0, len(prompts), size):
            batch = prompts[start : start + size]
            encoded = encode_prompts(run.tokenizer, batch)
            responses = sample_responses(
                policy,
                pad_left(encoded, pad_id(run.tokenizer)).to(run.device),
                responses_per_prompt=2,
                max_new_tokens=training.max_new_tokens,
                eos_id=end_id(run.tokenizer),
                pad_id=pad_id(run.tokenizer),
                temperature=training.temperature,
                generator=generator,
            )
            texts = decode_responses(run.tokenizer, responses)
            pairs += [(prompt, a, b) for prompt, (a, b) in zip(batch, texts, strict=True)]
            advance(len(batch))
    return pairs


def _as_lists(scorer: Scorer) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    return lambda prompts, responses: list(scorer(prompts, responses))
