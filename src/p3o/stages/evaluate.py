"""The stage that compares the trained policies with the SFT model and with each other on held-out prompts."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

from torch import nn

from p3o.errors import shorten
from p3o.evaluation.policy import Evaluator, PolicyEvaluation
from p3o.evaluation.winrate import head_to_head
from p3o.evaluation.writing import Writer
from p3o.feedback.conversations import Conversations, in_plain_words
from p3o.files import write_json, write_jsonl
from p3o.stages.context import RESPONSES_FILE, SFT_POLICY, RunContext


def evaluate(run: RunContext) -> None:
    """The trained policies against the SFT model and its yardsticks, prompt by prompt."""
    sft = run.models.fixed(run.sft_folder)
    judge = evaluator(run, sft)
    final: dict[str, PolicyEvaluation] = {}
    records: list[dict[str, Any]] = []

    def keep(policy: str, decoding: str, evaluation: PolicyEvaluation) -> None:
        warn_of_unscored(run, f"evaluation of {policy}, {decoding}", evaluation)
        for index, record in enumerate(evaluation.rows()):
            prompt = run.inputs.heldout_prompts[index]
            identity = {"policy": policy, "decoding": decoding, "prompt_index": index, "prompt": prompt}
            records.append(identity | question(prompt, run.inputs.conversations) | record)
        if policy == SFT_POLICY:
            row = {"stage": "evaluate", "policy": policy, "algorithm": None, "beta": None, "step": 0}
            run.folder.metrics(row | {"decoding": decoding} | evaluation.summary())
        if decoding == "sample":
            final[policy] = evaluation
        advance(1)

    def owns(row: Mapping[str, Any]) -> bool:
        return bool(row["stage"] == "evaluate" and row["policy"] == SFT_POLICY)

    runs = {name: run.required(f"rl/{name}", "p3o rl") for name in run.config.rl.runs}
    best_of = run.config.evaluation.best_of
    with (
        run.folder.stage("evaluate", owns=owns),
        run.progress.stage("evaluate", total=2 + len(best_of) + len(runs)) as advance,
    ):
        keep(SFT_POLICY, "sample", judge.sampled(sft))
        keep(SFT_POLICY, "greedy", judge.greedy(sft))
        for n in best_of:
            keep(SFT_POLICY, f"best_of_{n}", judge.best_of(sft, n))
        for name, path in runs.items():
            keep(name, "sample", judge.sampled(run.models.fixed(path)))
        write_jsonl(run.folder.path / RESPONSES_FILE, records)
        write_json(run.folder.path / "head_to_head.json", compare(final))


def question(prompt: str, conversations: Conversations) -> dict[str, str]:
    """The prompt of a conversation as readers and judges are shown it; nothing for prompts that are texts."""
    return {"question": in_plain_words(prompt, conversations)} if prompt in conversations else {}


def evaluator(run: RunContext, reference: nn.Module, write: Writer | None = None) -> Evaluator:
    """The same held-out prompts and random numbers for every policy; ``write``: who writes, if not these processes."""
    training = run.config.rl.training
    return Evaluator(
        run.tokenizer,
        reference,
        run.inputs.heldout_prompts,
        run.scorer,
        gold=run.inputs.gold,
        max_new_tokens=training.max_new_tokens,
        temperature=training.temperature,
        missing_eos_penalty=training.missing_eos_penalty,
        batch_size=run.config.evaluation.batch_size,
        seed=run.seed("evaluation"),
        stop=training.stop,
        tolerant=run.tolerates_faults,
        write=write,
    )


def warn_of_unscored(run: RunContext, what: str, evaluation: PolicyEvaluation) -> None:
    """Name the prompts whose response has no finite reward; they take no part in the means."""
    if evaluation.unscored:
        named = "; ".join(shorten(run.inputs.heldout_prompts[place]) for place in evaluation.unscored)
        run.warn(f"{what}: left out {len(evaluation.unscored)} responses whose reward is not finite: {named}")


def compare(final: Mapping[str, PolicyEvaluation]) -> list[dict[str, Any]]:
    """Every policy against every other on the same prompts, by the reward and, where there is one, by the gold reward.

    Prompts to which one of the two has an unscored response are left out; the evaluation's warning names them.
    """
    names = list(final)
    rows: list[dict[str, Any]] = []
    for by in ("reward", "gold"):
        for position, a in enumerate(names):
            for b in names[position + 1 :]:
                left, right = getattr(final[a], by), getattr(final[b], by)
                if left is not None and right is not None:
                    both = [pair for pair in zip(left, right, strict=True) if all(map(isfinite, pair))]
                    if both:
                        result = head_to_head([x for x, _ in both], [y for _, y in both])
                        rows.append({"a": a, "b": b, "by": by, **vars(result)})
    return rows
