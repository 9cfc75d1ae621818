"""Runs the blocks of a page as a reader would, in a folder that ``place`` has furnished.

Commands run as printed, with three differences that stand here in the open: trainings are cut to a few steps (``SHORTER``), a
server's address becomes that of a fake one on loopback, and what takes minutes even then runs once for all pages (``LONG``).
"""

import importlib.util
import itertools
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import tomllib
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from tests.docs.pages import ROOT, Block, commands

from p3o.cli import main
from p3o.cli.app import app
from p3o.config import RunConfig, RunOverrides
from p3o.config_loading import load_config
from p3o.data.formats import kind_of_columns, parse
from p3o.errors import P3OError
from p3o.feedback.judge import JudgeConfig

_RL = ("rl.training.steps=2", "rl.training.prompts_per_step=2", "rl.training.max_new_tokens=8")
_EVALUATION = ("evaluation.prompts=4", "evaluation.every=1", "evaluation.best_of=[]")
SHORTER = {
    "sft": ("sft.steps=2", "sft.batch_size=4"),
    "sample": ("sampling.prompts=6", "rl.training.max_new_tokens=8"),
    "reward": ("reward.train.steps=2", "reward.train.batch_size=4"),
    "rl": (*_RL, *_EVALUATION),
    "evaluate": (*_EVALUATION, "rl.training.max_new_tokens=8"),
    "run": (*_RL, *_EVALUATION, "reward.train.steps=2", "reward.train.batch_size=4"),
}
"""Settings that are added to the stages' commands; --set has the last word."""

LONG = {
    ("demo",): ("--quick",),
    ("gate",): None,
    ("bench",): None,
}
"""Commands of minutes to hours: what makes them short enough for a slow test, or None: their own tests run them cut down."""

ENDING = (
    "init",
    "doctor",
    "data",
    "run",
    "sft",
    "sample",
    "reward",
    "rl",
    "evaluate",
    "judge",
    "report",
    "samples",
    "label",
)
"""Commands that come to an end by themselves; others, servers for instance, are parsed only."""

MEASURES = ("-m benchmarks.", "benchmarks/")
"""``python -m benchmarks.…`` measures for minutes to hours: what it is made of has tests, and its file must be there."""

ELSEWHERE = ("verl.",)
"""Modules of packages that need an environment of their own: ``python -m`` of one is not looked up."""

SERVERS = ("http://localhost:8000/v1",)


class BlockError(AssertionError):
    """A block does not do what its page says."""


def context_of(arguments: Sequence[str]) -> typer.Context:
    """What the command line's own parser makes of these arguments; nothing is invoked.

    Raises:
        typer.TyperException: for a command or an option that is not there, or a value of the wrong type.
    """
    words = list(arguments)
    command = typer.main.get_command(app)
    context = command.make_context("p3o", words, resilient_parsing=False)
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args] if hasattr(context, "_protected_args") else context.args
        if not rest:
            break
        name, found, rest = command.resolve_command(context, rest)
        command, context = found, found.make_context(name, list(rest), parent=context)
    return context


def check_command(words: Sequence[str]) -> None:
    """Parse a command without running it.

    Raises:
        BlockError: if it could not be started as it stands.
    """
    _, words = split_environment(words)
    name, *arguments = words
    if name == "p3o":
        try:
            context_of(arguments)
        except typer.Exit:
            return  # --help, --version
        except typer.TyperException as error:
            raise BlockError(f"p3o {' '.join(arguments)}: {error.format_message()}") from error
    elif name == "pip":
        _check_extras(arguments)
    elif name == "make":
        done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BlockError(f"make {' '.join(arguments)}: {done.stderr}")
    elif name == "python" and not " ".join(arguments[1:]).startswith(ELSEWHERE):
        _script(arguments)
    elif name == "torchrun":
        if "-m" not in arguments:
            raise BlockError(f"torchrun {' '.join(arguments)}: names no module")
        check_command(arguments[arguments.index("-m") + 1 :])


