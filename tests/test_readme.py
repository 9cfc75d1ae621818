"""What the README says of the package is so; its commands and links are tested in ``tests/docs``."""

import re
from pathlib import Path

import pytest

from p3o.algorithms import ALGORITHMS
from p3o.config import RunConfig
from p3o.config_loading import load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found
    return found.group(1)


def test_the_configuration_has_the_runs_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(block("yaml"), encoding="utf-8")
    assert list(load_config(path, [], RunConfig).rl.runs) == ["p3o_v2", "ppo"]


@pytest.mark.parametrize(("file", "name"), [("config", "smollm2"), ("chat", "smollm2-chat")])
def test_the_examples_configurations_load(file: str, name: str) -> None:
    assert load_config(ROOT / "examples" / "smollm2" / f"{file}.yaml", [], RunConfig).name == name


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_named(name: str) -> None:
    assert f"`{name}`" in README


def test_every_file_in_the_tree_is_there() -> None:
    tree = README.split("## The tree")[1]
    for name in re.findall(r"[\w/]+\.py", tree):
        assert list((ROOT / "src" / "p3o").rglob(name)), name


def test_its_first_lines_say_which_p3o_this_is() -> None:
    """Two other methods have the name: Policy-on Policy-off (2019) and one by effective sample sizes (2026)."""
    first = " ".join(README.splitlines()[:6])
    assert "Pairwise Proximal Policy Optimization" in first
    assert "arXiv:2310.00212" in first
    assert re.search(r"not Policy-on Policy-off[^)]*2019[^)]*ESS-based", first)
