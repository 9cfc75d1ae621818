"""What a healthy and a sick run look like, for every algorithm: the pictures of docs/algorithms.

    python benchmarks/curves.py                 # trains 20 runs; writes benchmarks/results/curves.json and the pictures
    python benchmarks/curves.py ppo rloo        # those of these algorithms alone, into the same file
    python benchmarks/curves.py --draw          # the pictures alone, from the JSON

All runs start from one SFT model of the embedded task and maximise its exact gold reward. The sick run differs from the
healthy one in one number: its learning rate is thirty times as high.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import altair as alt
import torch
import vl_convert

from p3o import cli
from p3o.algorithms import ALGORITHMS, make_algorithm
from p3o.config import RunConfig
from p3o.config_loading import load_packaged_config
from p3o.data.embedded import task
from p3o.data.embedded.gold import gold_reward
from p3o.errors import P3OError
from p3o.files import write_json, write_text
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy, load_language_model, load_tokenizer
from p3o.training.environment import machine, versions
from p3o.training.online import OnlineConfig, OnlineTrainer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "curves.json"
PICTURES = ROOT / "docs" / "algorithms"
STEPS, SEED, TOO_FAST = 24, 0, 30.0
START = ROOT / "runs" / "demo" / "sft"
"""What `p3o demo` leaves there is used; otherwise the same SFT model is trained first."""
CPU = torch.device("cpu")

SETTINGS: dict[str, dict[str, Any]] = {"ppo": {"lam": 1.0}, "p3o_r": {"epsilon": 0.2}, "grpo": {"beta": 0.02}}
TRAINING: dict[str, dict[str, Any]] = {
    "p3o_v2": {"learning_rate": 4e-4},
    "ppo": {"critic_learning_rate": 1e-3, "critic_warmup_steps": 4},
    "p3o_r": {"replay_batches": 7, "epochs": 1, "minibatches": 8},
}
"""What differs from the demo's settings."""

PANELS = {
    "reward": "reward",
    "kl_k1": "KL to the reference, nats",
    "half_squared_log_ratio": "½ (log-ratio)², mean over updates",
}
OWN = {"online_dpo": "implicit_reward_accuracy", "ppg": "ratio_max", "rebel": "ratio_max", "reinforce": "ratio_max"}
"""The fourth panel; of the others it is ``clip_fraction``."""

KEPT = {*PANELS, *OWN.values(), "clip_fraction", "length", "distinct", "updates"}

COLOURS = {"healthy": "#1d5fd1", "sick": "#cf4a2b"}


def train(name: str, start: Path, learning_rate_factor: float) -> dict[str, Any]:
    """The metrics of every step of one run, and how it ended."""
    demo = load_packaged_config("demo", [], RunConfig).rl.training.model_dump()
    changes = TRAINING.get(name, {}) | {"steps": STEPS, "prompts_per_step": 8}
    config = OnlineConfig(**(demo | changes))
    rates = {
        key: value * learning_rate_factor
        for key in ("learning_rate", "critic_learning_rate")
        if (value := getattr(config, key)) is not None
    }
    config = config.model_copy(update=rates)
    policy = load_language_model(str(start), device=CPU)
    algorithm = make_algorithm(name, **SETTINGS.get(name, {}))
    trainer = OnlineTrainer(
        policy,
        frozen_copy(policy),
        load_tokenizer(str(start)),
        algorithm,
        gold_reward,
        task.prompts(2000, seed=SEED, split="train"),
        config,
        seed=SEED,
        critic=Critic.from_pretrained(str(start), device=CPU) if algorithm.needs_critic else None,
    )
    rows: list[dict[str, float]] = []
    ended = "all steps done"
    try:
        while trainer.done < trainer.total:
            metrics = trainer.step()
            if trainer.done > trainer.warmup_steps:
                rows.append({key: float(f"{value:.4g}") for key, value in metrics.items() if key in KEPT})
    except P3OError as error:
        ended = str(error)
    return {"learning_rate": config.learning_rate, "ended": ended, "metrics": rows}


def measure(names: list[str]) -> dict[str, Any]:
    """The runs of these algorithms from one SFT model, beside those that the file has already."""
    torch.set_num_threads(1)
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"] if RESULTS.is_file() else {}
    with tempfile.TemporaryDirectory() as scratch:
        start = START
        if not start.is_dir():
            assert (
                cli.main(["sft", "--config", "demo", "--seed", str(SEED), "--output", scratch, "--name", "demo"]) == 0
            )
            start = Path(scratch) / "demo" / "sft"
        for name in names:
            runs[name] = {"healthy": train(name, start, 1.0), "sick": train(name, start, TOO_FAST)}
            last = {kind: run["metrics"][-1] if run["metrics"] else {} for kind, run in runs[name].items()}
            print(name, {kind: (row.get("reward"), row.get("kl_k1")) for kind, row in last.items()}, flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    origin = {"command": "python benchmarks/curves.py", "commit": commit.stdout.strip(), "seed": SEED}
    in_order = {name: runs[name] for name in ALGORITHMS if name in runs}
    return origin | {"machine": machine(), "versions": versions(), "runs": in_order}


def picture(name: str, runs: dict[str, Any]) -> str:
    """Four quantities along training, healthy and sick, as SVG."""
    own = OWN.get(name, "clip_fraction")
    panels = []
    for key, title in {**PANELS, own: own}.items():
        rows = [
            {"run": kind, "step": step, "value": row[key]}
            for kind in COLOURS
            for step, row in enumerate(runs[kind]["metrics"], start=1)
            if key in row
        ]
        wide = key in ("half_squared_log_ratio", "ratio_max", "kl_k1")
        scale = alt.Scale(type="symlog", constant=0.1) if wide else alt.Scale(zero=False)
        colour = alt.Color("run:N", title=None, scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())))
        panels.append(
            alt.Chart(alt.Data(values=rows), width=290, height=150, title=title)
            .mark_line(strokeWidth=1.6)
            .encode(
                alt.X("step:Q", title="step", axis=alt.Axis(tickCount=6)),
                alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=5)),
                colour,
            )
        )
    chart = (
        alt.concat(*panels, columns=2)
        .configure(background="#ffffff", padding=12, font="sans-serif")
        .configure_view(stroke=None)
        .configure_axis(labelColor="#5b6470", titleColor="#1b1f24", gridColor="#e3e6ea", domainColor="#e3e6ea")
        .configure_title(fontWeight="normal", fontSize=12, color="#1b1f24", anchor="start")
    )
    return str(vl_convert.vegalite_to_svg(chart.to_dict()))


def main(arguments: list[str]) -> None:
    """Measure unless told only to draw; draw."""
    if "--draw" not in arguments:
        write_json(RESULTS, measure(arguments or list(ALGORITHMS)))
    for name, runs in json.loads(RESULTS.read_text(encoding="utf-8"))["runs"].items():
        write_text(PICTURES / f"{name}.svg", picture(name, runs))


if __name__ == "__main__":
    main(sys.argv[1:])