def split_environment(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Leading assignments of variables, and the command."""
    assigned = list(itertools.takewhile(_is_assignment, words))
    return dict(word.split("=", 1) for word in assigned), list(words[len(assigned) :])


def _is_assignment(word: str) -> bool:
    return re.match(r"[A-Z_][A-Z0-9_]*=", word) is not None


def is_long(arguments: Sequence[str]) -> bool:
    """Whether the command is one of ``LONG``."""
    return any(tuple(arguments[: len(start)]) == start for start in LONG) and "--help" not in arguments


def _check_extras(arguments: Sequence[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if arguments[:1] != ["install"]:
        raise BlockError(f"pip {' '.join(arguments)}: not an installation")
    for word in arguments:
        named = re.search(r"\[([\w,-]+)\]", word)
        for extra in named.group(1).split(",") if named else ():
            if extra not in extras:
                raise BlockError(f"pip {' '.join(arguments)}: there is no extra {extra!r}")


def _script(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The file that ``python ARGUMENTS`` runs, from the root, and its own arguments."""
    if arguments[:1] == ["-m"]:
        file = arguments[1].replace(".", "/") + ".py"
        rest = list(arguments[2:])
    else:
        file, rest = arguments[0], list(arguments[1:])
    if not (ROOT / file).is_file() and not (arguments[0] == "-m" and importlib.util.find_spec(arguments[1])):
        raise BlockError(f"python {' '.join(arguments)}: no such file")
    return file, rest


class Reader:
    """Somebody who follows a page, block after block, in one folder."""

    def __init__(self, place: Path, judge_address: str) -> None:
        self.place = place
        self.judge_address = judge_address

    def follow(self, block: Block) -> None:
        """Do what the block says, or check that it could be done where it is marked ``not run``.

        Raises:
            BlockError: if it does not work.
        """
        if block.language in ("sh", "bash", "console"):
            for words in commands(block.text):
                check_command(words)
                if not block.not_run:
                    self.run(words)
        elif block.language == "python":
            compiled = compile(block.text, str(block), "exec")
            if not block.not_run:
                exec(compiled, {"__name__": f"block_{block.line}"})
        elif block.language in ("yaml", "yml"):
            self.configure(block)
        elif block.language in ("jsonl", "json"):
            self.read_rows(block)
        elif block.language not in ("text", "math", "toml", "bibtex"):
            raise BlockError(f"{block}: a block in {block.language!r}, which nobody checks")

    def run(self, words: Sequence[str]) -> None:
        """One command."""
        environment, (name, *arguments) = split_environment(words)
        with _environment(environment):
            if name == "p3o":
                self.p3o(arguments)
            elif name == "python":
                if not " ".join(arguments).startswith(MEASURES):
                    self.python(arguments)
            elif name == "grep":
                subprocess.run(["grep", *arguments], cwd=ROOT, capture_output=True, check=True)
            elif name not in ("pip", "make"):
                raise BlockError(f"{' '.join(words)}: a command that the tests do not run; mark its block")

    def p3o(self, arguments: list[str]) -> None:
        """A command of p3o, in this process."""
        if is_long(arguments) or arguments[0] not in ENDING:
            return
        if arguments[0] == "label" and "--annotators" in arguments:
            self.serve(arguments)
            return
        arguments = self.adapt(arguments)
        self.do_before(arguments)
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        if code:
            raise BlockError(f"p3o {' '.join(arguments)}: exit code {code}")

    def adapt(self, arguments: list[str]) -> list[str]:
        """The command with a short training and a server on loopback."""
        command = arguments[0]
        adapted = [self.judge_address if word in SERVERS else word for word in arguments]
        if command == "judge" and "openai" in arguments and "--base-url" not in arguments:
            adapted += ["--base-url", self.judge_address]
        if command == "judge" and "--prompts" not in arguments:
            adapted += ["--prompts", "3"]
        if {"--dry-run", "--resume", "--help", "--help-all"}.isdisjoint(arguments):
            for setting in (*SHORTER.get(command, ()), *self.sft_of(arguments)):
                adapted += ["--set", setting]
        return adapted

    def sft_of(self, arguments: list[str]) -> tuple[str, ...]:
        """What shortens the SFT stage of a whole run, if its configuration has one."""
        if arguments[0] != "run" or "--config" not in arguments:
            return ()
        config = self.place / arguments[arguments.index("--config") + 1]
        has_sft = config.is_file() and re.search(r"^sft:", config.read_text(encoding="utf-8"), re.MULTILINE)
        return SHORTER["sft"] if has_sft else ()

    def do_before(self, arguments: list[str]) -> None:
        """What the pages take to have been done: a run that is judged or reported has been evaluated."""
        if arguments[0] not in ("judge", "report"):
            return
        for word in arguments[1:]:
            folder = self.place / word
            if re.match(r"runs/[\w-]+$", word) and folder.is_dir() and not (folder / "responses.jsonl").exists():
                self.p3o(["evaluate", "--name", folder.name])

    def serve(self, arguments: list[str]) -> None:
        """The labelling page: it answers at the links that it prints, and stops at Ctrl-C."""
        code = "import sys; from p3o.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-u", "-c", code, *arguments, "--port", "0"]
        page = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            told, links = self._links(page)
            wanted = arguments[arguments.index("--annotators") + 1].split(",")
            if set(links) != {*wanted, "admin"}:
                raise BlockError(f"p3o {' '.join(arguments)}: {told}")
            for link in links.values():
                with urllib.request.urlopen(link, timeout=30) as answer:
                    if answer.status != 200:
                        raise BlockError(f"{link}: {answer.status}")
        finally:
            page.send_signal(signal.SIGINT)
            page.communicate(timeout=60)

    def _links(self, page: subprocess.Popen[str]) -> tuple[str, dict[str, str]]:
        """What the page's command prints until it serves, and the links in it."""
        assert page.stdout is not None
        limit = threading.Timer(120, page.kill)
        limit.start()
        told = ""
        for line in page.stdout:
            told += line
            if line.startswith("serving"):
                break
        limit.cancel()
        return told, dict(re.findall(r"^(\w+): (http\S+/enter/\S+)", told, re.MULTILINE))

    def python(self, arguments: list[str]) -> None:
        """A script, in this process."""
        file, rest = _script(arguments)
        before = sys.argv
        sys.argv = [file, *rest]
        try:
            runpy.run_path(str(ROOT / file), run_name="__main__")
        except SystemExit as stop:
            if stop.code:
                raise BlockError(f"python {' '.join(arguments)}: exit code {stop.code}") from stop
        finally:
            sys.argv = before

    def configure(self, block: Block) -> None:
        """A configuration, or the settings of a judge or an RL run; if its first line names a file, it is that from now on."""
        named = re.match(r"#\s*([\w/.-]+\.ya?ml)\b", block.text)
        path = self.place / (named.group(1) if named else f"block_{block.line}.yaml")
        path.write_text(block.text, encoding="utf-8")
        schema = RunConfig
        if re.search(r"^kind:", block.text, re.MULTILINE):
            schema = JudgeConfig
        elif re.search(r"^algorithm:", block.text, re.MULTILINE):
            schema = RunOverrides
        try:
            load_config(path, [], schema)
        except P3OError as error:
            raise BlockError(f"{block}: {error}") from error

    def read_rows(self, block: Block) -> None:
        """Rows of data: ours of three kinds, pairs to be labelled, responses to be judged; or any JSON."""
        if block.language == "json":
            json.loads(block.text)
            return
        for number, line in enumerate(block.text.splitlines()):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BlockError(f"{block.page}:{block.line + number}: {error}") from error
            if {"response_a", "response_b"} <= set(row) or {"prompt", "response"} <= set(row):
                continue
            if (kind := kind_of_columns(row)) is not None:
                parse(row, kind)


@contextmanager
def _environment(changed: dict[str, str]) -> Any:
    before = dict(os.environ)
    path = list(sys.path)
    os.environ.update(changed)
    sys.path[:0] = [part for part in changed.get("PYTHONPATH", "").split(":") if part]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        sys.path[:] = path
