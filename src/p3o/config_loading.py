"""YAML in, a checked model out, and every mistake told with its line.

Works for any pydantic model and knows nothing of this package's settings. Plain values are read as YAML 1.2 does: ``1e-3`` is
a number and ``no`` is a text, while PyYAML's own rules (YAML 1.1) make them a text and False.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError

from p3o.config_keys import models_in
from p3o.errors import P3OError, did_you_mean, shorten
from p3o.files import open_for_reading

Model = TypeVar("Model", bound=BaseModel)
KeyPath = tuple[str | int, ...]


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
        model.model_dump(mode="json"), Dumper=_CoreDumper, sort_keys=False, allow_unicode=True, default_flow_style=False
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
            raise P3OError(f"{place}: not of the form key=value; write for example --set seed=1")
        if len(keys) > _DEEPEST:
            raise P3OError(f"{shorten(place)}: nested too deeply for a configuration")
        key, path, container = self._descend(keys, place)
        container[key] = _Reader(place, has_lines=False).read(value_text, self.places, path)

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
            raise P3OError(f"{place}: '{_dotted(path)}' is {shorten(container)}, which has no keys below it")
        if re.fullmatch("[0-9]{1,9}", part) is None or int(part) >= len(container):
            raise P3OError(
                f"{place}: '{_dotted(path)}' is a list of {len(container)}; after it stands a place, counted from 0"
            )
        return int(part)

    def explain(self, mistake: dict[str, Any], schema: type[BaseModel]) -> str:
        """One of pydantic's mistakes as a line for the reader."""
        location: KeyPath = mistake["loc"]
        kind = mistake["type"]
        if kind == "missing":
            path = self._find(location[:-1])
            return f"{self._place(path)}: no '{_dotted((*path, location[-1]))}', which has no default; add it"
        path = self._find(location, mistake["input"])
        place = self._place(path)
        if kind == "extra_forbidden" and path:
            known = _known_keys(schema, path[:-1])
            advice = did_you_mean(str(path[-1]), known) or (f"known are {', '.join(known)}" if known else "remove it")
            return f"{place}: unknown key '{_dotted(path)}'; {advice}"
        message = mistake["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if not path:
            return f"{place}: {message}"
        told = message.removeprefix("Input ")
        given = "" if isinstance(mistake["input"], dict) else f"; given {shorten(mistake['input'])}"
        return f"{place}: '{_dotted(path)}'{':' if told == message else ''} {told}{given}"

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
    values = _Reader(str(path), has_lines=True).read(text, settings.places, ())
    if values is None:
        raise P3OError(f"{path}: holds no settings; write lines of the form key: value")
    if not isinstance(values, dict):
        raise P3OError(f"{path}: is {shorten(values)}; a configuration is lines of the form key: value")
    settings.values = values
    return settings


@dataclass(frozen=True)
class _Reader:
    """Turns YAML text into plain values and notes where each stands."""

    source: str
    has_lines: bool

    def read(self, text: str, places: dict[KeyPath, str], root: KeyPath) -> Any:
        """The value of a text; ``places`` gains ``root`` and every path below it.

        Raises:
            P3OError: if the text is not one YAML document of plain values.
        """
        try:
            node = yaml.compose(text, Loader=_CoreLoader)
            if node is None:
                places[root] = self.source
                return None
            return self._value(node, places, root)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = error.problem or error.context
            raise P3OError(f"{self._place(mark)}: cannot be read as YAML: {problem}") from error
        except yaml.YAMLError as error:  # characters that YAML does not allow
            raise P3OError(f"{self.source}: cannot be read as YAML: {' '.join(str(error).split())}") from error
        except RecursionError as error:
            raise P3OError(f"{self.source}: nested too deeply for a configuration") from error
        except (ValueError, OverflowError) as error:  # PyYAML's, for escapes such as "\UFFFFFFFF"
            raise P3OError(f"{self.source}: cannot be read as YAML: {error}") from error

    def _value(self, node: yaml.Node, places: dict[KeyPath, str], path: KeyPath) -> Any:
        places.setdefault(path, self._place(node.start_mark))
        if len(path) > _DEEPEST:
            raise P3OError(f"{places[path]}: nested too deeply for a configuration")
        if isinstance(node, yaml.MappingNode):
            self._expect_tag(node, "map")
            return self._mapping(node, places, path)
        if isinstance(node, yaml.SequenceNode):
            self._expect_tag(node, "seq")
            return [self._value(item, places, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(cast(yaml.ScalarNode, node))

    def _mapping(self, node: yaml.MappingNode, places: dict[KeyPath, str], path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            place = self._place(key_node.start_mark)
            if not isinstance(key, str):
                raise P3OError(f"{place}: the key {shorten(key_node.value)} is not a text; write a setting's name")
            if key in values:
                raise P3OError(f"{place}: '{_dotted((*path, key))}' is given twice; keep one")
            places[(*path, key)] = place
            values[key] = self._value(value_node, places, (*path, key))
        return values

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix(_TAG)
        try:
            value = _CONVERT[kind](text)
        except KeyError as error:
            raise P3OError(f"{self._place(node.start_mark)}: the tag {node.tag} is not read; remove it") from error
        except ValueError as error:
            raise P3OError(f"{self._place(node.start_mark)}: {shorten(text)} is no {kind} that can be read") from error
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise P3OError(f"{self._place(node.start_mark)}: {shorten(text)} is too large for a setting")
        if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
            raise P3OError(f"{self._place(node.start_mark)}: {shorten(text)} holds half of a surrogate pair; remove it")
        if isinstance(value, float) and math.isnan(value):
            raise P3OError(f"{self._place(node.start_mark)}: {text} is no setting; write a number")
        return value

    def _expect_tag(self, node: yaml.Node, kind: str) -> None:
        if node.tag != _TAG + kind:
            raise P3OError(f"{self._place(node.start_mark)}: the tag {node.tag} is not read; remove it")

    def _place(self, mark: Any) -> str:
        return f"{self.source}:{mark.line + 1}" if self.has_lines and mark is not None else self.source


_DEEPEST = 32
_MOST_BITS = 64
_TAG = "tag:yaml.org,2002:"
# The core schema of YAML 1.2.2, section 10.3.2: kind, pattern, first characters.
_CORE_SCHEMA = (
    ("null", r"(?:~|null|Null|NULL|)\Z", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", list("tTfF")),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z", list("-+.0123456789")),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z", list("-+.")),
)
_CONVERT: dict[str, Callable[[str], Any]] = {
    "null": lambda _: None,
    "bool": lambda text: text.lower() == "true",
    "int": lambda text: int(text, 0) if text.startswith(("0o", "0x")) else int(text),
    "float": lambda text: float(re.sub(r"\.(?=[in])", "", text.lower())),
    "str": str,
}


class _CoreLoader(yaml.SafeLoader):
    """PyYAML's parser with the core schema's plain values and without aliases, which could repeat a value endlessly."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (this is how PyYAML wants it)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not read here; write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


class _CoreDumper(yaml.SafeDumper):
    """Quotes the texts that the core schema would read as something else."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (this is how PyYAML wants it)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (PyYAML's signature)
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # What YAML takes for line breaks survives between double quotes only, even in a key.
    style = '"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None
    return dumper.represent_scalar(_TAG + "str", text, style=style)


_CoreDumper.add_representer(str, _represent_text)

for _kind, _pattern, _first in _CORE_SCHEMA:
    for _tool in (_CoreLoader, _CoreDumper):
        _tool.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)


def _dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)


def _known_keys(schema: type[BaseModel], path: KeyPath) -> list[str]:
    """The keys that the schema allows at a place."""
    models = [schema]
    for part in path:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        # A part that is no field is a place in a list or a key of a table: the models are the ones it holds.
        models = [model for field in fields for model in models_in(field.annotation)] if fields else models
    return list(dict.fromkeys(name for model in models for name in model.model_fields))
