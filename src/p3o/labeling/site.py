"""What all pages share: the store, who is asking, templates, limits; and how the routes get at them."""

from typing import Annotated, Any

from fastapi import Depends, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException

from p3o.labeling.security import RateLimit, csrf_matches, csrf_token
from p3o.labeling.store import Store
from p3o.labeling.tables import Annotator

NO_SUCH_PAGE = "There is no such page."
_SESSION_SECONDS = 30 * 24 * 3600


class Session:
    """Who is asking: the annotator, and the token that this session is."""

    def __init__(self, annotator: Annotator, token: str) -> None:
        assert annotator.id is not None
        self.id = annotator.id
        self.annotator = annotator
        self.token = token

    def check_form(self, csrf: str) -> None:
        """Refuse a form that no page of this session has sent."""
        if not csrf_matches(self.token, csrf):
            raise HTTPException(403, "This form was not sent from your session. Go back to the start and try again.")


class Site:
    """A store with its pages.

    Args:
        requests: limits what each annotator may ask for.
        failures: limits how often each address may fail to log in.
    """

    def __init__(self, store: Store, *, requests: RateLimit | None = None, failures: RateLimit | None = None) -> None:
        self.store = store
        self.requests = requests or RateLimit(per_second=20, burst=100)
        self.failures = failures or RateLimit(per_second=0.2, burst=20)
        # Named after the store: cookies know no ports, and two stores may be served by one host.
        self.cookie = f"p3o_label_{store.id}"
        self._loader = PackageLoader("p3o.labeling")
        self._templates = Environment(
            loader=self._loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )

    def page(self, template: str, *, status: int = 200, session: Session | None = None, **values: Any) -> HTMLResponse:
        """A rendered template. The template engine escapes every text."""
        csrf = csrf_token(session.token) if session is not None else ""
        annotator = session.annotator if session is not None else None
        html = self._templates.get_template(template).render(csrf=csrf, annotator=annotator, **values)
        return HTMLResponse(html, status_code=status)

    def asset(self, name: str) -> str:
        """The text of a file that stands beside the templates."""
        return self._loader.get_source(self._templates, name)[0]

    def session_of(self, request: Request) -> Session | None:
        """The session of a request, if its cookie is one."""
        token = request.cookies.get(self.cookie)
        annotator = self.store.authenticate(token) if token else None
        if token is None or annotator is None:
            return None
        if not self.requests.allows(str(annotator.id)):
            raise HTTPException(429, "Too many requests. Wait a few seconds and try again.", {"Retry-After": "5"})
        return Session(annotator, token)

    def log_in(self, request: Request, token: str) -> Response:
        """Make the token a session, or say that it is none."""
        address = request.client.host if request.client is not None else "unknown"
        if self.failures.exhausted(address):
            problem = "Too many wrong links from this address. Wait a minute and try again."
            raise HTTPException(429, problem, {"Retry-After": "60"})
        token = token.strip()
        if self.store.authenticate(token) is None:
            self.failures.allows(address)
            return self.page("login.html", status=403, problem="This link or token is not valid, or no longer valid.")
        response = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        response.set_cookie(self.cookie, token, max_age=_SESSION_SECONDS, httponly=True, samesite="lax", secure=secure)
        return response

    def log_out(self) -> Response:
        """Forget the session in this browser."""
        response = RedirectResponse("/", 303)
        response.delete_cookie(self.cookie, httponly=True, samesite="lax")
        return response


def _site(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


SiteHere = Annotated[Site, Depends(_site)]


def _session(request: Request, site: SiteHere) -> Session:
    session = site.session_of(request)
    if session is None:
        raise HTTPException(401, "Open the link that you were given, or enter its token.")
    return session


AnySession = Annotated[Session, Depends(_session)]


def _annotator(session: AnySession) -> Session:
    if session.annotator.role != "annotator":
        raise HTTPException(404, NO_SUCH_PAGE)
    return session


def _admin(session: AnySession) -> Session:
    if session.annotator.role != "admin":
        raise HTTPException(404, NO_SUCH_PAGE)
    return session


def _checked_form(session: AnySession, csrf: Annotated[str, Form(max_length=64)]) -> None:
    session.check_form(csrf)


AnnotatorSession = Annotated[Session, Depends(_annotator)]
AdminSession = Annotated[Session, Depends(_admin)]
OwnForm = Depends(_checked_form)
"""Of a route that changes something: its form must come from a page of the same session."""
