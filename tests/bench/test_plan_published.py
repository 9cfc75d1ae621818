"""The plan beside what others measured: the table of docs/scaling_plan.md, which names the sources and their settings."""

from dataclasses import replace
from pathlib import Path

import pytest

from p3o.bench.plan_cost import METHODS, Assumptions, broadcast_seconds, decode_step
from p3o.bench.plan_shapes import SHAPES, Shape, Work
from p3o.bench.plan_split import Plan, Turns, plans_of

ASSUMED = Assumptions()
A100 = replace(ASSUMED, peak=312e12, bandwidth=1.555e12)
MISTRAL_7B = Shape("7B", 32, 4096, 32, 8, 128, 14336, 32768, tied=False)
QWEN3_32B = Shape("32B", 64, 5120, 64, 8, 128, 25600, 151936, tied=False)
TABLE = (Path(__file__).parents[2] / "docs/scaling_plan.md").read_text()


def training_rate(shape: Shape, length: int, assumed: Assumptions) -> float:
    """Tokens per second and GPU in a training pass with recomputation, where traffic hides."""
    forward = shape.forward_operations(length, length, length * (length + 1) / 2)
    return assumed.peak * assumed.training_share * length / (4 * forward)


def step(turns: Turns, length: int, learners: int, rollouts: int) -> Plan:
    """64 prompts, 32 responses each, four updates, on 16 GPUs; the longest response is 4096 tokens."""
    work = Work(64, 32, prompt_tokens=128, response_tokens=length, tail=4096 / length, updates=4)
    plans = plans_of(SHAPES["8B"], work, METHODS["p3o_own_rows"], 16, turns, ASSUMED)
    [found] = [plan for plan in plans if (plan.learners, plan.rollouts) == (learners, rollouts)]
    return found


@pytest.mark.parametrize(
    ("theirs", "plan", "unit"),
    [
        (5762, training_rate(SHAPES["8B"], 8192, ASSUMED), "tokens/s"),
        (331, training_rate(SHAPES["70B"], 8192, A100), "tokens/s"),
        (97.7, step("together", 1060, 16, 16).seconds, "s"),
        (74.6, step("asynchronous", 1129, 8, 8).seconds, "s"),
        (6.48, 1e3 * decode_step(SHAPES["8B"], Work(1, 1, 128, 128), 1, ASSUMED), "ms"),
        (75, 1 / decode_step(SHAPES["8B"], Work(1, 1, 1024, 128), 1, A100), "tokens/s"),
        (27.23, 1e3 * decode_step(MISTRAL_7B, Work(1, 1, 220, 200), 3281.19 * 0.02723, ASSUMED), "ms"),
        (2.3, broadcast_seconds(QWEN3_32B, 16, 16, ASSUMED), "s"),
    ],
)
def test_the_table_says_what_the_plan_says(theirs: float, plan: float, unit: str) -> None:
    """Three figures of the plan's, and the ratio of the two, as the table has them."""
    shown = f"{plan:,.0f}" if plan >= 100 else f"{plan:.3g}"
    assert f"| {theirs:,} {unit} | {shown} {unit} | {plan / theirs:.2f} |" in TABLE


def test_the_large_model_of_the_push_is_as_large_as_it_is() -> None:
    assert QWEN3_32B.parameters == pytest.approx(32.8e9, rel=2e-3)
