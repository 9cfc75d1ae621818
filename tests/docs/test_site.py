"""What docs/site makes of the pages: equations that Markdown leaves alone, links that hold, tables of what the code has."""

import importlib
import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch
import yaml
from tests.docs.pages import ROOT

from p3o.algorithms import ALGORITHMS, make_algorithm
from p3o.config import RunConfig
from p3o.config_keys import schema_keys
from p3o.data.embedded.language import build_model, build_tokenizer
from p3o.functional.mismatch import Correction, mismatch
from p3o.models.heads import Critic
from p3o.models.language import frozen_copy
from p3o.training.online import OnlineConfig, OnlineTrainer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def module(name: str) -> ModuleType:
    sys.path.insert(0, str(ROOT / "docs" / "site"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


tables = module("tables")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_its_page_with_settings_metrics_and_a_picture(name: str) -> None:
    page = (ROOT / "docs" / "algorithms" / f"{name}.md").read_text(encoding="utf-8")
    assert f"<!-- settings: {name} -->" in page
    assert f"<!-- metrics: {name} -->" in page
    assert f"<!-- curves: {name} -->" in page
    assert tables.curves_table(name).count("\n") == 3
    picture = ROOT / "docs" / "algorithms" / f"{name}.svg"
    assert f"]({picture.name})" in page
    assert picture.stat().st_size < 60_000


@pytest.mark.parametrize("name", ALGORITHMS)
def test_tables_have_every_setting_and_every_metric(name: str) -> None:
    settings = tables.settings_table(name)
    for key in schema_keys(ALGORITHMS[name].config):
        assert f"| `{key.dotted}` |" in settings
        assert f"| `{json.dumps(key.default)}` |" in settings
    logged = re.findall(r"^\| `(\w+)`", tables.metrics_table(name), re.MULTILINE)
    assert logged == tables.metrics_of(name)


@pytest.mark.parametrize(
    ("page", "section", "written"),
    [("scale.md", "parallel.", "parallel."), ("scale.md", "engine.", "engine."), ("scale_vllm.md", "rl.rollout.", "")],
)
def test_tables_of_settings_have_the_keys_and_defaults_of_the_schema(page: str, section: str, written: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").split("\n| key | default |")
    rows = [
        row
        for table in text[1:]
        for row in re.findall(r"^\| `([\w.]+)` \| `?(.*?)`? \|", table.split("\n\n")[0], re.MULTILINE)
    ]
    found = {name: yaml.safe_load(default) for name, default in rows if name.startswith(written)}
    keys = [key for key in schema_keys(RunConfig) if key.dotted.startswith(section)]
    assert keys
    assert found == {written + key.dotted.removeprefix(section): key.default for key in keys}


def test_the_settings_of_a_reward_service_are_those_of_the_schema() -> None:
    page = (ROOT / "docs" / "rewards_service.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(reward:\n  service:\n.*?)```", page, re.DOTALL)
    assert block
    keys = {key.dotted.removeprefix("reward.service."): key.default for key in schema_keys(RunConfig)}
    shown = yaml.safe_load(block[1])["reward"]["service"]
    assert {name: keys[name] for name in shown if name != "url"} == {n: v for n, v in shown.items() if n != "url"}
    assert set(shown) == {
        key.dotted.split(".")[2] for key in schema_keys(RunConfig) if key.dotted.startswith("reward.service.")
    }


@pytest.mark.parametrize("name", ["p3o_v2", "ppo"])
def test_every_metric_of_a_step_is_explained(name: str) -> None:
    """What the loop adds to the loss's own, by doing a step."""
    tokenizer = build_tokenizer()
    policy = build_model(tokenizer, seed=0).eval()
    algorithm = make_algorithm(name)
    trainer = OnlineTrainer(
        policy,
        frozen_copy(policy),
        tokenizer,
        algorithm,
        lambda prompts, responses: [float(len(response)) for response in responses],
        ["Human: How do I bake bread?\n\nAssistant:", "Human: How do I brew tea?\n\nAssistant:"],
        OnlineConfig(steps=1, prompts_per_step=2, max_new_tokens=6, kl_target=1.0),
        seed=0,
        critic=Critic(build_model(tokenizer, seed=0).model) if algorithm.needs_critic else None,
    )
    assert set(trainer.step()) <= set(tables.explanations())


def test_metrics_of_late_groups_are_explained() -> None:
    tokenizer = build_tokenizer()
    policy = build_model(tokenizer, seed=0).eval()
    trainer = OnlineTrainer(
        policy,
        frozen_copy(policy),
        tokenizer,
        make_algorithm("p3o_v2"),
        lambda prompts, responses: [float(len(response)) for response in responses],
        ["Human: How do I bake bread?\n\nAssistant:", "Human: How do I brew tea?\n\nAssistant:"],
        OnlineConfig(steps=2, prompts_per_step=2, max_new_tokens=6, max_staleness=1),
        seed=0,
    )
    trainer.step()
    metrics = trainer.step()
    assert metrics["staleness"] == 1
    assert {"moved_since_sampling", *metrics} <= set(tables.explanations())


def test_metrics_of_vllm_servers_are_explained() -> None:
    """What they are called where they are counted; ``tests/rollouts`` sees them in steps."""
    experience = [torch.zeros(2, 2, 3), torch.zeros(2, 2, 3), torch.ones(2, 2, 3, dtype=torch.bool)]
    logged = set(mismatch(*experience, Correction("truncate", 2.0, 3.0)).metrics)
    told, counted = set[str](), set[str]()
    for file in ("fleet", "sampler"):
        source = (ROOT / "src" / "p3o" / "rollouts" / f"{file}.py").read_text(encoding="utf-8")
        told |= set(re.findall(r'self\.told\["(\w+)"\]', source))
        counted |= set(re.findall(r'"(\w+)"', source.split("def take_metrics")[1].split("def ")[0]))
    assert min(len(logged), len(told), len(counted)) >= 3
    assert logged | told | counted <= set(tables.explanations())


def test_equations_are_well_formed_and_inert() -> None:
    build = module("build")
    for path in sorted((ROOT / "docs").rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        for latex in [*build._INLINE.findall(text), *build._DISPLAY.findall(text)]:
            made = build.mathml(latex, display=True)
            ElementTree.fromstring(made)
            assert not re.search(r">[^<]*[*_`\[\]\\][^<]*<", made), f"{path.name}: {latex}"


def test_links_are_moved_to_where_the_site_has_their_targets(tmp_path: Path) -> None:
    build = module("build")
    site = build.Site(tmp_path)
    page = ROOT / "docs" / "algorithms" / "index.md"
    assert site.link("../../examples/custom_algorithm.py", page) == "../examples/custom_algorithm.md"
    assert site.link("../frontier.md#results", page) == "../frontier.md#results"
    assert site.link("https://arxiv.org/abs/2310.00212", page) == "https://arxiv.org/abs/2310.00212"
    assert (tmp_path / "examples" / "custom_algorithm.md").read_text().startswith("# custom_algorithm.py")
    with pytest.raises(FileNotFoundError):
        site.link("nowhere.md", page)


def test_every_page_is_in_the_navigation_and_every_entry_is_there(tmp_path: Path) -> None:
    module("build").Site(tmp_path).build()
    with (ROOT / "zensical.toml").open("rb") as file:
        sections = tomllib.load(file)["project"]["nav"]
    entries = [page for section in sections for group in section.values() for entry in group for page in entry.values()]
    assert len(entries) == len(set(entries))
    assert [page for page in entries if not (tmp_path / page).is_file()] == []
    pages = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.md")}
    # The reference is reached from its index, programs from the pages that name them.
    elsewhere = ("api/", "benchmarks/", "examples/")
    assert {page for page in pages - set(entries) if not page.startswith(elsewhere)} == set()


def test_dotted_names_lead_to_their_docstrings(tmp_path: Path) -> None:
    site = module("build").Site(tmp_path)
    name = "p3o.algorithms.p3o.p3o_joint_clip_loss"
    assert site.reference(name, ROOT / "docs" / "method.md") == f"[`{name}`](api/algorithms.md#{name})"
    assert site.reference("p3o.no.such_name", ROOT / "docs" / "method.md") == "`p3o.no.such_name`"


def test_every_dotted_name_of_a_function_on_the_pages_is_there() -> None:
    for path in sorted((ROOT / "docs").rglob("*.md")):
        for name in re.findall(r"`(p3o(?:\.\w+)+)`", path.read_text(encoding="utf-8")):
            owner, _, last = name.rpartition(".")
            try:
                importlib.import_module(name)
            except ModuleNotFoundError:
                assert hasattr(importlib.import_module(owner), last), f"{path.name}: {name}"
