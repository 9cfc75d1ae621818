"""Model cards: the README.md of every model folder of a run, from the run's own records.

A card says what the model is, how it was made (resolved settings, data, seed, versions) and what was measured. Absolute paths
are cut to their last part: a card may be published, and where files lie on someone's disk is nobody's business.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from p3o.files import read_jsonl, write_text
from p3o.report.numbers import number, percent, with_error
from p3o.report.reading import read_comparisons, read_json

CARD = "README.md"
MARK = "<!-- Written by p3o. Remove this line and p3o leaves the file as it is. -->"
PAPER = "2310.00212"


@dataclass(frozen=True)
class _Model:
    """A model folder of a run. ``run`` is the name of its RL run, None for the others."""

    folder: Path
    kind: str
    run: str | None = None


def write_model_cards(run: Path, settings: Mapping[str, Any]) -> list[Path]:
    """Write or renew the card of every model folder in a run's folder; one whose mark was removed stays as it is.

    Args:
        run: the run's folder.
        settings: its resolved configuration, as JSON values.

    Returns:
        The cards that were written.

    Raises:
        P3OError: if a record of the run cannot be read or a card cannot be written.
    """
    written = []
    for model in _models(run):
        path = model.folder / CARD
        if path.exists() and _is_the_users(path, model):
            continue
        write_text(path, model_card(run, settings, model.folder))
        written.append(path)
    return written


def model_card(run: Path, settings: Mapping[str, Any], folder: Path) -> str:
    """The text of one card, Markdown with YAML front matter.

    Raises:
        P3OError: if a record of the run cannot be read.
    """
    model = next(model for model in _models(run) if model.folder == folder)
    record = read_json(run / "run.json")
    rows = read_jsonl(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    shown = _without_absolute_paths(settings)
    entry = settings["rl"]["runs"].get(model.run, {}) if model.run is not None else {}
    environment = Environment(
        loader=PackageLoader("p3o.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md").render(
        mark=MARK,
        front_matter=_yaml(_front_matter(model, settings, entry)),
        name=f"{record['name']}/{model.run}" if model.run else f"{record['name']}/{model.folder.name}",
        kind=model.kind,
        algorithm=entry.get("algorithm"),
        start=shown["model"] or "an untrained model of the embedded task",
        is_adapter=_is_adapter(model.folder),
        recipe=_yaml(_recipe(model, shown)),
        data=_data(model, shown),
        measured=_measurements(model, rows, run),
        record=record,
        seconds=record["seconds"],
        paper=PAPER,
    )


def _models(run: Path) -> Iterator[_Model]:
    if (run / "sft").is_dir():
        yield _Model(run / "sft", "sft")
    if (run / "reward_model").is_dir():
        yield _Model(run / "reward_model", "reward")
    if (run / "rl").is_dir():
        for folder in sorted(path for path in (run / "rl").iterdir() if _holds_a_model(path)):
            yield _Model(folder, "rl", folder.name)


def _holds_a_model(folder: Path) -> bool:
    return not folder.name.startswith(".") and any(
        (folder / name).is_file() for name in ("config.json", "adapter_config.json")
    )


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _is_the_users(path: Path, model: _Model) -> bool:
    """Whether a person wrote it. peft leaves a form to be filled in, without our mark, beside a fresh adapter."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return MARK not in text and not (_is_adapter(model.folder) and "[More Information Needed]" in text)


def _front_matter(model: _Model, settings: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the hub reads: https://huggingface.co/docs/hub/model-cards#model-card-metadata."""
    tags = {"sft": ["sft"], "reward": ["reward-model"], "rl": ["rlhf", entry.get("algorithm", "rl")]}[model.kind]
    found: dict[str, Any] = {
        "library_name": "peft" if _is_adapter(model.folder) else "transformers",
        "pipeline_tag": "text-classification" if model.kind == "reward" else "text-generation",
        "tags": ["p3o", *tags, f"arxiv:{PAPER}"],
    }
    base = settings["model"]
    if base is not None and not Path(base).exists():  # a folder of this machine is no model of the hub
        found["base_model"] = base
    return found


def _recipe(model: _Model, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that made this model."""
    recipe = {name: settings[name] for name in ("model", "seed", "embedded") if settings[name] is not None}
    if settings["sft"] is not None:
        recipe["sft"] = settings["sft"]
    if model.kind != "sft":
        recipe["reward"] = settings["reward"]
    if model.run is not None:
        entry = settings["rl"]["runs"].get(model.run)
        recipe["rl"] = {"training": settings["rl"]["training"], "runs": {model.run: entry}}
    return recipe


def _data(model: _Model, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it learned from, by name."""
    if settings["embedded"] is not None:
        return [("the embedded task", "text generated from a grammar, without anyone's data")]
    names = {"sft": ("demonstrations",), "reward": ("demonstrations", "preferences"), "rl": tuple(settings["data"])}
    rows = [(name, settings["data"][name]) for name in names[model.kind] if settings["data"].get(name) is not None]
    return [(name.replace("_", " "), value if isinstance(value, str) else _yaml(value)) for name, value in rows]


def _measurements(model: _Model, rows: Sequence[Mapping[str, Any]], run: Path) -> list[tuple[str, str]]:
    """Name and value of what was measured of this model; empty if nothing was yet."""
    if model.kind == "sft":
        losses = [row["heldout_loss"] for row in rows if row["stage"] == "sft" and "heldout_loss" in row]
        return [("loss on held-out demonstrations, nats per token", number(losses[-1], 4))] if losses else []
    if model.kind == "reward":
        tests = [row for row in rows if row["stage"] == "reward_test"]
        found = {name: value for test in tests[-1:] for name, value in test.items() if name != "stage"}
        return [
            (name.replace("_", " "), number(float(value), 3 if isinstance(value, float) else 0))
            for name, value in found.items()
        ]
    evaluations = [row for row in rows if row["stage"] == "evaluate" and row["policy"] == model.run]
    if not evaluations:
        return []
    last = max(evaluations, key=lambda row: row["step"])
    names = {"reward": "reward", "gold": "gold reward", "kl": "KL(policy ‖ start), nats per response"}
    shown = [(title, with_error(last[name], last[f"{name}_se"])) for name, title in names.items() if name in last]
    shown.append(("tokens per response", number(last["length"], 1)))
    shown.append(("held-out prompts", str(last["prompts"])))
    for result in read_comparisons(run / "head_to_head.json"):
        if (result.a, result.b) == (model.run, "sft"):
            interval = f"{percent(result.win_rate, 1)} ({number(100 * result.low, 1)}–{number(100 * result.high, 1)})"
            shown.append((f"win rate against the starting model by the {result.by}, 95 % interval", interval))
    return shown


def _without_absolute_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_absolute_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_absolute_paths(item) for item in value]
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith("~")):
        return PurePath(value).name
    return value


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=False).strip()
