"""The algorithms, one file each, and the table of their names.

    algorithm = make_algorithm("p3o_v2", epsilon=0.2, beta=0.1)

Siblings never import each other; what they share stands in ``base``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from p3o.algorithms.base import Algorithm, AlgorithmConfig
from p3o.algorithms.dpo import DPOConfig, OnlineDPO
from p3o.algorithms.grpo import GRPO, GRPOConfig
from p3o.algorithms.p3o import P3O, P3OConfig, PPGConfig
from p3o.algorithms.p3o_residual import P3OResidual, P3OResidualConfig
from p3o.algorithms.ppo import PPO, PPOConfig
from p3o.algorithms.rebel import REBEL, REBELConfig
from p3o.algorithms.reinforce import Reinforce, ReinforceConfig
from p3o.algorithms.rloo import RLOO, RLOOConfig


class AlgorithmEntry(NamedTuple):
    """A line of the table."""

    title: str
    config: type[AlgorithmConfig]
    build: Callable[[Any], Algorithm]


ALGORITHMS: dict[str, AlgorithmEntry] = {
    "p3o_v1": AlgorithmEntry("P3O-V1", P3OConfig, partial(P3O, clip="separate")),
    "p3o_v2": AlgorithmEntry("P3O-V2", P3OConfig, partial(P3O, clip="joint")),
    "p3o_r": AlgorithmEntry("P3O-R", P3OResidualConfig, P3OResidual),
    "ppo": AlgorithmEntry("PPO", PPOConfig, PPO),
    "online_dpo": AlgorithmEntry("Online DPO", DPOConfig, OnlineDPO),
    "reinforce": AlgorithmEntry("REINFORCE", ReinforceConfig, Reinforce),
    "ppg": AlgorithmEntry("PPG", PPGConfig, partial(P3O, clip="none")),
    "rloo": AlgorithmEntry("RLOO", RLOOConfig, RLOO),
    "grpo": AlgorithmEntry("GRPO", GRPOConfig, GRPO),
    "rebel": AlgorithmEntry("REBEL", REBELConfig, REBEL),
}


def make_algorithm(name: str, **settings: Any) -> Algorithm:
    """The algorithm of this name with these settings, checked.

    Raises:
        KeyError: if the name is not in ``ALGORITHMS``.
        pydantic.ValidationError: if a setting is unknown or out of range.
    """
    entry = ALGORITHMS[name]
    return entry.build(entry.config(**settings))


__all__ = ["ALGORITHMS", "Algorithm", "AlgorithmConfig", "AlgorithmEntry", "make_algorithm"]
