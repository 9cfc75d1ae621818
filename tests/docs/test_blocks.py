"""Every command and every block of code of the README, the docs and the examples does what its page says.

Blocks run in the order of their page, in a folder with a tiny model and small files of the names that the pages use. What
cannot run here carries a comment with the reason, ``<!-- not run: … -->``, and is parsed: the options of a command by the
command line's own parser. ``NOT_RUN`` lists them all.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.pages import NAMES, blocks, commands, inline_commands
from tests.docs.place import furnish
from tests.docs.runner import LONG, Reader, check_command, is_long, split_environment
from tests.feedback.judge.server import prefer_longer, server
from tests.report.synthetic_run import write_run

from p3o.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NOT_RUN: dict[str, list[str]] = {
    "docs/algorithms/index.md": ["trains 20 runs for several minutes"],
    "docs/asynchrony.md": ["needs a vLLM server and SmolLM2"],
    "docs/howto.md": [
        "there are no labels until somebody has clicked; tests/labeling and tests/stages do the round",
        "needs a GPU",
        "needs a GPU",
        "needs several GPUs or hosts",
        "nothing is interrupted here; tests/test_pipeline.py kills runs and resumes them",
    ],
    "docs/rewards_service.md": [
        "serves until it is stopped; tests/feedback/remote/test_runs.py does the round",
        "needs vLLM",
    ],
    "docs/scale.md": [
        "starts processes; tests/distributed/test_torchrun.py does",
        "needs two hosts",
        "starts a Ray cluster; tests/scale/test_ray.py does",
    ],
    "docs/scale_vllm.md": [
        "needs vLLM and a GPU",
        "needs vLLM in an environment of its own; tests/rollouts/test_vllm.py starts such a server",
    ],
    "docs/verl.md": ["needs verl and GPUs"],
    "docs/reproducing.md": ["needs a GPU, the hub and hours", "needs eight large GPUs and days"],
    "examples/hh/README.md": ["needs a GPU, the hub and hours"],
    "examples/judge_feedback/README.md": [
        "serves until it is stopped; tests/test_examples.py runs it",
        "needs the server of the block before; tests/test_examples.py runs both",
    ],
    "examples/labelling/README.md": [
        "serves until it is stopped; tests/test_examples.py runs both",
        "needs the links of the server",
    ],
    "examples/tldr/README.md": ["needs a GPU, the hub and hours"],
    "examples/smollm2/README.md": ["fetches a model of 100 MB from PyPI and trains it for 42 minutes"],
}
"""Reasons of the blocks that are parsed only, by page."""


LONG_PAGES = (
    "README.md",
    "docs/howto.md",
    *(f"examples/{name}/README.md" for name in ("hh", "labelling", "sentiment", "tldr")),
)
"""More than ten seconds."""


@pytest.fixture(scope="module")
def run_of_old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "finished", shift=True)


@pytest.fixture
def reader(name: str, tmp_path: Path, run_of_old: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    furnish(tmp_path, name, run_of_old)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("COLUMNS", "200")
    modules, path = set(sys.modules), list(sys.path)
    with server(lambda question, _: prefer_longer(question)) as (address, _):
        yield Reader(tmp_path, address)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]  # another page's functions may have the same name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG_PAGES else name for name in NAMES]
)
def test_the_blocks_of_a_page_work_in_their_order(name: str, reader: Reader) -> None:
    for block in blocks(name):
        reader.follow(block)


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_the_text_are_commands(name: str) -> None:
    for command in inline_commands(name):
        words = next(commands(command.replace(" …", "")))
        if len(words) > 2 or "--" in command:
            check_command(words)


def test_what_is_not_run_is_listed_with_its_reason() -> None:
    found = {name: [block.not_run for block in blocks(name) if block.not_run] for name in NAMES}
    assert {name: reasons for name, reasons in found.items() if reasons} == NOT_RUN


def _long_commands() -> list[tuple[str, ...]]:
    found = set()
    for name in NAMES:
        for block in blocks(name):
            if block.language == "sh" and not block.not_run:
                for words in commands(block.text):
                    _, (program, *arguments) = split_environment(words)
                    if program == "p3o" and is_long(arguments):
                        found.add(tuple(arguments))
    return sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [one for one in _long_commands() if LONG.get(one[:1]) is not None], ids=" ".join)
def test_long_commands_cut_down(arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, *(LONG[arguments[:1]] or ())]) == 0
