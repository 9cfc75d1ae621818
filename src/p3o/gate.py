"""The acceptance gate of the embedded task: the whole chain over several seeds, each claim with pass or fail.

A line holds if it holds on every seed. What the gate asks for:

1. the reward model knows the gold reward: accuracy ≥ .85 on pairs of SFT samples, ≥ .90 at telling a good answer to this prompt
   from a good answer to another;
2. at some KL between 2 and 6 nats, P3O's gold reward is above the SFT model's by at least two standard errors, both sampled at
   temperature 1 on at least 512 held-out prompts;
3. clipping is exercised (several updates per step, some of them clipped), at equal samples for all algorithms;
4. with an offset on every prompt's reward, P3O's curve is the same, number for number; PPO's is shown beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from p3o import pipeline
from p3o.config import RunConfig
from p3o.config_loading import dump_config, load_packaged_config
from p3o.files import read_jsonl, write_json
from p3o.stages.context import SFT_POLICY
from p3o.training.environment import machine, versions
from p3o.training.progress import Progress
from p3o.training.tracking import METRICS_FILE, RunFolder, free_name

Row = Mapping[str, Any]

RELATIVE = ("p3o_v1", "p3o_v2")
SHIFT = 10.0
KL_RANGE = (2.0, 6.0)
STANDARD_ERRORS = 2.0
ACCURACY_GOLD, ACCURACY_CROSS_PROMPT = 0.85, 0.90
PROMPTS = 512


@dataclass(frozen=True)
class Line:
    """One claim: what was measured on each seed, and whether it is enough."""

    name: str
    wanted: str
    values: list[Any]
    passed: bool


def run_gate(
    seeds: int, *, output: Path, json_path: Path | None, progress: Progress, quick: bool = False
) -> list[Line]:
    """Run the chain ``seeds`` times in folders of their own under ``output`` and judge the results.

    Args:
        seeds: seeds 0 … seeds − 1.
        output: the folder of all runs.
        json_path: where to write the lines, or None.
        progress: shows how far it is.
        quick: the small configuration, to test the gate itself; it is not meant to pass.
    """
    runs: list[Sequence[Row]] = []
    for seed in range(seeds):
        config = load_packaged_config("demo_quick" if quick else "demo", [f"seed={seed}"], RunConfig).with_shifted_runs(
            SHIFT
        )
        name = free_name(output, f"gate-seed-{seed}")
        threads = config.threads or 1
        with RunFolder.create(output, name, config=dump_config(config), seed=seed, threads=threads) as folder:
            pipeline.run(config, folder=folder, stages=None, progress=progress)
        runs.append(read_jsonl(folder.path / METRICS_FILE))
    lines = judge(runs)
    if json_path is not None:
        record = {"passed": all(line.passed for line in lines), "seeds": list(range(seeds))}
        record |= {"lines": [asdict(line) for line in lines], "yardsticks": [yardsticks(rows) for rows in runs]}
        write_json(json_path, record | {"versions": versions(), "machine": machine()})
    return lines


def judge(runs: Sequence[Sequence[Row]]) -> list[Line]:
    """The lines of the gate from the metrics of each seed's run."""
    tests = [next(row for row in rows if row["stage"] == "reward_test") for rows in runs]
    # Without a pair that differs in gold there is no such accuracy, and nothing is passed.
    agreement = [test.get("accuracy_gold", 0.0) for test in tests]
    lines = [
        _at_least("reward model accuracy on SFT samples", ACCURACY_GOLD, agreement),
        _at_least(
            "reward model accuracy across prompts", ACCURACY_CROSS_PROMPT, [t["accuracy_cross_prompt"] for t in tests]
        ),
        _at_least("held-out prompts", PROMPTS, [min(row["prompts"] for row in _evaluations(rows)) for rows in runs]),
    ]
    for policy in RELATIVE:
        gains = [best_gain(rows, policy) for rows in runs]
        lines.append(_at_least(f"{policy}: gold above SFT in standard errors, KL 2 to 6", STANDARD_ERRORS, gains))
        lines.append(_at_least(f"{policy}: updates per step", 1.01, [_mean(rows, policy, "updates") for rows in runs]))
        clipped = [_mean(rows, policy, "clip_fraction") for rows in runs]
        lines.append(Line(f"{policy}: share of clipped pairs", "> 0", clipped, all(value > 0 for value in clipped)))
        moved = [largest_difference(rows, policy) for rows in runs]
        lines.append(
            Line(f"{policy}: largest change of its curve under offsets", "0", moved, all(value == 0 for value in moved))
        )
    samples = [sorted({_steps(rows, run) for run in _run_names(rows)}) for rows in runs]
    lines.append(Line("steps of every algorithm", "equal", samples, all(len(steps) == 1 for steps in samples)))
    shown = [largest_difference(rows, "ppo") for rows in runs]
    lines.append(Line("ppo: largest change of its gold curve under offsets", "shown, not judged", shown, passed=True))
    return lines


def best_gain(rows: Sequence[Row], policy: str) -> float:
    """The largest (gold − SFT's gold) / standard error of the difference at a KL in range; −1 if no point is there."""
    points = [row for row in _evaluations(rows) if row["policy"] == policy]
    start = next(row for row in points if row["step"] == 0)
    return max(
        (
            (row["gold"] - start["gold"]) / sqrt(row["gold_se"] ** 2 + start["gold_se"] ** 2)
            for row in points
            if KL_RANGE[0] <= row["kl"] <= KL_RANGE[1]
        ),
        default=-1.0,
    )


def largest_difference(rows: Sequence[Row], policy: str) -> float:
    """The largest change of gold reward or KL at any evaluation between a run and its twin with offsets."""
    points = {row["step"]: row for row in _evaluations(rows) if row["policy"] == policy}
    twins = {row["step"]: row for row in _evaluations(rows) if row["policy"] == f"{policy}_shifted"}
    changes = (abs(points[step][key] - twins[step][key]) for step in points for key in ("gold", "kl", "reward"))
    return float(max(changes))


def yardsticks(rows: Sequence[Row]) -> dict[str, float]:
    """Gold reward of the SFT model's decodings and of every policy's last step."""
    found = {f"sft {row['decoding']}": row["gold"] for row in _evaluations(rows) if row["policy"] == SFT_POLICY}
    return found | {row["policy"]: row["gold"] for row in _evaluations(rows) if row["policy"] != SFT_POLICY}


def _evaluations(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["stage"] == "evaluate"]


def _run_names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["run"] for row in rows if row["stage"] == "rl"))


def _steps(rows: Sequence[Row], run: str) -> int:
    return sum(row["stage"] == "rl" and row["run"] == run for row in rows)


def _mean(rows: Sequence[Row], run: str, key: str) -> float:
    values = [row[key] for row in rows if row["stage"] == "rl" and row["run"] == run]
    return float(sum(values) / len(values))


def _at_least(name: str, threshold: int | float, values: list[Any]) -> Line:
    return Line(name, f">= {threshold:g}", values, all(value >= threshold for value in values))
