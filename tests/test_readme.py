"""What the README shows works as printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from p3o.algorithms import ALGORITHMS
from p3o.config import RunConfig
from p3o.config_loading import load_config
from p3o.data.embedded.language import build_model, build_tokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found
    return found.group(1)


def test_the_python_example_runs_as_printed(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "demo" / "sft"
    tokenizer = build_tokenizer()
    build_model(tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    done = subprocess.run(
        [sys.executable, "-c", block("python")], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("'reward':") == 3


def test_the_configuration_loads(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(block("yaml"), encoding="utf-8")
    config = load_config(path, [], RunConfig)
    assert list(config.rl.runs) == ["p3o_v2", "ppo"]


@pytest.mark.parametrize(("file", "name"), [("config", "smollm2"), ("chat", "smollm2-chat")])
def test_the_examples_configurations_load(file: str, name: str) -> None:
    assert load_config(ROOT / "examples" / "smollm2" / f"{file}.yaml", [], RunConfig).name == name


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_named(name: str) -> None:
    assert f"`{name}`" in README


def test_every_file_that_is_linked_is_there() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


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
