"""`p3o doctor`: what this machine has, what p3o would use of it, and what is missing for what."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from p3o import __version__
from p3o.training.environment import machine

NEEDED_PYTHON = (3, 11)
CORE = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "altair")
USES = {
    "peft": "LoRA adapters",
    "bitsandbytes": "8-bit optimisers",
    "datasets": "parquet files and hub data sets",
    "ray": "--engine ray: training on Ray Train workers",
    "tensorboard": "tracking: [tensorboard]",
    "wandb": "tracking: [wandb]",
    "trackio": "tracking: [trackio]",
    "openai": "a language model as judge",
    "evalica": "rankings from comparisons",
    "fastapi": "the labelling page, serve-reward",
    "httpx": "rewards served by another process or machine",
    "verl": "P3O as an advantage estimator of verl",
    "gguf": "models in GGUF format",
}
"""What an optional package is for."""
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+).*\bextra\s*==\s*['\"]([^'\"]+)['\"]")
SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_LOW_DISK_GIB = 2.0
_GIB = 2**30


@dataclass
class Findings:
    """What was found.

    Attributes:
        facts: name and value, in the order to show them.
        missing: package, what it is for and how to install it, for the optional ones that are not there.
        problems: what keeps the core from working, each with what to do.
        warnings: what may, later.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """A line for each fact, missing package, warning and problem."""
        width = max(map(len, self.facts))
        for name, value in self.facts.items():
            yield f"{name:<{width}}  {value}"
        for package, use in self.missing.items():
            yield f"not installed: {package}: {use}"
        for warning in self.warnings:
            yield f"warning: {warning}"
        for problem in self.problems:
            yield f"problem: {problem}"
        yield "the core works" if not self.problems else f"{len(self.problems)} problem(s)"

    def figures(self) -> dict[str, Any]:
        """As JSON values."""
        return {"works": not self.problems, **vars(self)}


def examine(folder: Path = Path()) -> Findings:
    """Look at Python, packages, devices, disk and switches; compute one gradient to see that torch works.

    Args:
        folder: where runs would be written.
    """
    found = Findings()
    found.facts["p3o"] = __version__
    found.facts["python"] = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < NEEDED_PYTHON:
        found.problems.append(
            f"Python {platform.python_version()}: p3o needs {'.'.join(map(str, NEEDED_PYTHON))} or later"
        )
    _packages(found)
    if find_spec("torch") is not None:
        _devices(found)
    hardware = machine()
    found.facts["processor"] = f"{hardware['processor']}, {hardware['processors']} usable"
    if "memory_gib" in hardware:
        found.facts["memory"] = f"{hardware['memory_gib']} GiB, {_available_memory()} available"
    _disk(found, folder)
    switches = [f"{name}={os.environ[name]}" for name in SWITCHES if os.environ.get(name)]
    found.facts["offline"] = ", ".join(switches) or "no (models and data sets may be fetched from the hub by name)"
    return found


def _packages(found: Findings) -> None:
    for package in CORE:
        try:
            found.facts[package] = version(package)
        except PackageNotFoundError:
            found.problems.append(f"{package} is not installed; run: pip install p3o")
    for package, extra in optional_packages():
        try:
            found.facts[package] = version(package)
        except PackageNotFoundError:
            # Of several extras with this package, the first.
            found.missing.setdefault(package, f"{USES.get(package, extra)} (pip install 'p3o[{extra}]')")


def optional_packages() -> list[tuple[str, str]]:
    """Every package of an extra with that extra, as this installation's metadata has them; the developers' left out."""
    try:
        lines = requires("p3o") or []
    except PackageNotFoundError:  # run from its source, not installed
        return []
    matches = [match for line in lines if (match := _REQUIREMENT.match(line))]
    return [(match[1], match[2]) for match in matches if match[2] != "dev"]


def _devices(found: Findings) -> None:
    import torch

    from p3o.models.precision import choose_precision
    from p3o.stages.context import choose_device

    try:
        chosen = choose_device("auto")
        weight = torch.ones(2, device=chosen, requires_grad=True)
        (weight**2).sum().backward()
        if weight.grad is None or weight.grad.tolist() != [2.0, 2.0]:
            found.problems.append(f"torch on {chosen} computes a wrong gradient; reinstall torch")
    except RuntimeError as error:
        found.problems.append(f"torch cannot compute here: {str(error).splitlines()[0]}; reinstall torch")
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        found.facts[f"cuda:{index}"] = f"{name}, {total / _GIB:.0f} GiB, {free / _GIB:.0f} free"
    if torch.backends.mps.is_available():
        found.facts["mps"] = "found but not used: it has no float64, which p3o needs to sample and to compare rewards"
    found.facts["device"] = f"{chosen} (device: auto), {torch.get_num_threads()} CPU threads"
    found.facts["number format"] = str(choose_precision("auto", chosen, trains_all_weights=True))


def _available_memory() -> str:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return "an unknown part"
    return f"{kib / 2**20:.1f} GiB"


def _disk(found: Findings, folder: Path) -> None:
    free = shutil.disk_usage(folder).free / _GIB
    found.facts["disk"] = f"{free:.1f} GiB free in {folder.absolute()}"
    if free < _LOW_DISK_GIB:
        found.warnings.append(f"only {free:.1f} GiB of disk are free here; a model and its optimiser may not fit")
    if not os.access(folder, os.W_OK):
        found.warnings.append(f"{folder.absolute()} is not writable; choose another folder with --output")
