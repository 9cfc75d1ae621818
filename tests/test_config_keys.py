"""Keys read off a schema: paths, types in words, defaults, descriptions."""

from typing import Literal

from pydantic import BaseModel, Field

from p3o.config_keys import schema_keys


class Leaf(BaseModel):
    """Settings of a leaf.

    More of it.
    """

    size: int = Field(3, gt=0, le=9, description="How large.")
    shape: Literal["round", "flat"] | None = None


class Tree(BaseModel):
    leaf: Leaf = Leaf()
    named: dict[str, Leaf] = Field(default_factory=dict, description="Leaves by name.")
    spare: Leaf | None = Field(None, description="One more.")
    rates: tuple[float, ...] = (0.5,)
    free: dict[str, int] = Field(default_factory=dict)
    name: str = Field(description="Of the tree.")


def test_every_key_with_its_section_first() -> None:
    keys = {key.dotted: key for key in schema_keys(Tree)}
    assert list(keys) == [
        "leaf", "leaf.size", "leaf.shape", "named", "named.NAME.size", "named.NAME.shape", "spare", "spare.size",
        "spare.shape", "rates", "free", "name",
    ]  # fmt: skip
    assert {name: key.kind for name, key in keys.items() if key.kind != "value"} == {
        "leaf": "section",
        "named": "table",
        "spare": "section",
    }


def test_types_defaults_and_descriptions() -> None:
    keys = {key.dotted: key for key in schema_keys(Tree)}
    assert keys["leaf.size"].type == "integer > 0 and ≤ 9"
    assert keys["leaf.shape"].type == "round, flat or null"
    assert keys["rates"].type == "list of number"
    assert keys["free"].type == "key: value pairs"
    assert (keys["leaf.size"].default, keys["rates"].default, keys["leaf.size"].required) == (3, [0.5], False)
    assert (keys["name"].default, keys["name"].required) == (None, True)
    assert keys["leaf"].description == "Settings of a leaf."
    assert keys["spare"].description == "One more."
