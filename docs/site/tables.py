"""Tables made of the code, so that they cannot differ from it: settings of a schema, metrics of a loss that is run."""

import json
import re
from pathlib import Path

import torch

from p3o.algorithms import ALGORITHMS, make_algorithm
from p3o.config_keys import schema_keys
from p3o.functional.advantages import reward_gaps
from p3o.training.averages import MetricsAverage
from p3o.types import Experience

CURVES = Path(__file__).parents[2] / "benchmarks" / "results" / "curves.json"
METRICS_PAGE = Path(__file__).parents[1] / "metrics.md"


def settings_table(algorithm: str) -> str:
    """The settings of an algorithm: name, type, default, description."""
    rows = [
        f"| `{key.dotted}` | {key.type} | `{json.dumps(key.default)}` | {key.description} |"
        for key in schema_keys(ALGORITHMS[algorithm].config)
    ]
    return "\n".join(["| setting | type | default | meaning |", "| --- | --- | --- | --- |", *rows])


def metrics_of(algorithm: str) -> list[str]:
    """The metrics that a step logs of an algorithm's loss, by running it on two random groups of four responses."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 4, 3)
    policy, behaviour, reference = (-torch.rand(shape, generator=generator) for _ in range(3))
    rewards = torch.rand(shape[:2], generator=generator, dtype=torch.float64)
    experience = Experience(
        response_mask=torch.ones(shape, dtype=torch.bool),
        behaviour_logprobs=behaviour,
        reference_logprobs=reference,
        reward_gaps=reward_gaps(rewards),
        rewards=rewards,
        age=torch.zeros(2, dtype=torch.long),
        values=torch.zeros(shape),
    )
    made = make_algorithm(algorithm)
    logged = MetricsAverage()
    logged.add(made.loss(policy, made.prepare(experience), torch.zeros(shape)).metrics, 1.0)
    return list(logged.result())


def explanations() -> dict[str, tuple[str, str, str]]:
    """Meaning, healthy and sick of every metric, from the tables of metrics.md."""
    rows = re.findall(
        r"^\| `(\w+)` \| (.+?) \| (.*?) \| (.*?) \|$", METRICS_PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return {name: (meaning, healthy, sick) for name, meaning, healthy, sick in rows}


def metrics_table(algorithm: str) -> str:
    """The metrics of an algorithm's own, explained.

    Raises:
        KeyError: for a metric that metrics.md does not explain.
    """
    known = explanations()
    rows = [f"| `{name}` | {' | '.join(known[name])} |" for name in metrics_of(algorithm)]
    return "\n".join(["| metric | meaning | healthy | sick |", "| --- | --- | --- | --- |", *rows])


def curves_table(algorithm: str) -> str:
    """What the curves of a healthy and a sick run come to, from the file that they are drawn from."""
    runs = json.loads(CURVES.read_text(encoding="utf-8"))["runs"][algorithm]
    rows = []
    for kind in ("healthy", "sick"):
        steps = runs[kind]["metrics"]
        peak = max(range(len(steps)), key=lambda i: steps[i]["kl_k1"])
        last = steps[-1]
        cells = [
            kind,
            f"{runs[kind]['learning_rate']:.0e}",
            f"{steps[0]['reward']:.2f} → {last['reward']:.2f}",
            f"{last['kl_k1']:.2f}",
            f"{steps[peak]['kl_k1']:.1f} (step {peak + 1})",
            f"{last['length']:.1f}",
            f"{last['distinct']:.2f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    head = "| run | rate | reward, first → last | KL, last | KL, highest | tokens, last | distinct, last |"
    return "\n".join([head, "|" + " --- |" * 7, *rows])
