"""The pages of the reference: which modules they show, and which names that makes known."""

import ast
from functools import cache
from pathlib import Path

PAGES = {
    "functional": (
        "Equations",
        [f"functional.{name}" for name in ("logprobs", "kl", "advantages", "preference", "mismatch")],
    ),
    "algorithms": (
        "Algorithms",
        [
            f"algorithms.{name}"
            for name in ("p3o", "p3o_residual", "ppo", "dpo", "rloo", "grpo", "rebel", "reinforce", "base")
        ],
    ),
    "models": (
        "Models",
        [f"models.{name}" for name in ("language", "loading", "adapters", "tokens", "sampling", "heads")],
    ),
    "data": ("Data", ["data.rows", "data.sources", "data.reading"]),
    "feedback": ("Feedback", ["feedback.functions", "feedback.reward_model", "feedback.comparison"]),
    "training": (
        "Training",
        [
            f"training.{name}"
            for name in ("online", "loop", "checkpoint", "replay", "sft", "reward_model", "optimisation")
        ],
    ),
    "evaluation": (
        "Evaluation",
        [f"evaluation.{name}" for name in ("policy", "frontier", "dominance", "winrate", "length_control", "ranking")],
    ),
    "scale": (
        "Scale",
        [
            "distributed.world",
            "distributed.shares",
            "training.rollouts",
            "training.asynchrony",
            "rollouts.sampler",
            "rollouts.fleet",
            "rollouts.weights",
            "scale.verl",
        ],
    ),
    "doors": ("Types, errors, configuration, pipeline", ["types", "errors", "config", "config_loading", "pipeline"]),
}
"""Title and modules of each page."""


@cache
def api_pages(source: Path) -> dict[str, tuple[str, list[str]]]:
    """By place on the site, the Markdown of each page and the dotted names that it documents."""
    pages: dict[str, tuple[str, list[str]]] = {}
    listing = ["# API", "", "Generated from the docstrings. Private names are not listed.", ""]
    for name, (title, modules) in PAGES.items():
        body = [f"# {title}", ""]
        names: list[str] = []
        for module in modules:
            dotted = f"p3o.{module}"
            body += [f"::: {dotted}", ""]
            names += [dotted, *(f"{dotted}.{one}" for one in _public(source / Path(*dotted.split("."))))]
        pages[f"api/{name}.md"] = ("\n".join(body), names)
        listing.append(f"- [{title}]({name}.md): " + ", ".join(f"`p3o.{module}`" for module in modules))
    # The table of algorithms stands in the package itself.
    text, names = pages["api/algorithms.md"]
    text = text.replace("::: p3o.algorithms.p3o\n", "::: p3o.algorithms.make_algorithm\n\n::: p3o.algorithms.p3o\n")
    pages["api/algorithms.md"] = (text, [*names, "p3o.algorithms.make_algorithm"])
    pages["api/index.md"] = ("\n".join(listing) + "\n", [])
    return pages


def _public(path: Path) -> list[str]:
    """Public functions and classes of a module that have a docstring, as the reference shows them."""
    file = path.with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node)
    ]
