"""The HTML file itself: whole, self-contained, escaped; and the picture and the terminal's table beside it."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from tests.report.synthetic_run import HOSTILE, write_run

from p3o.errors import P3OError
from p3o.report import build_report, draw_frontier, terminal_summary

SECTIONS = [
    "frontier",
    "overoptimisation",
    "training",
    "headtohead",
    "shift",
    "rewardmodel",
    "texts",
    "evaluations",
    "run",
]
FETCHING = {"src", "href", "srcset", "data", "action", "poster", "background"}


class Page(HTMLParser):
    """Section ids, charts, text, and every attribute or element that could fetch something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.charts: list[dict] = []
        self.fetches: list[str] = []
        self.policy = ""
        self.text = ""
        self._script: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "section":
            self.sections.append(values["id"] or "")
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""
        self.fetches += [f"{tag} {n}={v}" for n, v in attrs if n in FETCHING and not (v or "").startswith("#")]
        self.fetches += [tag] if tag in ("link", "iframe", "object", "embed", "img", "base", "form") else []
        if tag == "script":
            self._script = values.get("type") or "javascript"

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.text += data
        elif self._script == "application/json":
            self.charts.append(json.loads(data))


@pytest.fixture(scope="module")
def html(finished_run: Path) -> str:
    return build_report(finished_run).read_text(encoding="utf-8")


def test_the_sections_stand_in_their_order(html: str) -> None:
    assert Page(html).sections == SECTIONS


def test_nothing_is_fetched(html: str) -> None:
    page = Page(html)
    assert page.fetches == []
    assert page.policy.startswith("default-src 'none'")
    assert "url(" not in html[: html.index("</style>")]
    assert "@import" not in html[: html.index("</style>")]
    assert all("url" not in json.dumps(chart.get("data", {})) for chart in page.charts)


def test_raw_rewards_are_not_shown_without_saying_that_their_level_means_nothing(html: str) -> None:
    """Bradley–Terry leaves an offset on every prompt open: said where rewards are drawn, in the frontier and over the steps."""
    sections = re.findall(r'<section id="(\w+)".*?</section>', html, re.DOTALL)
    assert sections == SECTIONS
    for name, said in (
        ("frontier", "level of a reward model's scores has no meaning, only their differences"),
        ("training", "each step has different prompts, and the level"),
        ("shift", "a reward model's own offsets are arbitrary"),
    ):
        (section,) = re.findall(rf'<section id="{name}".*?</section>', html, re.DOTALL)
        assert said in " ".join(Page(section).text.split()), name


def test_the_chart_library_is_there_once_and_the_file_is_small(html: str) -> None:
    assert html.count("window.vegaEmbed=") == 1
    assert len(html.encode()) < 3_000_000


def test_a_models_text_is_never_html(html: str) -> None:
    assert HOSTILE not in html
    assert HOSTILE in Page(html).text


def test_the_summary_and_the_tables_hold_the_runs_numbers(finished_run: Path, html: str) -> None:
    rows = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    last = next(row for row in reversed(rows) if row.get("policy") == "p3o_v2")
    text = Page(html).text.replace("\N{NO-BREAK SPACE}", " ")
    assert f"{last['gold']:.2f} ± {last['gold_se']:.2f} for P3O-V2" in text
    for comparison in json.loads((finished_run / "head_to_head.json").read_text()):
        low, high = comparison["low"], comparison["high"]
        if comparison["a"] == "sft":  # shown from the other side
            low, high = 1 - high, 1 - low
        assert f"{100 * low:.1f} to {100 * high:.1f}" in text


def test_an_algorithm_has_the_same_colour_in_every_chart(html: str) -> None:
    colours = re.findall(r'"domain":(\["P3O-V1","P3O-V2","PPO","Online DPO"\]),"range":(\["var[^\]]*\])', html)
    assert len(colours) >= 8
    assert set(colours) == {
        (colours[0][0], '["var(--series-0)","var(--series-1)","var(--series-2)","var(--series-3)"]')
    }


def test_one_algorithm_without_gold_still_makes_a_report(tmp_path: Path) -> None:
    page = Page(build_report(write_run(tmp_path, ["p3o_v2"], gold=False)).read_text(encoding="utf-8"))
    assert page.sections == [name for name in SECTIONS if name != "shift"]
    assert "Left out: this run has no gold reward" in page.text
    assert "Gold reward" not in page.text


def test_a_run_that_has_only_begun_says_what_is_not_there(tmp_path: Path) -> None:
    run = write_run(tmp_path, ["p3o_v2"])
    for name in ("responses.jsonl", "samples.jsonl", "head_to_head.json"):
        (run / name).unlink()
    (run / "metrics.jsonl").write_text(
        '{"stage": "sft", "step": 1, "loss": 2}\n{"stage": "sft", "step": 2, "loss": 1}\n'
    )
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"status": "running", "seconds": {}}))
    page = Page(build_report(run).read_text(encoding="utf-8"))
    assert page.text.count("Left out:") == 5
    assert "This run is running" in page.text
    assert len(page.charts) == 1


def test_an_algorithm_that_the_report_has_never_heard_of_is_drawn(tmp_path: Path) -> None:
    page = Page(build_report(write_run(tmp_path, ["mystery_method", "ppo"])).read_text(encoding="utf-8"))
    assert "Mystery method" in page.text


def test_long_runs_stay_small(tmp_path: Path) -> None:
    report = build_report(write_run(tmp_path, ["p3o_v2", "ppo"], steps=3000))
    assert report.stat().st_size < 3_000_000


def test_the_same_run_gives_the_same_file(finished_run: Path, html: str) -> None:
    assert build_report(finished_run).read_text(encoding="utf-8") == html


@pytest.mark.parametrize(("ending", "magic"), [(".svg", b"<svg"), (".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_the_frontier_is_drawn_as_a_picture(finished_run: Path, tmp_path: Path, ending: str, magic: bytes) -> None:
    target = draw_frontier(finished_run, tmp_path / f"frontier{ending}")
    content = target.read_bytes()
    assert content.startswith(magic)
    assert b"var(--" not in content


def test_a_picture_of_another_kind_is_refused(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(P3OError, match=r"end the name in \.svg, \.png or \.pdf"):
        draw_frontier(finished_run, tmp_path / "frontier.gif")


def test_a_picture_of_nothing_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, ["ppo"])
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(P3OError, match="no evaluation of a trained policy"):
        draw_frontier(run, tmp_path / "frontier.svg")


def test_the_terminals_table_fits_eighty_columns(finished_run: Path) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_summary(finished_run))
    lines = console.export_text().replace("\N{NO-BREAK SPACE}", " ").splitlines()
    rows = [line.split("  ")[0].strip() for line in lines if "±" in line]
    assert rows == ["SFT", "SFT, greedy", "SFT, best of 4", "SFT, best of 16", "P3O-V1", "P3O-V2", "PPO", "Online DPO"]
    assert "…" not in "".join(lines)
    assert any("PPO" in line and " 6.20 " in line for line in lines), "the KL"
