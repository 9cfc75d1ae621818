"""What a run computes with and on, for run.json and the records of benchmarks."""

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from p3o import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python, this package and what it computes with."""
    found = {"python": platform.python_version(), "p3o": __version__}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def machine() -> dict[str, Any]:
    """What the run computes on: system, processor, number of processors that it may use, memory in GiB."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {"system": platform.system(), "processor": _processor(), "processors": usable}
    with suppress(ValueError, OSError, AttributeError):  # not every system tells
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return found


def _processor() -> str:
    """The processor's own name where Linux tells it, else its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
