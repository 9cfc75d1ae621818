"""The labelling page: plain forms that work without scripts, and a small script that adds keys and retries.

An answer is a POST that is redirected to the next pair only after its commit, so whoever sees the next pair has saved the last.
The form carries an idempotency key: sent again after a lost answer, it is the same label.
"""

import secrets
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException

from p3o.errors import P3OError
from p3o.labeling import admin
from p3o.labeling.answers import LONGEST_COMMENT, STRENGTHS, Answer, NotYoursError
from p3o.labeling.assignment import Work, assign, next_work
from p3o.labeling.database import DatabaseUnavailableError
from p3o.labeling.instructions import Instructions, newest_instructions
from p3o.labeling.records import IMPORTED
from p3o.labeling.security import Guard, RateLimit
from p3o.labeling.site import NO_SUCH_PAGE, AnnotatorSession, AnySession, OwnForm, Site, SiteHere
from p3o.labeling.store import Store
from p3o.labeling.tables import Choice, Event

Shown = Literal["first", "second", "tie", "bad", "skip"]
"""An answer in terms of what the annotator sees."""

_SAID = {
    "first": "the first is better",
    "second": "the second is better",
    "tie": "a tie",
    "bad": "both are bad",
    "skip": "skipped",
}
_ASSETS = {"label.css": "text/css", "label.js": "text/javascript", "icon.svg": "image/svg+xml"}

Id = Annotated[int, Form(ge=1, le=2**31 - 1)]
Key = Annotated[str, Form(pattern="^[0-9a-f]{32}$")]

pages = APIRouter(default_response_class=HTMLResponse)


def make_app(store: Store, *, requests: RateLimit | None = None, failures: RateLimit | None = None) -> FastAPI:
    """The application over a store.

    Args:
        requests, failures: other limits than ``Site``'s own.
    """
    # No pages that describe the API: nobody without a token learns anything here.
    app = FastAPI(title="p3o labelling", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.site = Site(store, requests=requests, failures=failures)
    app.add_middleware(Guard)
    app.include_router(pages)
    app.include_router(admin.pages)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _form_error)
    app.add_exception_handler(P3OError, _plain_error)
    return app


@pages.get("/")
def start(request: Request, site: SiteHere) -> Response:
    """The pair to answer now; the admin's page for the admin; how to log in for everybody else."""
    session = site.session_of(request)
    if session is None:
        return site.page("login.html", problem="")
    if session.annotator.role == "admin":
        return RedirectResponse("/admin", 303)
    work, instructions = next_work(site.store, session.id), newest_instructions(site.store)
    return site.page("label.html", session=session, **_shown(work), **_told(instructions, work.latest))


@pages.get("/enter/{token}")
def enter(request: Request, site: SiteHere, token: str) -> Response:
    """Log in by the link that p3o label printed."""
    return site.log_in(request, token)


@pages.post("/enter")
def enter_by_form(request: Request, site: SiteHere, token: Annotated[str, Form(max_length=200)]) -> Response:
    """Log in by typing the token."""
    return site.log_in(request, token)


@pages.post("/leave", dependencies=[OwnForm])
def leave(site: SiteHere, session: AnySession) -> Response:  # noqa: ARG001
    """Log out of this browser."""
    return site.log_out()


@pages.post("/label", dependencies=[OwnForm])
def label(
    site: SiteHere,
    session: AnnotatorSession,
    assignment: Id,
    key: Key,
    choice: Annotated[Shown, Form()],
    strength: Annotated[Literal["", "1", "2", "3"], Form()] = "",
    comment: Annotated[str, Form(max_length=2 * LONGEST_COMMENT)] = "",
) -> Response:
    """Record an answer."""
    swapped = site.store.is_swapped(session.id, assignment)
    answer = Answer(_of_item(choice, swapped), int(strength) if strength else None, _plain_lines(comment))
    site.store.label(session.id, assignment, key, answer, then=assign)
    return RedirectResponse("/", 303)


