"""The page in a real browser: by keyboard, by mouse, on a phone, with scripts off, with a server that goes away."""

import json
import threading
import time
from collections.abc import Iterator
from socket import socket

import pytest
import uvicorn
from tests.labeling.browser import CHROMIUM, Browser, Page
from tests.labeling.conftest import pairs

from p3o.labeling.app import make_app
from p3o.labeling.exchange import export_labels
from p3o.labeling.instructions import change_instructions
from p3o.labeling.records import holding_records
from p3o.labeling.security import RateLimit
from p3o.labeling.server import listen
from p3o.labeling.store import Store

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"), pytest.mark.slow]

FIRST, SECOND = "article:nth-of-type(1) .text", "article:nth-of-type(2) .text"


class Running:
    """The app on a port of its own, in a thread; it can stop and come back."""

    def __init__(self, store: Store) -> None:
        self._app = make_app(store, requests=RateLimit(per_second=1e6, burst=10**6))
        self._port = 0
        self.start()

    def start(self) -> None:
        listening: socket = listen("127.0.0.1", self._port)
        self._port = listening.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        config = uvicorn.Config(self._app, log_level="error", access_log=False, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]})
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture
def running(store: Store) -> Iterator[Running]:
    served = Running(store)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def enter(browser: Browser, running: Running, store: Store, name: str, *, width: int = 1280, height: int = 800) -> Page:
    page = browser.page()
    page.resize(width, height)
    page.open(f"{running.address}/enter/{store.add_annotator(name)}")
    return page


def texts(page: Page) -> tuple[str, str]:
    first, second = (page.run(f"document.querySelector({json.dumps(side)}).textContent") for side in (FIRST, SECOND))
    return first, second


def form_key(page: Page) -> str:
    return str(page.run("document.querySelector('#answer [name=key]')?.value || 'none'"))


def choose(page: Page, how: str, key: str) -> None:
    """Answer by keyboard or mouse, and wait for the next page."""
    before = form_key(page)
    if how == "keyboard":
        page.press(key)
    else:
        page.click(f'[data-key="{key}"]')
    page.wait(f"(document.querySelector('#answer [name=key]')?.value || 'none') !== {json.dumps(before)}")


@pytest.mark.slow
def test_two_annotators_label_40_pairs_and_the_export_is_what_was_pressed(
    store: Store, running: Running, browser: Browser
) -> None:
    """By keyboard and by mouse in turns, with undo and a reload in the middle; bob ends on a phone."""
    store.change_settings(overlap=2)
    store.add_items(pairs(40))
    people = {name: enter(browser, running, store, name) for name in ("ada", "bob")}
    pressed: dict[str, list[tuple[str, str, str]]] = {"ada": [], "bob": []}
    for i in range(40):
        for name, how in (("ada", "keyboard"), ("bob", "mouse")):
            page, key = people[name], "1202bs1"[(i + len(name) * i) % 7]
            first, second = texts(page)
            choose(page, how, key)
            pressed[name].append((first, second, key))
        if i == 10:
            for name, how in (("ada", "keyboard"), ("bob", "mouse")):
                choose(people[name], how, "u")
                first, second, _ = pressed[name].pop()
                assert texts(people[name]) == (first, second)
                choose(people[name], how, "2")
                pressed[name].append((first, second, "2"))
        if i == 20:
            for page in people.values():
                before = texts(page)
                page.reload()
                assert texts(page) == before
            people["bob"].resize(400, 800)
    for page in people.values():
        assert "All done. Thank you!" in page.text()
        assert page.complaints() == []
    expected = {
        (name, {"1": first, "2": second}[key], {"1": second, "2": first}[key])
        for name, answers in pressed.items()
        for first, second, key in answers
        if key in "12"
    }
    exported = export_labels(store)
    assert {(row["annotator"], row["chosen"], row["rejected"]) for row in exported.preferences} == expected
    keys = [key for answers in pressed.values() for *_, key in answers]
    assert len(exported.preferences) == sum(key in "12" for key in keys)
    assert sorted(row["label"] for row in exported.ties) == sorted(
        {"0": "tie", "b": "bad"}[k] for k in keys if k in "0b"
    )
    assert exported.skipped == keys.count("s")
    assert store.verify() == {"items": 40, "labels": 80, "undone": 2}


