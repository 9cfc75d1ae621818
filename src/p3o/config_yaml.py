"""Configuration files as YAML 1.2.2's core schema has them: plain values, each with the line it stands on, and back.

PyYAML reads YAML 1.1, where `no` is false and `1e-6` is a text; its parser is kept, its idea of plain values is not.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import yaml

from p3o.errors import P3OError, shorten

KeyPath = tuple[str | int, ...]
"""Keys and places in lists, from the root."""

DEEPEST = 32
"""Levels of a configuration."""

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


@dataclass(frozen=True)
class YamlReader:
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
        if len(path) > DEEPEST:
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
                raise P3OError(f"{place}: the key {shorten(key_node.value)} is not a text; write the name of a setting")
            if key in values:
                raise P3OError(f"{place}: '{dotted((*path, key))}' is given twice; keep one")
            places[(*path, key)] = place
            values[key] = self._value(value_node, places, (*path, key))
        return values

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix(_TAG)
        try:
            value = _CONVERT[kind](text)
        except KeyError as error:
            raise P3OError(f"{self._place(node.start_mark)}: the tag {node.tag} is not supported; remove it") from error
        except ValueError as error:
            raise P3OError(f"{self._place(node.start_mark)}: {shorten(text)} is not a valid {kind}") from error
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise P3OError(f"{self._place(node.start_mark)}: {shorten(text)} is too large for a setting")
        if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
            raise P3OError(f"{self._place(node.start_mark)}: {shorten(text)} holds half of a surrogate pair; remove it")
        if isinstance(value, float) and math.isnan(value):
            raise P3OError(f"{self._place(node.start_mark)}: {text} is not a valid value; write a finite number")
        return value

    def _expect_tag(self, node: yaml.Node, kind: str) -> None:
        if node.tag != _TAG + kind:
            raise P3OError(f"{self._place(node.start_mark)}: the tag {node.tag} is not supported; remove it")

    def _place(self, mark: Any) -> str:
        return f"{self.source}:{mark.line + 1}" if self.has_lines and mark is not None else self.source


class _CoreLoader(yaml.SafeLoader):
    """PyYAML's parser with the core schema's plain values and without aliases, which could repeat a value endlessly."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (this is how PyYAML wants it)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not supported; write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


class CoreDumper(yaml.SafeDumper):
    """Quotes the texts that the core schema would read as something else."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (this is how PyYAML wants it)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (PyYAML's signature)
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # What YAML takes for line breaks survives between double quotes only, even in a key.
    style = '"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None
    return dumper.represent_scalar(_TAG + "str", text, style=style)


CoreDumper.add_representer(str, _represent_text)

for _kind, _pattern, _first in _CORE_SCHEMA:
    for _tool in (_CoreLoader, CoreDumper):
        _tool.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)


def dotted(path: KeyPath) -> str:
    """A path as settings are named: rl.training.steps."""
    return ".".join(str(part) for part in path)