@pages.post("/undo", dependencies=[OwnForm])
def undo(site: SiteHere, session: AnnotatorSession, event: Id, key: Key) -> Response:
    """Take the newest answer back."""
    site.store.undo(session.id, event, key)
    return RedirectResponse("/", 303)


@pages.get("/static/{name}")
def static(site: SiteHere, name: str) -> Response:
    """The style, the script and the icon."""
    if name not in _ASSETS:
        raise HTTPException(404, NO_SUCH_PAGE)
    return Response(site.asset(name), media_type=_ASSETS[name], headers={"Cache-Control": "no-cache"})


def _of_item(choice: Shown, swapped: bool) -> Choice:
    """An answer about the sides as one about the item's responses."""
    if choice in ("first", "second"):
        return "b" if (choice == "first") == swapped else "a"
    return cast(Choice, choice)


def _of_sides(event: Event) -> Shown:
    """The inverse of ``_of_item``."""
    if event.choice in ("a", "b"):
        return "first" if (event.choice == "b") == event.swapped else "second"
    return cast(Shown, event.choice)


def _plain_lines(text: str) -> str:
    """A text area's text: browsers send its line ends as CRLF."""
    return text.replace("\r\n", "\n").strip()


def _shown(work: Work) -> dict[str, Any]:
    """What the page of a pair may know: the texts on their sides; no policies, no name of the item, not whether it is gold."""
    messages: Sequence[Mapping[str, str]] = []
    responses: list[str] = []
    if work.item is not None and work.assignment is not None:
        prompt = work.item.prompt
        messages = prompt if isinstance(prompt, list) else [{"role": "", "content": prompt}]
        responses = [work.item.response_a, work.item.response_b]
        if work.assignment.swapped:
            responses.reverse()
    latest = work.latest
    return {
        "messages": messages,
        "responses": responses,
        "assignment": work.assignment.id if work.assignment is not None else None,
        "latest": latest.id if latest is not None else None,
        "latest_said": _SAID[_of_sides(latest)] if latest is not None else "",
        "latest_ago": _ago(datetime.now(UTC), latest.at) if latest is not None else "",
        "done": work.done,
        "left": work.left,
        "strengths": STRENGTHS,
        "longest_comment": LONGEST_COMMENT,
        "key": secrets.token_hex(16),
        "undo_key": secrets.token_hex(16),
    }


def _told(instructions: Instructions | None, latest: Event | None) -> dict[str, Any]:
    """The instructions, which stand open until the annotator has answered a pair under them."""
    # Who is known by imported labels has not seen the page.
    answered = 0 if latest is None or latest.key.startswith(IMPORTED) else latest.id or 0
    new = instructions is not None and answered <= instructions.since
    return {"instructions": instructions, "instructions_are_new": new}


def _ago(now: datetime, then: datetime) -> str:
    minutes = int((now - then).total_seconds()) // 60
    if minutes < 1:
        return "just now"
    return f"{minutes} min ago" if minutes < 60 else f"{then:%d %b, %H:%M} UTC"


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    site: Site = request.app.state.site
    if error.status_code == 401:
        return site.page("login.html", status=401, problem=error.detail)
    plain = {404: NO_SUCH_PAGE, 405: "The server did not understand this request."}
    return _problem(request, error.status_code, plain.get(error.status_code, error.detail), error.headers)


def _form_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    names = sorted({str(problem["loc"][-1]) for problem in error.errors()})
    return _problem(request, 422, f"The form was not filled in by this page ({', '.join(names)}). Nothing was saved.")


def _plain_error(request: Request, error: Exception) -> Response:
    if isinstance(error, DatabaseUnavailableError):  # its own words are for whoever runs the server
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return _problem(request, 503, "The label store is not available right now. Nothing was saved; try again.")
    status = 404 if isinstance(error, NotYoursError) else 422
    return _problem(request, status, f"Nothing was saved: {error}.")


def _problem(request: Request, status: int, problem: str, headers: Mapping[str, str] | None = None) -> Response:
    site: Site = request.app.state.site
    response = site.page("problem.html", status=status, problem=problem)
    response.headers.update(headers or {})
    return response
