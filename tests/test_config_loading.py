"""Mistakes in a configuration are told with their line; what is dumped loads back equal."""

from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from p3o.config_loading import dump_config, load_config
from p3o.errors import P3OError


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Training(Section):
    learning_rate: float = Field(1e-3, gt=0)
    steps: int = Field(10, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)


class Algorithm(Section):
    name: Literal["p3o_v1", "p3o_v2"] = "p3o_v2"
    epsilon: float = 0.2


class Run(Section):
    algorithm: Algorithm = Algorithm()
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def buildable(self) -> "Run":
        Training(**self.settings)
        return self


class Config(Section):
    seed: int = Field(0, ge=0)
    model: Path | None = None
    note: str = ""
    fast: bool = False
    sft: Training | None = None
    runs: list[Run] = Field(default_factory=list)
    named: dict[str, Algorithm] = Field(default_factory=dict)

    @model_validator(mode="after")
    def has_work(self) -> "Config":
        if self.fast and self.sft is None:
            raise ValueError("fast needs a section sft")
        return self


def load(tmp_path: Path, text: str | bytes, *overrides: str) -> Config:
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(path, overrides, Config)


def test_loads_what_yaml_1_2_says(tmp_path: Path) -> None:
    text = "seed: 0x10\nmodel: models/tiny\nnote: no\nsft: {learning_rate: 3e-6, betas: [.9, 1]}\nruns:\n- {}\n"
    assert load(tmp_path, text) == Config(
        seed=16,
        model=Path("models/tiny"),
        note="no",
        sft=Training(learning_rate=3e-6, betas=(0.9, 1.0)),
        runs=[Run()],
    )


def test_no_file_gives_the_defaults() -> None:
    assert load_config(None, [], Config) == Config()


def test_overrides(tmp_path: Path) -> None:
    text = "seed: 1\nsft:\nruns:\n- {algorithm: {epsilon: .1}}\n- {}\n"
    overrides = ["seed=2", "seed = 3", "sft.steps=7", "runs.1.algorithm.name=p3o_v1", "note='a=b: c'", "named={x: {}}"]
    assert load(tmp_path, text, *overrides) == Config(
        seed=3,
        note="a=b: c",
        sft=Training(steps=7),
        runs=[Run(algorithm=Algorithm(epsilon=0.1)), Run(algorithm=Algorithm(name="p3o_v1"))],
        named={"x": Algorithm()},
    )
    assert load(tmp_path, "sft: {steps: 3}\n", "sft=null").sft is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 1\nsft:\n  lerning_rate: 1\n", ":3: unknown key 'sft.lerning_rate'; did you mean 'learning_rate'?"),
        ("seed: 1\n\nxyz: 1\n", ":3: unknown key 'xyz'; known are seed, model, note, fast, sft, runs, named"),
        (
            "runs:\n- {}\n- algorithm:\n    epsilom: 1\n",
            ":4: unknown key 'runs.1.algorithm.epsilom'; did you mean 'epsilon'?",
        ),
        ("named:\n  a:\n    nam: 1\n", ":3: unknown key 'named.a.nam'; did you mean 'name'?"),
        ("sft:\n  learning_rate: -1\n", ":2: 'sft.learning_rate' should be greater than 0; given -1"),
        ("sft:\n  steps: many\n", ":2: 'sft.steps' should be a valid integer; given 'many'"),
        ("sft:\n  steps: '10'\n", ":2: 'sft.steps' should be a valid integer; given '10'"),
        ("sft:\n  steps: 10.0\n", ":2: 'sft.steps' should be a valid integer; given 10.0"),
        ("seed: true\n", ":1: 'seed' should be a valid integer; given True"),
        ("fast: yes\nsft: {}\n", ":1: 'fast' should be a valid boolean; given 'yes'"),
        ("sft:\n  betas: [.9]\n", ":2: 'sft.betas.1' is missing and has no default; add it"),
        ("sft:\n  betas:\n  - .9\n  - x\n", ":4: 'sft.betas.1' should be a valid number; given 'x'"),
        (
            "runs:\n- algorithm:\n    name: p3o\n",
            ":3: 'runs.0.algorithm.name' should be 'p3o_v1' or 'p3o_v2'; given 'p3o'",
        ),
        ("sft: 3\n", ":1: 'sft' should be an object"),
        ("runs:\n- settings:\n    steps: -5\n", ":3: 'runs.0.settings.steps' should be greater than 0; given -5"),
        ("runs:\n- settings:\n    stepz: 5\n", ":3: unknown key 'runs.0.settings.stepz'; remove it"),
        ("fast: true\n", ": fast needs a section sft"),
        ("seed: 1\nnote: a\nseed: 2\n", ":3: 'seed' is given twice; keep one"),
        ("sft:\n  steps: 1\n  steps: 1\n", ":3: 'sft.steps' is given twice"),
        ("seed: 1\n1: 2\n", ":2: the key '1' is not a text"),
        ("? [a]\n: 1\n", ":1: the key"),
        ("- seed\n", ": contains ['seed']; a configuration consists of lines of the form key: value"),
        ("just words\n", ": contains 'just words'; a configuration consists of lines"),
        ("", ": has no settings"),
        ("# nothing\n", ": has no settings"),
        ("seed: [1\n", ":2: cannot be read as YAML: expected ',' or ']'"),
        ("seed: 1\n\tnote: a\n", ":2: cannot be read as YAML: found character '\\t'"),
        ("seed: 1\n---\nseed: 2\n", ":2: cannot be read as YAML: but found another document"),
        ("seed: &a 1\nnote: *a\n", ":2: cannot be read as YAML: aliases are not supported; write the value out"),
        (
            "note: !!python/object/apply:os.getcwd []\n",
            ":1: the tag tag:yaml.org,2002:python/object/apply:os.getcwd is not supported",
        ),
        ("note: !secret x\n", ":1: the tag !secret is not supported"),
        ("note: !!binary aGk=\n", ":1: the tag tag:yaml.org,2002:binary is not supported"),
        ("seed: !!int x\n", ":1: 'x' is not a valid int"),
        ('note: "\\ud800"\n', ":1: '\\ud800' holds half of a surrogate pair"),
        ("sft:\n  learning_rate: .nan\n", ":2: .nan is not a valid value; write a finite number"),
        ("note: a\0b\n", "cannot be read as YAML: unacceptable character #x0000"),
        (b"seed: 1\nnote: caf\xe9\n", ":2: not UTF-8; save the file as UTF-8"),
        ("seed: " + "[" * 5000, "nested too deeply"),
        ("seed: " + "{a: " * 40 + "1" + "}" * 40, ":1: nested too deeply"),
        ("seed: " + "9" * 5000, "is not a valid int"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str | bytes, told: str) -> None:
    with pytest.raises(P3OError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'run.yaml'}:")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "sft.lerning_rate=1",
            "--set sft.lerning_rate=1: unknown key 'sft.lerning_rate'; did you mean 'learning_rate'?",
        ),
        ("sft.steps=-1", "--set sft.steps=-1: 'sft.steps' should be greater than 0; given -1"),
        ("sft={steps: -1}", "--set sft={steps: -1}: 'sft.steps' should be greater than 0; given -1"),
        ("seed", "--set seed: must have the form key=value"),
        ("=1", "--set =1: must have the form key=value"),
        ("sft..steps=1", "must have the form key=value"),
        ("seed.x=1", "'seed' is 1, which has no keys below it"),
        ("runs.x=1", "'runs' is a list of 1; select an element by its number, counted from 0"),
        ("runs.1={}", "'runs' is a list of 1; select an element by its number"),
        ("runs.\u00b2={}", "'runs' is a list of 1; select an element by its number"),
        ("seed=[1", "--set seed=[1: cannot be read as YAML"),
        ("note=\ud800", "cannot be read as YAML"),
        (".".join("a" * 5000) + "=1", "nested too deeply"),
    ],
)
def test_a_mistake_in_an_override_names_it(tmp_path: Path, override: str, told: str) -> None:
    with pytest.raises(P3OError) as caught:
        load(tmp_path, "seed: 1\nruns: [{}]\n", override)
    assert told in str(caught.value)


