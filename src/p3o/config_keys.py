"""Every key of a configuration's schema: its place, type, default and description, read off the pydantic models.

What is written for the user (`p3o init`, `--help-all`) comes from here and cannot go stale. Knows nothing of this package's
settings.
"""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

TABLE_KEY = "NAME"
"""Stands in a path for a name of the user's choice."""

_PLAIN_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
_BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


@dataclass(frozen=True)
class Key:
    """One key of the schema.

    Attributes:
        path: the keys down to it; ``TABLE_KEY`` stands for any name.
        kind: "value", "section" (keys below it), or "table" (named sections below it).
        type: of the value, in words, with its bounds.
        required: whether it has no default.
        default: as a JSON value; None if there is none.
        description: the schema's own, or for a section the first line of its class's docstring.
    """

    path: tuple[str, ...]
    kind: Literal["value", "section", "table"]
    type: str
    required: bool
    default: Any
    description: str

    @property
    def dotted(self) -> str:
        """The path as ``--set`` takes it."""
        return ".".join(self.path)


def schema_keys(schema: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Key]:
    """The keys of a schema in the order of their definition, each section before what is in it."""
    for name, field in schema.model_fields.items():
        here = (*path, name)
        models = models_in(field.annotation)
        is_table = bool(models) and _holds(field.annotation, dict)
        kind: Literal["value", "section", "table"] = "table" if is_table else "section" if models else "value"
        default = field.get_default(call_default_factory=True)
        yield Key(
            path=here,
            kind=kind,
            type="section" if kind == "section" else "named sections" if is_table else type_in_words(field),
            required=default is PydanticUndefined,
            default=None if default is PydanticUndefined else to_jsonable_python(default),
            description=field.description or _first_line(models),
        )
        for model in models:
            yield from schema_keys(model, (*here, TABLE_KEY) if is_table else here)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models inside a type such as ``list[A | B] | None``."""
    if arguments := get_args(annotation):
        return [model for argument in arguments for model in models_in(argument)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def type_in_words(field: FieldInfo) -> str:
    """What may stand there: "integer > 0 or null", "constant, linear or cosine"."""
    bounds = [
        f"{sign} {getattr(constraint, name):g}"
        for constraint in field.metadata
        for name, sign in _BOUNDS.items()
        if getattr(constraint, name, None) is not None
    ]
    first, *others = _alternatives(field.annotation)
    return " or ".join([" ".join([first, " and ".join(bounds)]).strip(), *others])


def _alternatives(annotation: Any) -> list[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _alternatives(arguments[0])
    if origin is Literal:
        return [", ".join(map(str, arguments))]
    if origin in (Union, types.UnionType):
        return [word for argument in arguments for word in _alternatives(argument)]
    if origin in (list, tuple):
        inner = next(iter(arguments), Any)
        return [f"list of {_alternatives(inner)[0]}"]
    if origin is dict or annotation is dict:
        return ["key: value pairs"]
    return [_PLAIN_NAMES.get(annotation, getattr(annotation, "__name__", "value").lower())]


def _holds(annotation: Any, kind: type) -> bool:
    return get_origin(annotation) is kind or any(_holds(argument, kind) for argument in get_args(annotation))


def _first_line(models: list[type[BaseModel]]) -> str:
    text = (models[0].__doc__ or "").strip() if models else ""
    return text.splitlines()[0] if text else ""
