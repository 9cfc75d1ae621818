"""The page over HTTP: who gets in, what they see, what a form may do."""

import html
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.labeling.conftest import Enter, pairs

from p3o.labeling.answers import Answer
from p3o.labeling.app import make_app
from p3o.labeling.assignment import next_work
from p3o.labeling.database import DatabaseUnavailableError
from p3o.labeling.exchange import Incoming, import_labels
from p3o.labeling.pairs import Pair
from p3o.labeling.records import holding_records
from p3o.labeling.security import HEADERS, LARGEST_FORM, RateLimit
from p3o.labeling.store import Store

KEY = "0123456789abcdef" * 2


def fields(page: str, action: str = "/label") -> dict[str, str]:
    """The hidden fields of a page's form."""
    form = re.search(rf'<form method="post" action="{action}".*?</form>', page, re.DOTALL)
    assert form is not None, page
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="(\w+)">', form[0]))


def answer(client: TestClient, choice: str, **more: str) -> Any:
    return client.post("/label", data={**fields(client.get("/").text), "choice": choice, **more})


def shown(page: str) -> list[str]:
    """The two responses in the order in which they stand."""
    found = re.findall(r"<article.*?<div class=\"text\" dir=\"auto\">(.*?)</div>", page, re.DOTALL)
    return [html.unescape(text) for text in found]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin"),
        ("GET", "/admin/export/preferences.jsonl"),
        ("POST", "/admin/annotators"),
        ("POST", "/label"),
        ("POST", "/undo"),
        ("POST", "/leave"),
    ],
)
def test_nobody_gets_in_without_a_token(store: Store, enter: Enter, method: str, path: str) -> None:
    store.add_items(pairs(1))
    stranger = enter()
    answer = stranger.request(method, path)
    assert answer.status_code == 401
    stranger.cookies.set(f"p3o_label_{store.id}", "wrong")
    form = {"csrf": "x", "assignment": "1", "key": KEY, "choice": "first", "event": "1", "name": "eve", "what": "add"}
    refused = stranger.request(method, path, data=form if method == "POST" else None)
    assert refused.status_code == 401
    for page in (answer, refused, stranger.get("/")):
        assert "prompt 0" not in page.text
        assert "answer 0" not in page.text
    assert [person.name for person in store.annotators()] == []


def test_a_wrong_or_old_link_lets_nobody_in(store: Store, enter: Enter) -> None:
    ada = enter("ada")
    assert ada.get("/").text.count("ada") == 1
    store.renew_token("ada")
    assert "Open the link that you were given" in ada.get("/").text
    stranger = enter()
    for token in ("wrong", "%00", "a/b", "é", "x" * 5000):
        assert stranger.get(f"/enter/{token}").status_code in (403, 404)
    assert stranger.post("/enter", data={"token": "wrong"}).status_code == 403
    assert not stranger.cookies