def test_by_keyboard_alone_with_strength_and_comment(store: Store, running: Running, browser: Browser) -> None:
    store.add_items(pairs(2))
    page = enter(browser, running, store, "ada")
    reached = []
    for _ in range(12):
        page.press("Tab")
        reached.append(page.run("document.activeElement.innerText || document.activeElement.value || ''").strip())
        focus = (
            "document.activeElement.matches(':focus-visible') && getComputedStyle(document.activeElement).outlineStyle"
        )
        assert page.run(focus) == "solid", "where the focus is can be seen"
        if "comment" in reached[-1]:
            page.press("Enter")
        if page.run("document.activeElement.tagName") == "TEXTAREA":
            page.write("1 and 2 are letters here")
            page.press("s")
        if page.run("document.activeElement.type") == "radio":
            page.press(" ")
        if "is better" in reached[-1]:
            break
    before = form_key(page)
    page.press("Enter")
    page.wait(f"document.querySelector('#answer [name=key]').value !== {json.dumps(before)}")
    [record] = holding_records(store)
    assert (record.event.strength, record.event.comment) == (1, "1 and 2 are letters heres")
    assert record.label.chose_first is True
    assert page.complaints() == []


def test_what_a_screen_reader_is_told(store: Store, running: Running, browser: Browser) -> None:
    store.add_items(pairs(3))
    page = enter(browser, running, store, "ada")
    choose(page, "keyboard", "1")
    roles = page.roles()
    for expected in (
        ("main", "Which response is better?"),
        ("heading", "Which response is better?"),
        ("region", "Prompt"),
        ("article", "Response 1"),
        ("article", "Response 2"),
        ("progressbar", "Pairs done"),
        ("group", "How much better? optional"),
        ("radio", "slightly"),
        ("button", "1 Response 1 is better"),
        ("button", "0 Tie"),
        ("button", "2 Response 2 is better"),
        ("button", "B Both bad"),
        ("button", "S Skip"),
        ("button", "Undo U"),
    ):
        assert expected in roles
    assert ("StaticText", "Saved. Pair 2 of 3.") in roles, "told by the live region"
    assert page.run("document.activeElement.tagName") == "MAIN", "reading goes on at the new pair"
    assert all(name for role, name in roles if role in ("button", "radio", "textbox", "link"))


def test_with_scripts_off(store: Store, running: Running, browser: Browser) -> None:
    store.add_items(pairs(3))
    page = browser.page()
    page.switch_scripts_off()
    page.resize(1280, 800)
    page.open(f"{running.address}/enter/{store.add_annotator('ada')}")
    chosen = []
    for i, key in enumerate("12"):
        chosen.append(texts(page)[i])
        page.leaving(lambda key=key: page.click(f'[data-key="{key}"]'))  # type: ignore[misc]
    assert "Saved just now: the second is better" in page.text()
    page.leaving(lambda: page.click('[data-key="u"]'))
    assert "1 of 3 done" in page.text()
    page.leaving(lambda: page.click('[data-key="0"]'))
    assert [record.event.choice for record in holding_records(store)][1:] == ["tie"]
    assert holding_records(store)[0].row()["chosen"] == chosen[0]
    assert page.complaints() == []


