"""YAML in, a checked model out, and every mistake told with its line.

Works for any pydantic model and knows nothing of this package's settings. Plain values are read as YAML 1.2 does: ``1e-3`` is
a number and ``no`` is a text, while PyYAML's own rules (YAML 1.1) make them a text and False.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from p3o.config_keys import models_in
from p3o.config_yaml import DEEPEST, CoreDumper, KeyPath, YamlReader, dotted
from p3o.errors import P3OError, did_you_mean, shorten
from p3o.files import open_for_reading

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Override:
    """A setting that stands elsewhere than in the file.

    Attributes:
        path: the keys down to it.
        value: as JSON would hold it.
        place: what an error names, such as "--steps 3".
    """

    path: tuple[str, ...]
    value: Any
    place: str


def load_config(path: Path | None, overrides: Sequence[str | Override], schema: type[Model]) -> Model:
    """The settings of a file with these changes, as a checked model.

    Values are not coerced: a number in quotes is no number. Paths stay as they are written, relative to the current directory.

    Args:
        path: a YAML file, or None for the defaults.
        overrides: ``key.key=value`` as given to ``--set``, the value in YAML; the last one of a key wins. A number stands for
            the place in a list: ``runs.0.beta=0.1``. Or an ``Override``, whose value is taken as it is.
        schema: a pydantic model with ``extra="forbid"``.

    Raises:
        P3OError: with a line for each mistake that the schema finds, or the first place that is not YAML of plain values.
    """
    settings = _Settings() if path is None else _read_file(path)
    for override in overrides:
        settings.override(override)
    try:
        # By way of JSON, for pydantic's strict mode then takes lists as tuples and texts as paths, but still no "3" as 3.
        return schema.model_validate_json(json.dumps(settings.values), strict=True)
    except ValidationError as error:
        lines = [settings.explain(dict(mistake), schema) for mistake in error.errors(include_url=False)]
        raise P3OError("\n".join(lines)) from error


def load_packaged_config(name: str, overrides: Sequence[str], schema: type[Model]) -> Model:
    """``load_config`` of a file that comes with the package: configs/NAME.yaml.

    Raises:
        P3OError: as ``load_config`` does.
    """
    with as_file(files("p3o") / "configs" / f"{name}.yaml") as path:
        return load_config(path, overrides, schema)


def dump_config(model: BaseModel) -> str:
    """The model as YAML that ``load_config`` reads back equal."""
    return yaml.dump(
        model.model_dump(mode="json"), Dumper=CoreDumper, sort_keys=False, allow_unicode=True, default_flow_style=False
    )


def first_difference(one: BaseModel, other: BaseModel) -> str | None:
    """The dotted key of the first setting in which two configurations differ, with both values; None if there is none."""

    def differ(left: Any, right: Any, path: str) -> str | None:
        if isinstance(left, dict) and isinstance(right, dict):
            for key in [*left, *(key for key in right if key not in left)]:
                found = differ(left.get(key), right.get(key), f"{path}.{key}" if path else str(key))
                if found is not None:
                    return found
            return None
        return None if left == right else f"{path} ({shorten(left)} there, {shorten(right)} now)"

    return differ(one.model_dump(mode="json"), other.model_dump(mode="json"), "")


@dataclass
class _Settings:
    """Values as they were written, and for each where: "FILE:LINE" or "--set key=value"."""

    source: str = "the configuration"
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)

    def override(self, change: str | Override) -> None:
        """Apply one ``key.key=value``, or a value that is read already."""
        if isinstance(change, Override):
            key, path, container = self._descend(change.path, change.place)
            container[key] = change.value
            self.places[path] = change.place
            return
        place = f"--set {change}"
        dotted, equals, value_text = change.partition("=")
        keys = dotted.strip().split(".")
        if not equals or not all(keys):
            raise P3OError(f"{place}: must have the form key=value, for example --set seed=1")
        if len(keys) > DEEPEST:
            raise P3OError(f"{shorten(place)}: nested too deeply for a configuration")
        key, path, container = self._descend(keys, place)
        container[key] = YamlReader(place, has_lines=False).read(value_text, self.places, path)

    def _descend(self, keys: Sequence[str], place: str) -> tuple[str | int, KeyPath, Any]:
        """The last key, the whole path and the container that holds it; what was known of it is forgotten."""
        container: Any = self.values
        path: KeyPath = ()
        for part in keys[:-1]:
            key = self._step(container, part, path, place)
            path = (*path, key)
            # A section that the file leaves out, or has as "key:" with nothing below it.
            if isinstance(container, dict) and container.get(part) is None:
                container[part] = {}
                self.places.setdefault(path, place)
            container = container[key]
        key = self._step(container, keys[-1], path, place)
        path = (*path, key)
        self.places = {known: where for known, where in self.places.items() if known[: len(path)] != path}
        return key, path, container

    def _step(self, container: Any, part: str, path: KeyPath, place: str) -> str | int:
        """The key or index in this container that a part of a dotted key stands for."""
        if isinstance(container, dict):
            return part
        if not isinstance(container, list):
            raise P3OError(f"{place}: '{dotted(path)}' is {shorten(container)}, which has no keys below it")
        if re.fullmatch("[0-9]{1,9}", part) is None or int(part) >= len(container):
            raise P3OError(
                f"{place}: '{dotted(path)}' is a list of {len(container)}; select an element by its number, counted from 0"
            )
        return int(part)

    def explain(self, mistake: dict[str, Any], schema: type[BaseModel]) -> str:
        """One of pydantic's mistakes as a line for the reader."""
        location: KeyPath = mistake["loc"]
        kind = mistake["type"]
        if kind == "missing":
            path = self._find(location[:-1])
            return f"{self._place(path)}: '{dotted((*path, location[-1]))}' is missing and has no default; add it"
        path = self._find(location, mistake["input"])
        place = self._place(path)
        if kind == "extra_forbidden" and path:
            known = _known_keys(schema, path[:-1])
            advice = did_you_mean(str(path[-1]), known) or (f"known are {', '.join(known)}" if known else "remove it")
            return f"{place}: unknown key '{dotted(path)}'; {advice}"
        message = mistake["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if not path:
            return f"{place}: {message}"
        told = message.removeprefix("Input ")
        given = "" if isinstance(mistake["input"], dict) else f"; given {shorten(mistake['input'])}"
        return f"{place}: '{dotted(path)}'{':' if told == message else ''} {told}{given}"

    def _place(self, path: KeyPath) -> str:
        return self.places.get(path, self.source)

    def _find(self, location: KeyPath, value: Any = None) -> KeyPath:
        """The path, in what was written, of the place that pydantic names.

        Its location also names members of unions, which are no keys; and where a validator built another model from a part
        of its own, it lacks the keys between the two.
        """
        path: KeyPath = ()
        for index, part in enumerate(location):
            if (*path, part) in self.places:
                path = (*path, part)
                continue
            rest = location[index:]
            for deeper in self.places:
                if deeper[: len(path)] == path and deeper[-len(rest) :] == rest and self._value(deeper) == value:
                    return deeper
        return path

    def _value(self, path: KeyPath) -> Any:
        value: Any = self.values
        for key in path:
            value = value[key]
        return value


def _read_file(path: Path) -> _Settings:
    with open_for_reading(path) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise P3OError(f"{path}:{line}: not UTF-8; save the file as UTF-8") from error
    settings = _Settings(str(path))
    values = YamlReader(str(path), has_lines=True).read(text, settings.places, ())
    if values is None:
        raise P3OError(f"{path}: has no settings; write lines of the form key: value")
    if not isinstance(values, dict):
        raise P3OError(f"{path}: contains {shorten(values)}; a configuration consists of lines of the form key: value")
    settings.values = values
    return settings


def _known_keys(schema: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that the schema allows at a place."""
    models = [schema]
    for part in path:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        # A part that is no field is a place in a list or a key of a table: the models are the ones it holds.
        models = [model for field in fields for model in models_in(field.annotation)] if fields else models
    return list(dict.fromkeys(name for model in models for name in model.model_fields))
