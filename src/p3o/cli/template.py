"""The configuration that `p3o init` writes: every key of the schema with its description, generated from the schema itself.

Settings of the task are active, all others are commented out with their defaults. A line that begins with ``#`` in the first
column and is a setting becomes active when that one character is removed.
"""

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import PurePath
from typing import Any

from p3o.config import RunConfig
from p3o.config_keys import TABLE_KEY, Key, schema_keys
from p3o.config_loading import load_packaged_config
from p3o.errors import P3OError, did_you_mean

FILL_IN = "FILL IN"
_USUAL_MODEL = "pythia_1b"
_COLUMN = 48
_WIDTH = 128
_OWN: dict[str, Any] = {
    "name": "mine",
    "model": None,
    "data": {"prompts": None, "demonstrations": None, "preferences": None},
    "sft": {"learning_rate": 2e-5},
    "rl": {
        "training": {"steps": 200, "responses_per_prompt": 4, "learning_rate": 1e-6, "max_new_tokens": 64},
        "runs": {"p3o_v2": {"algorithm": "p3o_v2", "settings": {"epsilon": 0.2, "beta": 0.1}}},
    },
}
_TO_FILL = {
    "model": "a folder or a hub name",
    "data.prompts": "a JSONL file",
    "data.demonstrations": "a JSONL file; or remove this line and the section sft",
    "data.preferences": "a JSONL file; or remove this line and give reward.model, .function or .service",
}


def tasks() -> list[str]:
    """What ``configuration_text`` can begin from: "own", and every configuration that comes with the package."""
    packaged = (PurePath(entry.name) for entry in (files("p3o") / "configs").iterdir())
    return ["own", *sorted(path.stem for path in packaged if path.suffix == ".yaml")]


def configuration_text(task: str) -> str:
    """The commented configuration of a task, as YAML. A task that comes with several models may be named without one.

    Raises:
        P3OError: if there is no such task.
    """
    if task not in tasks() and f"{task}_{_USUAL_MODEL}" in tasks():
        task = f"{task}_{_USUAL_MODEL}"
    if task not in tasks():
        advice = did_you_mean(task, tasks()) or f"known are {', '.join(tasks())}"
        raise P3OError(f"--task {task}: no such task; {advice}")
    values = _OWN if task == "own" else _packaged(task)
    fill = _TO_FILL if task == "own" else {}
    lines = [
        f"# A configuration of p3o, written by `p3o init --task {task}`. `p3o run --config FILE --dry-run` shows what it does.",
        "# Settings after a # have their default values: to change one, remove its # (and that of its section).",
        *([f"# Fill in the lines marked {FILL_IN}."] if fill else []),
        "",
    ]
    lines += _lines(list(schema_keys(RunConfig)), values, fill)
    return "\n".join(lines) + "\n"


def _packaged(task: str) -> dict[str, Any]:
    return load_packaged_config(task, [], RunConfig).model_dump(mode="json", exclude_defaults=True)


def _lines(keys: list[Key], values: Mapping[str, Any], fill: Mapping[str, str]) -> Iterator[str]:
    was_section = False
    told = [*fill]
    for key in keys:
        if TABLE_KEY in key.path or any(key.dotted.startswith(f"{name}.") for name in told):
            continue  # told with the table itself, or in the place of what is to be filled in
        value, is_active = _at(values, key.path)
        if len(key.path) == 1 and (key.kind != "value" or was_section):
            yield ""
        was_section = len(key.path) > 1 or key.kind != "value"
        if key.kind == "table":
            yield from _table(key, [other for other in keys if other.path[:-1] == (*key.path, TABLE_KEY)], value)
        elif key.dotted in fill:
            yield from _setting(key, "", f"{FILL_IN}: {fill[key.dotted]}. {key.description}", is_active)
        elif key.kind == "section" and not is_active and key.default is None and (needed := _required(key, keys)):
            # Without what it needs it cannot stand there, so it has one line and not one for each of its keys.
            told.append(key.dotted)
            yield from _setting(key, "null", f"{key.description} A section; needs {', '.join(needed)}.", is_active)
        elif key.kind == "section":
            yield from _setting(key, "", key.description, is_active)
        else:
            yield from _setting(key, _yaml(value if is_active else key.default), key.description, is_active)


def _table(key: Key, below: list[Key], value: Mapping[str, Any] | None) -> Iterator[str]:
    """Named sections, one a line, and what each may hold."""
    entries = value or key.default or {}
    yield from _setting(key, "" if entries else "{}", key.description, value is not None)
    indent = "  " * len(key.path)
    for name, entry in entries.items():
        yield f"{'' if value else '#'}{indent}{name}: {_yaml(_brief(entry, below))}"
    for other in below:
        yield from _wrapped(" " * _COLUMN, f"{other.path[-1]}: {other.description}")


def _required(section: Key, keys: list[Key]) -> list[str]:
    """The names of the keys that the section cannot do without."""
    return [key.path[-1] for key in keys if key.required and key.path[:-1] == section.path]


def _brief(entry: Mapping[str, Any], below: list[Key]) -> dict[str, Any]:
    defaults = {key.path[-1]: key.default for key in below if not key.required}
    return {name: value for name, value in entry.items() if name not in defaults or value != defaults[name]}


def _setting(key: Key, value: str, description: str, is_active: bool) -> Iterator[str]:
    mark = "" if is_active else "#"
    line = f"{mark}{'  ' * (len(key.path) - 1)}{key.path[-1]}:{f' {value}' if value else ''}"
    yield from _wrapped(f"{line:<{_COLUMN}}" if len(line) < _COLUMN else f"{line}  ", description)


def _wrapped(first: str, comment: str) -> Iterator[str]:
    """A comment behind what stands first, going on below itself."""
    line = f"{first}#"
    for word in comment.split():
        if len(line) + 1 + len(word) > _WIDTH and not line.endswith("#"):
            yield line
            line = f"{' ' * _COLUMN}#"
        line += f" {word}"
    yield line


def _at(values: Mapping[str, Any], path: tuple[str, ...]) -> tuple[Any, bool]:
    """The value at a path, and whether there is one."""
    value: Any = values
    for part in path:
        if not isinstance(value, Mapping) or part not in value:
            return None, False
        value = value[part]
    return value, True


def _yaml(value: Any) -> str:
    """A value in YAML's flow form; JSON is that."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_yaml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, str) and value.replace("_", "").replace("-", "").isalnum() and not value[0].isdigit():
        return value if value.lower() not in ("null", "true", "false") else json.dumps(value)
    return json.dumps(value, ensure_ascii=False)