def test_every_mistake_has_a_line_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(P3OError) as caught:
        load(tmp_path, "seed: -1\nsft:\n  steps: 0\n", "nota=1")
    path = tmp_path / "run.yaml"
    assert str(caught.value).splitlines() == [
        f"{path}:1: 'seed' should be greater than or equal to 0; given -1",
        f"{path}:3: 'sft.steps' should be greater than 0; given 0",
        "--set nota=1: unknown key 'nota'; did you mean 'note'?",
    ]


def test_an_override_takes_the_place_of_a_wrong_value(tmp_path: Path) -> None:
    assert load(tmp_path, "seed: -1\n", "seed=4").seed == 4


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(P3OError, match="cannot be read: no such file"):
        load_config(tmp_path / "none.yaml", [], Config)
    with pytest.raises(P3OError, match="cannot be read: it is a folder"):
        load_config(tmp_path, [], Config)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    note=TEXTS
    | st.sampled_from(["1e3", "0o7", "no", "null", "~", ".inf", "<<", "=", "2001-01-01", "a: b", "- a", "#"]),
    rate=st.floats(min_value=0, exclude_min=True, allow_nan=False),
    betas=st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)),
    seed=st.integers(0, 2**64 - 1),
    key=TEXTS,
)
@example(note="\x85\u2028\ufeff\x7f", rate=1e-06, betas=(float("inf"), -0.0), seed=0, key="")
def test_what_is_dumped_loads_back_equal(
    tmp_path: Path, note: str, rate: float, betas: tuple[float, float], seed: int, key: str
) -> None:
    config = Config(
        seed=seed,
        note=note,
        sft=Training(learning_rate=rate, betas=betas),
        runs=[Run(), Run()],
        named={key: Algorithm()},
    )
    assert load(tmp_path, dump_config(config)) == config


PIECES = [
    *":-[]{}#&*!|>'\"%@`,? \n\t\\0xe.+~",
    "<<",
    "!!",
    "---",
    "...",
    "\ud800",
    "\0",
    "null",
    "seed",
    "1e3",
    "\x85",
]


def test_any_damage_is_read_or_told() -> None:
    whole = "sft: {learning_rate: 1e-3, betas: [0.9, 1]}\nruns:\n- algorithm:\n    name: 'p3o_v1'\nnote: |\n  text\nseed: 3\n"
    random, read = Random(0), 0
    for _ in range(2000):
        start = random.randrange(len(whole))
        damaged = whole[:start] + random.choice(PIECES) + whole[start + random.choice((0, 1, 1, 5, 40)) :]
        key, _, value = damaged.replace("\n", " ").partition(" ")
        try:
            load_config(
                None, [f"named={{x: {damaged}}}", f"{key}={value}", f"note={damaged}"][: random.randrange(1, 4)], Config
            )
            read += 1
        except P3OError as error:
            told = str(error)
            assert told.startswith("--set "), damaged
    assert read < 2000
