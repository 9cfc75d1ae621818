"""Every key of the configuration on the terminal, and those of a configuration that differ from their defaults."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p3o.algorithms import ALGORITHMS
from p3o.config import RunConfig
from p3o.config_keys import Key, schema_keys


def print_keys() -> None:
    """A table of every key: type, default, description; then the settings of each algorithm."""
    console = Console()
    console.print("Every key of a configuration file, also for --set KEY=VALUE.\n")
    console.print(_table(schema_keys(RunConfig)))
    for name, entry in ALGORITHMS.items():
        console.print(f"rl.runs.NAME.settings with algorithm: {name} ({entry.title})")
        console.print(_table(schema_keys(entry.config)))


def changed_settings(config: RunConfig) -> list[str]:
    """The settings that differ from the defaults, as ``key=value`` that ``--set`` takes."""
    return list(_flattened(config.model_dump(mode="json", exclude_defaults=True)))


def _table(keys: Iterator[Key]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("key", no_wrap=True)
    for head in ("type", "default", "description"):
        table.add_column(head, overflow="fold")
    for key in keys:
        default = "" if key.required or key.kind != "value" else json.dumps(key.default, ensure_ascii=False)
        table.add_row(*map(Text, (key.dotted, key.type, default, key.description)))
    return table


def _flattened(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        dotted = f"{path}.{name}" if path else name
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, dotted)
        else:
            yield f"{dotted}={json.dumps(value, ensure_ascii=False)}"
