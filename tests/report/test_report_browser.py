"""The page in a real browser: wide and narrow, light and dark, on paper; nothing is fetched and nothing complains."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.labeling.browser import CHROMIUM, Browser, Page
from tests.report.synthetic_run import write_sweep

from p3o.report.comparison import build_comparison
from p3o.report.page import build_report

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"), pytest.mark.slow]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pages(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of one run, and of 4 algorithms x 4 β x 5 seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    one, many = folder / "one.html", folder / "many.html"
    build_report(finished_run, one)
    build_comparison(write_sweep(folder), many)
    return {"one": one, "many": many}


def opened(browser: Browser, path: Path, width: int, *, dark: bool) -> Page:
    page = browser.page()
    page.resize(width, 900, dark=dark)
    page.open(path.as_uri())
    page.wait("document.documentElement.hasAttribute('data-drawn')")
    return page


def requests(browser: Browser) -> set[str]:
    """Addresses asked for so far that are not files of ours or parts of the page itself."""
    asked = (event["params"]["request"]["url"] for event in browser.events if "requestWillBeSent" in event["method"])
    return {url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("which", ["one", "many"])
def test_it_is_drawn_whole_without_a_complaint_or_a_request(
    browser: Browser, pages: dict[str, Path], which: str, width: int, dark: bool
) -> None:
    page = opened(browser, pages[which], width, dark=dark)
    assert page.run("document.querySelectorAll('.chart svg').length") >= (10 if which == "one" else 1)
    assert page.run("document.documentElement.scrollWidth") <= width, "the page itself never scrolls sideways"
    background = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == dark
    assert page.complaints() == []
    assert requests(browser) == set()


@pytest.mark.parametrize("which", ["one", "many"])
def test_paper_is_white_and_no_chart_is_cut(browser: Browser, pages: dict[str, Path], which: str) -> None:
    """Printed by a reader whose screen is dark."""
    page = opened(browser, pages[which], 1280, dark=True)
    theme = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.call("Emulation.setEmulatedMedia", media="print", features=theme)
    page.call("Emulation.setDeviceMetricsOverride", width=718, height=1047, deviceScaleFactor=1, mobile=False)
    page.wait("getComputedStyle(document.querySelector('.csv')).display === 'none'")
    ink = page.run("getComputedStyle(document.body).color")
    assert sum(map(int, re.findall(r"\d+", ink)[:3])) < 200, "dark on white"
    right = page.run(
        "Math.max(...[...document.querySelectorAll('svg, table')].map(e => e.getBoundingClientRect().right))"
    )
    assert right <= 718 + 1
    paper = base64.b64decode(
        page.call("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)["data"]
    )
    assert paper.startswith(b"%PDF")
    assert paper.count(b"/Type /Page\n") + paper.count(b"/Type /Page ") > (3 if which == "one" else 1)
