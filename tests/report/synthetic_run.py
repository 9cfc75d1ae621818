"""A run folder with made-up, plausible numbers, in the formats that the pipeline writes. For tests of the report only."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from p3o.evaluation.winrate import head_to_head

STEPS, EVALUATE_EVERY, PROMPTS = 60, 6, 128
# Per algorithm: KL at the end, reward per √nat, gold lost per nat of KL.
SHAPES = {
    "p3o_v1": (3.1, 1.50, 0.10),
    "p3o_v2": (2.7, 1.62, 0.08),
    "ppo": (6.2, 1.45, 0.42),
    "online_dpo": (4.4, 1.50, 0.22),
    "mystery_method": (2.2, 1.70, 0.07),
}
HOSTILE = "</script><script>alert('never run')</script>"
OPENERS = ("", "Good question, Ada! ", "Well, it depends. ", "What a question. ")
STEPS_OF_TEA = ("Boil fresh water.", "Warm the pot.", "Let the leaves steep for four minutes.", "Pour, and enjoy.")


def write_run(
    folder: Path,
    algorithms: Sequence[str] = ("p3o_v1", "p3o_v2", "ppo", "online_dpo"),
    *,
    gold: bool = True,
    shift: bool = False,
    steps: int = STEPS,
    seed: int = 0,
) -> Path:
    """Write the run folder and return it."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    responses = _responses(rng, algorithms, gold)
    rows = [*_stages_before(rng), *_yardsticks(rng, gold)]
    for algorithm in algorithms:
        rows += _training(rng, algorithm, steps) + _evaluations(rng, algorithm, gold, steps)
    _jsonl(folder / "metrics.jsonl", rows)
    _jsonl(folder / "responses.jsonl", responses)
    _jsonl(folder / "samples.jsonl", _samples(rng, algorithms, gold, steps))
    (folder / "head_to_head.json").write_text(json.dumps(_comparisons(responses, algorithms, gold)))
    (folder / "config.yaml").write_text("name: demo\nseed: 0\nalgorithms:\n" + "".join(f"- {a}\n" for a in algorithms))
    (folder / "run.json").write_text(json.dumps(_info(seed)))
    if shift:
        (folder / "shift").mkdir(exist_ok=True)
        _jsonl(folder / "shift" / "metrics.jsonl", _shifted(rows))
    return folder


def write_sweep(
    folder: Path,
    algorithms: Sequence[str] = ("p3o_v1", "p3o_v2", "ppo", "online_dpo"),
    betas: Sequence[float] = (0.03, 0.1, 0.3, 1.0),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    *,
    prompts: int = 64,
) -> list[Path]:
    """One run folder for each seed, each with every algorithm at every β; all on the same held-out prompts."""
    difficulty = np.random.default_rng(99).normal(0, 1.2, prompts)
    return [_write_seed(folder / f"seed_{seed}", algorithms, betas, seed, difficulty) for seed in seeds]