def test_the_token_can_be_typed_and_the_cookie_is_closed_to_scripts(store: Store, enter: Enter) -> None:
    client = enter()
    answer = client.post("/enter", data={"token": f" {store.add_annotator('ada')} "}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Secure" not in cookie, "over plain HTTP on loopback it would not come back"
    secure = TestClient(make_app(store), base_url="https://label.example")
    again = secure.post("/enter", data={"token": store.renew_token("ada")}, follow_redirects=False)
    assert "Secure" in again.headers["set-cookie"]
    secure.close()


def test_leaving_ends_the_session_in_this_browser(store: Store, enter: Enter) -> None:
    store.add_items(pairs(1))
    ada = enter("ada")
    ada.post("/leave", data=fields(ada.get("/").text, "/leave"))
    assert "Token" in ada.get("/").text


def test_the_answer_means_the_side_that_was_shown(store: Store, enter: Enter) -> None:
    store.add_items(pairs(12))
    ada = enter("ada")
    chosen = []
    for i in range(12):
        sides = shown(ada.get("/").text)
        choice = ("first", "second")[i % 2]
        chosen.append(sides[i % 2])
        assert answer(ada, choice).status_code == 200
    assert [record.row()["chosen"] for record in holding_records(store)] == chosen
    assert {record.event.swapped for record in holding_records(store)} == {True, False}, "by chance not once in 2000"


def test_strength_and_comment_are_kept(store: Store, enter: Enter) -> None:
    store.add_items(pairs(3))
    ada = enter("ada")
    answer(ada, "first", strength="2", comment=" two\r\nlines ")
    answer(ada, "tie", strength="3")
    answer(ada, "bad", strength="", comment="é" * 2000)
    first, second, third = (record.event for record in holding_records(store))
    assert (first.strength, first.comment) == (2, "two\nlines")
    assert (second.choice, second.strength) == ("tie", None), "no side is better, so not by how much"
    assert (third.choice, len(third.comment)) == ("bad", 2000)


def test_saved_is_shown_after_the_commit_and_can_be_undone(store: Store, enter: Enter) -> None:
    store.add_items(pairs(2))
    ada = enter("ada")
    assert "Saved just now" not in ada.get("/").text
    page = answer(ada, "second")
    assert "Saved just now: the second is better" in page.text
    assert "1 of 2 done" in page.text
    again = ada.post("/undo", data=fields(page.text, "/undo"))
    assert "0 of 2 done" in again.text
    assert "Saved just now" not in again.text
    assert shown(again.text) == shown(ada.get("/").text)


def test_the_same_form_twice_is_one_label(store: Store, enter: Enter) -> None:
    store.add_items(pairs(2))
    ada = enter("ada")
    form = {**fields(ada.get("/").text), "choice": "first"}
    for choice in ("first", "second", "first"):
        assert ada.post("/label", data={**form, "choice": choice}).status_code == 200
    assert store.verify() == {"items": 2, "labels": 1, "undone": 0}


def test_when_all_is_done_it_says_so(store: Store, enter: Enter) -> None:
    store.add_items(pairs(1))
    ada, bob = enter("ada"), enter("bob")
    ada.get("/")
    assert "Nothing to compare right now" in bob.get("/").text
    assert "All done" in answer(ada, "tie").text
    assert "All done" in bob.get("/").text


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"csrf": "0" * 64}, 403),
        ({"csrf": ""}, 422),
        ({"csrf": "é"}, 403),
        ({"csrf": None}, 422),
        ({"assignment": "2"}, 404),
        ({"assignment": "99999999999999999999"}, 422),
        ({"assignment": "x"}, 422),
        ({"key": "x"}, 422),
        ({"key": None}, 422),
        ({"choice": "a"}, 422),
        ({"choice": None}, 422),
        ({"strength": "4"}, 422),
        ({"comment": "x" * 2001}, 422),
        ({"comment": "x" * 5000}, 422),
        ({"comment": "\0"}, 422),
        ({"comment": "x" * LARGEST_FORM}, 413),
    ],
)
def test_a_wrong_form_saves_nothing(store: Store, enter: Enter, change: dict[str, Any], status: int) -> None:
    store.change_settings(overlap=2)
    store.add_items(pairs(1))
    ada, bob = enter("ada"), enter("bob")
    assert fields(bob.get("/").text)["assignment"] == "2"
    form = {**fields(ada.get("/").text), "choice": "first"}
    form = {name: value for name, value in {**form, **change}.items() if value is not None}
    answer = ada.post("/label", data=form)
    assert answer.status_code == status
    assert "Traceback" not in answer.text
    assert holding_records(store) == []


def test_a_form_of_another_session_is_refused(store: Store, enter: Enter) -> None:
    store.change_settings(overlap=2)
    store.add_items(pairs(1))
    ada, bob = enter("ada"), enter("bob")
    form = {**fields(ada.get("/").text), "csrf": fields(bob.get("/").text)["csrf"], "choice": "first"}
    assert ada.post("/label", data=form).status_code == 403
    assert holding_records(store) == []


def test_annotators_are_apart(store: Store, enter: Enter) -> None:
    """Two on the same pairs, taking turns: neither sees, labels or undoes what is the other's."""
    store.change_settings(overlap=2)
    store.add_items(pairs(6))
    ada, bob = enter("ada"), enter("bob")
    for _ in range(6):
        answer(ada, "first")
        answer(bob, "second", comment="bob's own thoughts")
    assert "bob" not in ada.get("/").text
    records = holding_records(store)
    assert {(record.annotator.name, record.event.comment) for record in records} == {
        ("ada", ""),
        ("bob", "bob's own thoughts"),
    }
    bobs = next(record.event.id for record in records if record.annotator.name == "bob")
    form = {**fields(ada.get("/").text, "/undo"), "event": str(bobs)}
    assert ada.post("/undo", data=form).status_code == 404
    assert store.verify() == {"items": 6, "labels": 12, "undone": 0}
    for path in ("/admin", "/admin/export/preferences.jsonl"):
        assert ada.get(path).status_code == 404


def test_policies_ids_and_gold_never_show(store: Store, enter: Enter) -> None:
    store.change_settings(gold_every=1)
    store.add_items([Pair("the-secret-id", "p", "x", "y", "policy-one", "policy-two", "a")])
    ada = enter("ada")
    seen = ada.get("/").text + answer(ada, "first").text
    for secret in ("policy", "the-secret-id", "gold", "response_a"):
        assert secret not in seen