def test_an_answer_waits_for_a_server_that_went_away(store: Store, running: Running, browser: Browser) -> None:
    store.add_items(pairs(3))
    page = enter(browser, running, store, "ada")
    before = form_key(page)
    running.stop()
    page.press("1")
    page.wait("document.getElementById('status').textContent.startsWith('Not saved yet')")
    page.press("2")  # while one answer is on its way no other is taken
    assert form_key(page) == before
    assert "Saved just now" not in page.text()
    time.sleep(0.5)
    running.start()
    page.wait("document.body.innerText.includes('Saved just now: the first is better')")
    assert store.verify() == {"items": 3, "labels": 1, "undone": 0}


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(store: Store, running: Running, browser: Browser, width: int) -> None:
    long = "a" * 400 + " " + "word " * 300
    first = pairs(1)[0]
    store.add_items([type(first)("k", long, long + "1", long + "2")])
    page = enter(browser, running, store, "a-rather-long-name-of-an-annotator", width=width, height=800)
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert page.run(fits)
    button = "document.querySelector('[data-key=\"1\"]').getBoundingClientRect().bottom <= innerHeight"
    assert page.run(button), "the choices stay in sight"
    admin = browser.page()
    admin.resize(width, 800)
    admin.open(f"{running.address}/enter/{store.add_annotator('boss', 'admin')}")
    assert "Throughput" in admin.text()
    assert admin.run(fits)
    assert page.complaints() == admin.complaints() == []


@pytest.mark.parametrize("width", [500, 1280])
def test_instructions_are_read_first_and_opened_again_by_key_and_by_mouse(
    store: Store, running: Running, browser: Browser, width: int
) -> None:
    text = "# Guide\n\nPrefer what is true.\n" + "a" * 300 + "<img src=x onerror=\"document.title='taken'\">"
    change_instructions(store, text)
    long = "word " * 2000
    store.add_items([type(pairs(1)[0])(f"k{i}", f"p{i}", long + "1", long + "2") for i in range(2)])
    page = enter(browser, running, store, "ada", width=width)
    shown = "document.querySelector('.instructions .text').getBoundingClientRect()"
    in_sight = f"{shown}.height > 0 && {shown}.top >= 0 && {shown}.top < innerHeight"
    assert page.run(in_sight), "open before the first pair"
    assert page.run("document.querySelector('.instructions .text').textContent") == text
    assert page.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    choose(page, "keyboard", "1")
    assert not page.run("document.querySelector('.instructions').open"), "they are known now"
    page.run("window.scrollTo(0, document.body.scrollHeight)")
    page.press("i")
    page.wait(in_sight)
    page.press("i")
    page.wait("!document.querySelector('.instructions').open")
    page.click(".instructions summary")
    page.wait(in_sight)
    assert ("DisclosureTriangle", "Instructions I" if width > 600 else "Instructions") in page.roles()
    choose(page, "keyboard", "s")
    assert "All done" in page.text()
    assert page.run("document.title") != "taken"
    assert page.complaints() == []


def test_instructions_open_with_scripts_off(store: Store, running: Running, browser: Browser) -> None:
    change_instructions(store, "Prefer what is true.")
    store.add_items(pairs(2))
    page = browser.page()
    page.switch_scripts_off()
    page.resize(1280, 800)
    page.open(f"{running.address}/enter/{store.add_annotator('ada')}")
    assert "Prefer what is true." in page.text()
    page.leaving(lambda: page.click('[data-key="1"]'))
    assert "Prefer what is true." not in page.text()
    page.click(".instructions summary")
    page.wait("document.body.innerText.includes('Prefer what is true.')")


def test_markup_does_nothing(store: Store, running: Running, browser: Browser) -> None:
    first = pairs(1)[0]
    nasty = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script></div>"
    store.add_items([type(first)("k", nasty, nasty + "1", nasty + "2")])
    page = enter(browser, running, store, "ada")
    assert sorted(texts(page)) == [nasty + "1", nasty + "2"]
    assert page.run("document.title") == "Pair 1 of 1 · p3o label"
    assert page.run("document.querySelectorAll('main img, main script').length") == 0
