"""p3o label: what it prints, what it refuses, and how its parts go together."""

import hashlib
import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from p3o import cli
from p3o.data.reading import read_examples
from p3o.data.sources import SourceConfig

ROWS = [{"prompt": f"p{i}", "response_a": "good", "response_b": "bad", "id": f"id-{i}"} for i in range(4)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with pairs.jsonl and a judge that is right."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "right_judge.py").write_text(
        "def right(prompts, a, b):\n    return [float(x == 'good') - float(y == 'good') for x, y in zip(a, b)]\n"
    )
    return tmp_path


def test_a_judge_labels_and_its_labels_are_exported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["label", "--pairs", "pairs.jsonl", "--judge", "right_judge:right"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pairs.jsonl: 4 pairs, 4 of them new",
        "right_judge:right: 4 pairs labelled, 0 without a valid answer",
    ]
    assert cli.main(["label", "--judge", "right_judge:right"]) == 0
    assert capsys.readouterr().out == "right_judge:right: 0 pairs labelled, 0 without a valid answer\n"
    assert cli.main(["label", "export", "out.jsonl"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "out.jsonl: 4 preferences",
        "out.ties.jsonl: 0 ties (pairs with two bad responses included)",
        "left out: 0 skips, 0 labels of gold pairs",
    ]
    assert {
        placed.example.answers[0] for placed in read_examples(SourceConfig(path="out.jsonl"), "preferences")[0]
    } == {"good"}
    assert cli.main(["label", "import", "out.jsonl", "--store", "other.db"]) == 0
    assert (
        capsys.readouterr().out
        == "4 labels added, 0 already in the store, 4 new pairs; 0 answers in the file without a label\n"
    )
    assert cli.main(["label", "status", "--store", "other.db"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pairs: 4 of 4 with 1 label, plus 0 gold",
        "right_judge:right (imported): 4 labels",
        "history: intact, 4 valid labels, 0 withdrawn",
    ]


def test_two_functions_of_a_package_are_two_judges(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each labels every pair, under the whole name that was typed."""
    (here / "judges_of_ours").mkdir()
    (here / "right_judge.py").rename(here / "judges_of_ours" / "first.py")
    (here / "judges_of_ours" / "second.py").write_text((here / "judges_of_ours" / "first.py").read_text())
    for name in ("judges_of_ours.first:right", "judges_of_ours.second:right"):
        assert cli.main(["label", "--pairs", "pairs.jsonl", "--judge", name]) == 0
        assert f"{name}: 4 pairs labelled, 0 without a valid answer\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--store", "none.db"], "none.db: no such store; check --store, or create one with p3o label --pairs FILE"),
        (["--pairs", "none.jsonl"], "none.jsonl: cannot be read: no such file or folder"),
        (["--pairs", "pairs.jsonl", "--judge", "right_judge:wrong"], "the module has no function 'wrong'"),
        (
            ["--pairs", "pairs.jsonl", "--host", "no.such.host.invalid"],
            "no.such.host.invalid:8765: cannot listen on this address",
        ),
        (
            ["--pairs", "pairs.jsonl", "--instructions", "none.md"],
            "none.md: cannot be read: no such file or folder",
        ),
        (["--pairs", "pairs.jsonl", "--instructions", "."], ".: cannot be read: it is a folder"),
        (
            ["--judge", "right_judge:right", "--instructions", "guide.md"],
            "--instructions: they are for people on the labelling page",
        ),
        (["--pairs", "pairs.jsonl", "--overlap", "0"], "should be greater than or equal to 1"),
        (["export", "out.jsonl"], "labels.db: no such store"),
        (["import", "pairs.jsonl", "--meaning", "x=y"], "--meaning 'x=y': must be LABEL=a"),
        (["status", "--database-url", "mysql+nothing://x"], "this kind of database is not supported"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert cli.main(["label", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line


def test_pairs_that_cannot_be_read_leave_no_empty_store_behind(here: Path) -> None:
    """The next `p3o label` would serve it as if somebody had filled it."""
    assert cli.main(["label", "--pairs", "none.jsonl"]) == 2
    assert cli.main(["label", "--pairs", "pairs.jsonl", "--instructions", "none.md"]) == 2
    assert not Path("labels.db").exists()


def test_the_page_is_served_with_links_that_work_once_printed(here: Path) -> None:
    command = [sys.executable, "-u", "-m", "p3o", "label", "--store", "s.db", "--port", "0", "--annotators", "ada, bob"]
    first = serve([*command, "--pairs", "pairs.jsonl"])
    assert set(first) == {"admin", "ada", "bob"}
    again = serve(command)
    assert set(again.values()) == {"use the link printed before (--new-links makes a new one)"}
    renewed = serve([*command, "--new-links"])
    assert len({*first.values(), *renewed.values()}) == 6


def test_instructions_are_served_kept_and_exported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "guide.md").write_text("Prefer what is true.\n")
    command = [sys.executable, "-u", "-m", "p3o", "label", "--store", "s.db", "--port", "0", "--annotators", "ada"]
    pages: dict[str, str] = {}
    serve([*command, "--pairs", "pairs.jsonl", "--instructions", "guide.md"], pages)
    serve([*command, "--new-links"], pages)
    assert "Prefer what is true." in pages["ada"], "a store that is served again still tells them"
    assert cli.main(["label", "export", "out.jsonl", "--store", "s.db"]) == 0
    assert "out.instructions.jsonl: 1 version of the instructions to annotators" in capsys.readouterr().out.splitlines()
    [line] = (here / "out.instructions.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "instructions": hashlib.sha256((here / "guide.md").read_bytes()).hexdigest(),
        "text": "Prefer what is true.\n",
    }


def interruptible() -> None:
    """In a job of a shell's background SIGINT is ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def serve(command: list[str], pages: dict[str, str] | None = None) -> dict[str, str]:
    """Start, look at every link, stop by Ctrl-C; the links by name, and into ``pages`` what stands there."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    )
    assert process.stdout is not None
    links = {}
    for line in process.stdout:
        if line.startswith("serving"):
            break
        if found := re.match(r"(admin|ada|bob): (.*)\n", line):
            links[found[1]] = found[2]
    for name, link in links.items():
        if link.startswith("http://127.0.0.1:"):
            request = urllib.request.Request(link)
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor())
            with opener.open(request, timeout=20) as page:
                shown = page.read().decode()
                assert ("Throughput" if name == "admin" else "Which response is better?") in shown
                if pages is not None:
                    pages[name] = shown
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "error: interrupted\n")
    return links
