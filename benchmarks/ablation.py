"""What each part of P3O-R is worth: equal samples, and the compute beside it. Writes benchmarks/results/ablation.json.

python benchmarks/ablation.py
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from p3o.bench.efficiency import efficiencies, paired_interval
from p3o.bench.methods import EVALUATION_SEEDS, TASKS, Method, Setting
from p3o.bench.tune import read_settings, run

RESULTS = Path(__file__).parent / "results" / "ablation.json"
ON_POLICY = {"epochs": 2, "minibatches": 2}
REPLAY = {"responses": 8, "replay": 15, "epochs": 1, "minibatches": 8}
WEIGHTED = {"importance": 1.0}

# Name, algorithm, changes to P3O-R's tuned settings, schedule, and the method whose tuned learning rate is taken.
# Every row has the same samples.
VARIANTS: list[tuple[str, str, dict[str, Any], dict[str, Any], str]] = [
    ("V2, K=2: the paper", "p3o_v2", {}, {"responses": 2, **ON_POLICY}, "p3o_v2"),
    ("V2, K=8", "p3o_v2", {}, {"responses": 8, **ON_POLICY}, "p3o_v2_k8"),
    ("V2, K=8, M=15 (KL frozen)", "p3o_v2", {}, REPLAY, "p3o_r"),
    ("P3O-R without replay", "p3o_r", {}, {"responses": 8, **ON_POLICY}, "p3o_v2_k8"),
    ("P3O-R, M=3", "p3o_r", {}, {**REPLAY, "replay": 3}, "p3o_r"),
    ("P3O-R, M=7", "p3o_r", {}, {**REPLAY, "replay": 7}, "p3o_r"),
    ("P3O-R: M=15", "p3o_r", {}, REPLAY, "p3o_r"),
    ("P3O-R, M=31", "p3o_r", {}, {**REPLAY, "replay": 31}, "p3o_r"),
    ("P3O-R, 4 epochs", "p3o_r", {}, {**REPLAY, "epochs": 4}, "p3o_r"),
    ("P3O-R, K=2", "p3o_r", {}, {**REPLAY, "responses": 2}, "p3o_r"),
    ("P3O-R, clip .2", "p3o_r", {"epsilon": 0.2}, REPLAY, "p3o_r"),
    ("P3O-R, no clip", "p3o_r", {"epsilon": None}, REPLAY, "p3o_r"),
    ("P3O-R, α=1, clip .2", "p3o_r", {"epsilon": 0.2, **WEIGHTED}, REPLAY, "p3o_r"),
    ("P3O-R, α=1, no clip", "p3o_r", {"epsilon": None, **WEIGHTED}, REPLAY, "p3o_r"),
]


def main() -> None:
    """Run every variant on the sequence problem and the factorised one of 80 tokens."""
    torch.set_num_threads(1)
    chosen = read_settings()
    rows: list[dict[str, Any]] = []
    for task_name in ("sequence", "factorised_80"):
        task = TASKS[task_name]
        tuned = chosen[task_name, "p3o_r"]
        first = None
        for title, algorithm, changes, schedule, tuned_as in VARIANTS:
            rate = chosen[task_name, tuned_as].learning_rate
            settings = {**tuned.algorithm, **changes} if algorithm == "p3o_r" else changes
            method = Method(title, algorithm, schedule)
            curves = run(method, task, [Setting(rate, algorithm=settings, schedule=schedule)], EVALUATION_SEEDS)
            values = efficiencies(task.build, curves, EVALUATION_SEEDS, task.betas)[0]
            first = values if first is None else first
            row = {
                "task": task_name,
                "variant": title,
                "learning_rate": rate,
                "efficiency": values.tolist(),
                "mean": float(values.mean()),
                "minus_v2": asdict(paired_interval(values - first)),
                "responses_learned_per_response_sampled": float(curves.responses_learned.mean()) / task.samples,
            }
            rows.append(row)
            print(f"{task_name:14s} {title:40s} {row['mean']:.3f}", flush=True)
            RESULTS.write_text(json.dumps({"seeds": EVALUATION_SEEDS, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