def _write_seed(
    folder: Path, algorithms: Sequence[str], betas: Sequence[float], seed: int, difficulty: np.ndarray
) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    metrics, responses = _yardsticks(rng, gold=True)[:1], []
    policies = [(f"{a}_beta_{beta}", a, beta) for a in algorithms for beta in betas]
    for policy, algorithm, beta in [("sft", None, None), *policies]:
        luck = 1.0 if beta is None else float(np.exp(rng.normal(0, 0.1)))
        reach = 0.0 if beta is None else (0.1 / beta) ** 0.6
        for step in (0,) if algorithm is None else (0, STEPS // 2, STEPS):
            kl, proxy, gold = (0.0, 0.4, 0.16) if algorithm is None else _point(algorithm, reach * step / STEPS)
            means = {"kl": kl, "reward": 0.4 + luck * (proxy - 0.4), "gold": 0.16 + luck * (gold - 0.16)}
            row = {"stage": "evaluate", "policy": policy, "algorithm": algorithm, "beta": beta, "step": step}
            row |= {"decoding": "sample", "prompts": len(difficulty), "length": 14.0, "ended": 1.0, "kl_k1": kl}
            errors = {"reward_se": 0.1, "gold_se": 0.1, "kl_se": 0.05 * math.sqrt(kl), "kl_k1_se": 0.1 * math.sqrt(kl)}
            if algorithm is not None:
                metrics.append(row | means | errors)
        for index, shared in enumerate(difficulty):
            own = {name: value + (0 if name == "kl" else shared + rng.normal(0, 0.4)) for name, value in means.items()}
            text = {"policy": policy, "prompt_index": index, "prompt": f"Question {index}?", "response": "An answer."}
            responses.append(text | own | {"length": 3, "ended": True, "decoding": "sample"})
    _jsonl(folder / "metrics.jsonl", metrics)
    _jsonl(folder / "responses.jsonl", responses)
    (folder / "config.yaml").write_text("name: sweep\n")
    (folder / "run.json").write_text(json.dumps(_info(seed)))
    return folder


def _stages_before(rng: np.random.Generator) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(0, 300, 5):
        rows.append({"stage": "sft", "step": step, "loss": 0.9 + 4.5 * math.exp(-step / 40) + rng.normal(0, 0.04)})
        if step % 50 == 0:
            rows.append({"stage": "sft", "step": step, "heldout_loss": 1.0 + 4.4 * math.exp(-step / 40)})
    for step in range(0, 375, 5):
        loss = 0.3 + 0.4 * math.exp(-step / 90) + rng.normal(0, 0.03)
        rows.append({"stage": "reward", "step": step, "loss": loss, "accuracy": 1.0 - loss / 1.6})
    test = {
        "pairs": 1024,
        "accuracy_gold": 0.874,
        "accuracy_cross_prompt": 0.981,
        "accuracy_name": 0.957,
        "agreement": 0.79,
    }
    return [*rows, {"stage": "reward_test", **test}]


def _yardsticks(rng: np.random.Generator, gold: bool) -> list[dict[str, Any]]:
    rows = []
    for decoding, proxy, judged in (
        ("sample", 0.4, 0.16),
        ("greedy", 0.9, 0.78),
        ("best_of_4", 2.1, 1.7),
        ("best_of_16", 2.9, 2.4),
    ):
        row = {"stage": "evaluate", "policy": "sft", "algorithm": None, "beta": None, "step": 0, "decoding": decoding}
        row |= {"prompts": PROMPTS, "reward": proxy, "reward_se": 0.06, "length": 13.1, "ended": 0.99}
        row |= {"kl": 0.0, "kl_se": 0.0, "kl_k1": 0.0, "kl_k1_se": 0.0}
        rows.append(row | ({"gold": judged, "gold_se": 0.055} if gold else {}))
    return rows


def _training(rng: np.random.Generator, algorithm: str, steps: int) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, steps + 1):
        kl, proxy, _ = _point(algorithm, step / steps)
        row = {"stage": "rl", "run": algorithm, "algorithm": algorithm, "beta": 0.1, "step": step}
        row |= {"reward": proxy + rng.normal(0, 0.25), "kl_k1": kl + rng.normal(0, 0.15 + 0.1 * kl)}
        row |= {"length": 13 + 2 * step / steps + rng.normal(0, 0.5), "ended": min(1.0, 0.99 + rng.normal(0, 0.008))}
        row |= {
            "loss": rng.normal(0, 0.2),
            "ratio_max": 1 + rng.exponential(0.8),
            "stopped_early": int(rng.random() < 0.2),
        }
        row |= {"half_squared_log_ratio": rng.gamma(2, 0.012), "updates": int(rng.integers(2, 5))}
        row |= {"effective_sample_share": float(rng.beta(40, 3)), "tie_fraction": float(rng.beta(2, 30))}
        if algorithm != "online_dpo":
            row["clip_fraction"] = float(rng.beta(2, 12))
        rows.append(row)
    return rows


def _evaluations(rng: np.random.Generator, algorithm: str, gold: bool, steps: int) -> list[dict[str, Any]]:
    rows = []
    for step in range(0, steps + 1, EVALUATE_EVERY):
        kl, proxy, judged = _point(algorithm, step / steps)
        noise = 0.05 if step else 0.0
        row = {"stage": "evaluate", "policy": algorithm, "algorithm": algorithm, "beta": 0.1, "step": step}
        row |= {"decoding": "sample", "prompts": PROMPTS, "reward": proxy + rng.normal(0, noise), "reward_se": 0.06}
        row |= {
            "kl": kl,
            "kl_se": 0.04 * math.sqrt(kl),
            "kl_k1": kl + rng.normal(0, noise),
            "kl_k1_se": 0.1 * math.sqrt(kl),
        }
        row |= {"length": 13.1 + 2 * step / steps, "ended": 0.995}
        if gold:
            row |= {"gold": judged + rng.normal(0, noise), "gold_se": 0.055}
        rows.append(row)
    return rows