NASTY = [
    "<script>alert(1)</script>",
    "</div></article><h1>gone</h1>",
    "\"'><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "&lt;b&gt; &amp;amp;",
    "<!-- ",
    "\u202eright to left\u2066",
]


@pytest.mark.parametrize("text", NASTY)
def test_markup_is_shown_and_never_becomes_markup(store: Store, enter: Enter, text: str) -> None:
    store.add_items([Pair("k", [{"role": "user", "content": text}], text, text + "!")])
    ada = enter("ada")
    page = ada.get("/").text
    assert sorted(shown(page)) == [text, text + "!"]
    store.add_items([Pair("k2", [{"role": "user", "content": "p"}], "x", "y")])
    assert tags(page) == tags(enter("bob").get("/").text)


def tags(page: str) -> list[str]:
    """A page's tags, without the values of its fields."""
    return [re.sub(r' (value|max)="\w*"', "", tag) for tag in re.findall(r"<[^>]*>", page)]


def test_names_are_escaped_too(store: Store, enter: Enter) -> None:
    store.add_items(pairs(1))
    assert "<b>eve</b>" not in enter("<b>eve</b>").get("/").text
    admin = enter("admin", "admin")
    assert "<b>eve</b>" not in admin.get("/admin").text
    assert "&lt;b&gt;eve&lt;/b&gt;" in admin.get("/admin").text


@pytest.mark.parametrize("path", ["/", "/enter/wrong", "/static/label.js", "/nothing", "/static/base.html", "/label"])
def test_every_answer_has_the_security_headers(store: Store, enter: Enter, path: str) -> None:
    answer = enter().get(path)
    for name, value in HEADERS.items():
        if (name, path) != ("Cache-Control", "/static/label.js"):
            assert answer.headers[name] == value
    assert "unsafe" not in answer.headers["Content-Security-Policy"]


def test_the_pages_obey_their_own_content_policy(store: Store, enter: Enter) -> None:
    """No inline script, style or handler, nothing from elsewhere."""
    store.add_items(pairs(1))
    for page in (enter("ada").get("/").text, enter("admin", "admin").get("/admin").text, enter().get("/").text):
        assert not re.search(
            r"<style|style=|\son\w+=|javascript:|https?:", page.replace("http://www.w3.org/2000/svg", "")
        )
        assert re.findall(r"<script[^>]*>(.*?)</script>", page) == [""]


def test_nothing_describes_the_api(enter: Enter) -> None:
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert enter().get(path).status_code == 404


def test_guessing_tokens_is_stopped(store: Store) -> None:
    now = [0.0]
    app = make_app(store, failures=RateLimit(per_second=0.2, burst=3, clock=lambda: now[0]))
    token = store.add_annotator("ada")
    with TestClient(app) as client:
        assert [client.get(f"/enter/{i}").status_code for i in range(5)] == [403, 403, 403, 429, 429]
        stopped = client.get(f"/enter/{token}")
        assert (stopped.status_code, stopped.headers["retry-after"]) == (429, "60")
        now[0] += 6
        assert client.get(f"/enter/{token}").status_code == 200


def test_one_annotator_cannot_flood(store: Store) -> None:
    now = [0.0]
    store.add_items(pairs(1))
    app = make_app(store, requests=RateLimit(per_second=1, burst=5, clock=lambda: now[0]))
    with TestClient(app) as ada, TestClient(app) as bob:
        ada.get(f"/enter/{store.add_annotator('ada')}")
        bob.get(f"/enter/{store.add_annotator('bob')}")
        codes = [ada.get("/").status_code for _ in range(6)]
        assert codes[:3] == [200] * 3
        assert codes[-1] == 429
        assert bob.get("/").status_code == 200
        now[0] += 2
        assert ada.get("/").status_code == 200


def test_a_body_in_pieces_is_measured_too(store: Store, enter: Enter) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 2048

    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert enter("ada").post("/label", content=pieces(), headers=headers).status_code == 413


def test_the_admin_sees_how_it_goes(store: Store, enter: Enter) -> None:
    store.change_settings(overlap=2)
    store.add_items(pairs(4))
    ada, bob = enter("ada"), enter("bob")
    for choices in (("tie", "tie"), ("tie", "bad"), ("skip", "tie")):
        for client, choice in zip((ada, bob), choices, strict=True):
            answer(client, choice)
    page = enter("boss", "admin").get("/").text
    values = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert values == {
        "pairs finished": "2 of 4",
        "labels by people": "6",
        "in the last hour": "6",
        "raw agreement": "50 %",
        "Krippendorff&#39;s α": "0.00",
        "first side preferred": "–",
        "gold answers correct": "–",
    }
    assert [re.sub(r"<.*?>", "", cell).strip() for cell in re.findall(r"<td>.*?</td>", page)][:4] == [
        "3",
        "2",
        "0",
        "1",
    ]


