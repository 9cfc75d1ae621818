"""What each part of P3O-R is worth: equal samples, and equal compute. Writes benchmarks/results/ablation.json.

python benchmarks/ablation.py

Every row has the same samples, β and seeds. Rows of one group have the same compute, too: how often a sampled response goes
through a gradient, about twice or about fourteen times. The last group spends other amounts.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from p3o.bench.efficiency import efficiencies, paired_interval
from p3o.bench.methods import EVALUATION_SEEDS, METHODS, REPLAY, TASKS, WIDE_STOP, Method, Setting
from p3o.bench.tune import read_settings, run
from p3o.files import write_json

RESULTS = Path(__file__).parent / "results" / "ablation.json"
ON_POLICY = {"epochs": 2, "minibatches": 2}
MANY_EPOCHS = {"epochs": 14, "minibatches": 2}
WEIGHTED = {"importance": 1.0, "epsilon": 0.2, "clip_per": "response"}
UNCLIPPED = {"epsilon": None}
SEEDS = EVALUATION_SEEDS[:3]


@dataclass(frozen=True)
class Variant:
    """A row: an algorithm with the learning rate tuned for ``tuned_as``.

    Attributes:
        group: what the row's compute is.
        schedule: how samples are spent.
        changes: to the algorithm's settings; of P3O-R, on top of the tuned ones.
        kl_stop: limit of the mean ½·(log-ratio)² on fresh groups.
    """

    group: str
    title: str
    algorithm: str
    tuned_as: str
    schedule: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)
    kl_stop: float = WIDE_STOP


TWO, FOURTEEN, OTHER = "2 passes", "14 passes", "other"
VARIANTS = (
    Variant(TWO, "V2, K=2: the paper", "p3o_v2", "p3o_v2", {"responses": 2, **ON_POLICY}, kl_stop=0.05),
    Variant(TWO, "V2, K=4", "p3o_v2", "p3o_v2_k8", {"responses": 4, **ON_POLICY}, kl_stop=0.05),
    Variant(TWO, "P3O-R, K=4, no replay", "p3o_r", "p3o_v2_k8", {"responses": 4, **ON_POLICY}, UNCLIPPED, 0.05),
    Variant(FOURTEEN, "V2, K=2, 14 epochs, no replay", "p3o_v2", "p3o_v2", {"responses": 2, **MANY_EPOCHS}),
    Variant(FOURTEEN, "P3O-R, 14 epochs, no replay", "p3o_r", "p3o_r", {"responses": 4, **MANY_EPOCHS}),
    Variant(FOURTEEN, "V2, M=15 (KL frozen)", "p3o_v2", "p3o_r", REPLAY),
    Variant(FOURTEEN, "P3O-R: K=4, M=15", "p3o_r", "p3o_r", REPLAY),
    Variant(FOURTEEN, "P3O-R, 8 minibatches, not 16", "p3o_r", "p3o_r", REPLAY | {"minibatches": 8}),
    Variant(FOURTEEN, "P3O-R, K=8, 8 minibatches", "p3o_r", "p3o_r", REPLAY | {"responses": 8, "minibatches": 8}),
    Variant(FOURTEEN, "P3O-R, clip .2 a pair", "p3o_r", "p3o_r", REPLAY, {"epsilon": 0.2, "clip_per": "response"}),
    Variant(FOURTEEN, "P3O-R, α=1, clip .2 a pair", "p3o_r", "p3o_r", REPLAY, WEIGHTED),
    Variant(OTHER, "P3O-R, M=3", "p3o_r", "p3o_r", REPLAY | {"replay": 3}),
    Variant(OTHER, "P3O-R, 2 epochs", "p3o_r", "p3o_r", REPLAY | {"epochs": 2}),
)


def main() -> None:
    """Run every variant on the sequence problem and the factorised one of 80 tokens."""
    torch.set_num_threads(1)
    chosen = read_settings()
    rows: list[dict[str, Any]] = []
    for task_name in ("factorised_80", "sequence"):
        task = TASKS[task_name]
        first = None
        for variant in VARIANTS:
            tuned = chosen[task_name, variant.tuned_as]
            inherits = METHODS[variant.tuned_as].algorithm == variant.algorithm
            setting = Setting(
                tuned.learning_rate,
                tuned.critic_factor,
                variant.kl_stop,
                {**(tuned.algorithm if inherits else {}), **variant.changes},
                variant.schedule,
            )
            method = Method(
                variant.title,
                variant.algorithm,
                variant.schedule,
                METHODS[variant.tuned_as].settings if inherits else {},
            )
            curves = run(method, task, [setting], SEEDS)
            values = efficiencies(task.build, curves, SEEDS, task.betas)[0]
            first = values if first is None else first
            row = {
                "task": task_name,
                "compute": variant.group,
                "variant": variant.title,
                "setting": asdict(setting),
                "efficiency": values.tolist(),
                "mean": float(values.mean()),
                "minus_v2": asdict(paired_interval(values - first)),
                "responses_learned_per_response_sampled": float(curves.responses_learned.mean()) / task.samples,
                "updates": float(curves.updates.mean()),
            }
            rows.append(row)
            print(f"{task_name:14s} {variant.group:10s} {variant.title:34s} {row['mean']:.3f}", flush=True)
            write_json(RESULTS, {"seeds": SEEDS, "rows": rows})


if __name__ == "__main__":
    main()