def _point(algorithm: str, progress: float) -> tuple[float, float, float]:
    """KL, proxy reward and gold reward of an algorithm after this share of its training."""
    kl_end, slope, loss = SHAPES[algorithm]
    kl = kl_end * progress**1.3
    return kl, 0.4 + slope * math.sqrt(kl) - 0.02 * kl, 0.16 + slope * math.sqrt(kl) - loss * kl


def _responses(rng: np.random.Generator, algorithms: Sequence[str], gold: bool) -> list[dict[str, Any]]:
    rows = []
    for index in range(PROMPTS):
        name = ("Ada", "Emil", "Noor", "Otis")[index % 4]
        prompt = f"Hello, {name} here. How do I make tea? Keep it short. (variant {index})"
        for policy, decoding, mean in [
            ("sft", "sample", 0.2),
            ("sft", "greedy", 0.8),
            *((a, "sample", 2.0) for a in algorithms),
        ]:
            proxy = float(rng.normal(mean, 1.4))
            steps = STEPS_OF_TEA[: int(rng.integers(1, 5))]
            text = OPENERS[int(rng.integers(0, 4))] + " ".join(steps)
            if index == 0 and policy == "sft":
                text = HOSTILE
            row = {"policy": policy, "prompt_index": index, "prompt": prompt, "response": text, "decoding": decoding}
            row |= {
                "reward": proxy,
                "kl": abs(float(rng.normal(2, 1))),
                "length": len(text.split()),
                "ended": index != 1,
            }
            # A grid makes ties.
            rows.append(row | ({"gold": round(2 * (proxy + float(rng.normal(0, 0.8)))) / 2} if gold else {}))
    return rows


def _samples(rng: np.random.Generator, algorithms: Sequence[str], gold: bool, steps: int) -> list[dict[str, Any]]:
    rows = []
    for algorithm in algorithms:
        for step in range(0, steps + 1, steps // 4):
            text = " ".join(STEPS_OF_TEA[: 1 + step * 3 // steps])
            row = {
                "policy": algorithm,
                "step": step,
                "prompt_index": 3,
                "prompt": "How do I make tea?",
                "response": text,
            }
            row["reward"] = float(rng.normal(step / steps, 0.2))
            rows.append(row | ({"gold": row["reward"] + 0.1} if gold else {}))
    return rows


def _comparisons(responses: list[dict[str, Any]], algorithms: Sequence[str], gold: bool) -> list[dict[str, Any]]:
    rows = []
    pairs = [("sft", a) for a in algorithms] + [(a, b) for i, a in enumerate(algorithms) for b in algorithms[i + 1 :]]
    for by in ("gold", "reward") if gold else ("reward",):
        values = {
            p: [r[by] for r in responses if (r["policy"], r["decoding"]) == (p, "sample")] for p in ("sft", *algorithms)
        }
        for a, b in pairs:
            result = head_to_head(values[a], values[b], resamples=500)
            rows.append({"a": a, "b": b, "by": by, **vars(result)})
    return rows


def _shifted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations under offsets: those of P3O to the digit, PPO's worse."""
    shifted = []
    for row in rows:
        if row["stage"] != "evaluate" or row.get("algorithm") not in ("p3o_v1", "p3o_v2", "ppo"):
            continue
        changed = dict(row, reward_shift=10.0)
        if row["algorithm"] == "ppo":
            changed |= {"kl": 1.6 * row["kl"]}
            changed |= {key: 0.5 * row[key] for key in ("reward", "gold") if key in row}
        shifted.append(changed)
    return shifted


def _info(seed: int) -> dict[str, Any]:
    return {
        "name": "demo",
        "status": "complete",
        "seed": seed,
        "threads": 2,
        "versions": {"p3o": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.2"},
        "machine": {"system": "Linux", "processor": "x86_64", "cores": 2, "memory_gib": 7.8},
        "seconds": {"sft": 21.4, "sample": 14.1, "reward": 52.0, "rl": 96.3, "evaluate": 31.8},
    }


def _jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