def test_the_admin_exports_what_the_command_exports(store: Store, enter: Enter) -> None:
    store.add_items(pairs(3))
    ada = enter("ada")
    for choice in ("first", "tie", "skip"):
        answer(ada, choice)
    admin = enter("boss", "admin")
    preferences = admin.get("/admin/export/preferences.jsonl")
    assert 'filename="preferences.jsonl"' in preferences.headers["content-disposition"]
    [row] = map(json.loads, preferences.text.splitlines())
    assert row == holding_records(store)[0].row()
    assert [json.loads(line)["label"] for line in admin.get("/admin/export/ties.jsonl").text.splitlines()] == ["tie"]
    assert admin.get("/admin/export/other").status_code == 404


def test_the_admin_adds_renews_and_closes(store: Store, enter: Enter) -> None:
    store.add_items(pairs(1))
    admin, new = enter("boss", "admin"), enter()

    def change(name: str, what: str) -> Any:
        return admin.post(
            "/admin/annotators", data={**fields(admin.get("/admin").text, "/leave"), "name": name, "what": what}
        )

    link = re.search(r"<code>http://testserver(/enter/\S+?)</code>", change("cyd", "add").text)
    assert link is not None
    assert "Which response is better?" in new.get(link[1]).text
    assert link[1] not in admin.get("/admin").text, "shown once"
    assert change("cyd", "add").status_code == 422
    assert change("boss", "deactivate").status_code == 422
    renewed = re.search(r"<code>http://testserver(/enter/\S+?)</code>", change("cyd", "renew").text)
    assert "Token" in new.get("/").text
    assert renewed is not None
    assert new.get(renewed[1]).status_code == 200
    change("cyd", "deactivate")
    assert "Token" in new.get("/").text
    assert admin.post("/admin/annotators", data={"name": "eve", "what": "add", "csrf": "0"}).status_code == 403


def test_a_store_that_cannot_be_reached_is_503_and_tells_no_paths(
    store: Store, enter: Enter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """503 is what the page's script tries again on."""
    store.add_items(pairs(1))
    ada = enter("ada")
    form = {**fields(ada.get("/").text), "choice": "tie"}

    def fail(*arguments: object, **more: object) -> None:
        raise DatabaseUnavailableError("/home/someone/labels.db: disk is full; free it")

    with monkeypatch.context() as patched:
        patched.setattr(store, "label", fail)
        answer = ada.post("/label", data=form)
    assert answer.status_code == 503
    assert "someone" not in answer.text
    assert "disk is full" in capsys.readouterr().err
    assert ada.post("/label", data=form).status_code == 200
    assert store.verify()["labels"] == 1


def test_an_admin_does_not_label(store: Store, enter: Enter) -> None:
    store.add_items(pairs(1))
    admin = enter("boss", "admin")
    form = {"csrf": fields(admin.get("/admin").text, "/leave")["csrf"], "assignment": "1", "key": KEY, "choice": "tie"}
    assert admin.post("/label", data=form).status_code == 404


def test_answering_leases_the_next_pair_in_the_same_transaction(store: Store, enter: Enter) -> None:
    store.add_items(pairs(2))
    ada = enter("ada")
    ada.post("/label", data={**fields(ada.get("/").text), "choice": "tie"}, follow_redirects=False)
    work = next_work(store, 1)
    assert work.assignment is not None
    assert work.assignment.id == 2
    bob = store.authenticate(store.add_annotator("bob"))
    assert bob is not None
    assert bob.id is not None
    assert next_work(store, bob.id).item is None
    store.label(1, 2, KEY, Answer("a"))


def test_the_admin_sees_what_was_imported_apart(store: Store, enter: Enter) -> None:
    """Of ada, who logs in now, the page counts what she answers there; what came from a file stands with the imports."""
    pair = pairs(1)[0]
    import_labels(store, [Incoming(pair, "ada", Answer("a"), None, "l.jsonl:1")])
    enter("ada")
    page = enter("boss", "admin").get("/admin").text
    row = re.search(r'<th scope="row" class="words">ada</th>\s*<td>(\d+)</td>', page)
    assert row is not None
    assert row[1] == "0"
    assert "ada (imported): 1 labels" in page
