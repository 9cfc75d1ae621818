"""The admin's page: how far, how fast, how much annotators agree, who they are, and the labels as files."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from p3o.errors import P3OError
from p3o.labeling.exchange import export_labels
from p3o.labeling.instructions import newest_instructions
from p3o.labeling.records import Status, status_of
from p3o.labeling.site import NO_SUCH_PAGE, AdminSession, OwnForm, Session, Site, SiteHere
from p3o.labeling.statistics import (
    Share,
    first_side_share,
    gold_share,
    krippendorff_alpha,
    per_hour,
    raw_agreement,
    summarise,
    units_of,
)

pages = APIRouter(prefix="/admin", default_response_class=HTMLResponse)


@pages.get("")
def overview(site: SiteHere, session: AdminSession) -> Response:
    """Everything at a glance."""
    return _overview(site, session)


@pages.get("/export/{name}", response_class=PlainTextResponse)
def export(site: SiteHere, session: AdminSession, name: str) -> Response:  # noqa: ARG001
    """The labels as JSON Lines, preferences.jsonl or ties.jsonl, and what annotators were told, instructions.jsonl."""
    if name not in ("preferences.jsonl", "ties.jsonl", "instructions.jsonl"):
        raise HTTPException(404, NO_SUCH_PAGE)
    rows: list[dict[str, Any]] = getattr(export_labels(site.store), name.removesuffix(".jsonl"))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(lines, media_type="application/x-ndjson; charset=utf-8", headers=headers)


@pages.post("/annotators", dependencies=[OwnForm])
def change_annotator(
    request: Request,
    site: SiteHere,
    session: AdminSession,
    name: Annotated[str, Form(max_length=200)],
    what: Annotated[Literal["add", "renew", "deactivate"], Form()],
) -> Response:
    """Add an annotator, give one a new link, or let one in no more."""
    if name.strip() == session.annotator.name:
        return _overview(site, session, problem="To change your own link, run: p3o label --new-links", status=422)
    link = ""
    try:
        if what == "add":
            link = site.store.add_annotator(name)
        elif what == "renew":
            link = site.store.renew_token(name)
        else:
            site.store.deactivate(name)
    except P3OError as error:
        return _overview(site, session, problem=str(error), status=422)
    return _overview(site, session, link=f"{request.base_url}enter/{link}" if link else "", link_of=name.strip())


def _overview(
    site: Site, session: Session, *, problem: str = "", link: str = "", link_of: str = "", status: int = 200
) -> Response:
    found = status_of(site.store, datetime.now(UTC))
    return site.page(
        "admin.html",
        status=status,
        session=session,
        problem=problem,
        link=link,
        link_of=link_of,
        facts=_facts(found, site.store.settings().overlap),
        people=_people(found),
        others=_others(found),
        hours=_hours(found),
        instructions=newest_instructions(site.store),
    )


def _facts(status: Status, overlap: int) -> list[tuple[str, str, str]]:
    """Name, value and explanation of each number on top of the page."""
    people = [label for label in status.by_people if label.gold is None]
    units = units_of([label for label in status.labels if label.gold is None])
    answered_twice = sum(len(unit) > 1 for unit in units)
    lately = [label for label in status.by_people if label.at > status.read_at - timedelta(hours=1)]
    bias = first_side_share(status.by_people)
    return [
        ("pairs finished", f"{status.finished} of {status.items}", f"with {overlap} label{'s' * (overlap > 1)} each"),
        ("labels by people", str(len(people)), f"{status.undone} withdrawn"),
        ("in the last hour", str(len(lately)), "labels by people"),
        ("raw agreement", _percent(raw_agreement(units)), f"on {answered_twice} pairs with more than one answer"),
        ("Krippendorff's α", _number(krippendorff_alpha(units)), "nominal; 1 is full agreement, 0 is chance"),
        ("first side preferred", _percent(bias.rate), _interval(bias)),
        ("gold answers correct", _percent(gold_share(status.by_people).rate), f"{status.gold} gold pairs"),
    ]


def _people(status: Status) -> list[dict[str, Any]]:
    rows = []
    for annotator in status.annotators:
        if annotator.role != "annotator":
            continue
        line = summarise(annotator.name, [label for label in status.by_people if label.annotator == annotator.name])
        rows.append(
            {
                "name": annotator.name,
                "active": annotator.active,
                "labels": line.labels,
                "choices": {choice: line.choices.get(choice, 0) for choice in ("tie", "bad", "skip")},
                "seconds": "–" if line.median_seconds is None else f"{line.median_seconds:.0f} s",
                "first": _percent(line.first_side.rate),
                "first_interval": _interval(line.first_side),
                "gold": f"{line.gold.k} of {line.gold.n}" if line.gold.n else "–",
                "last": "–" if line.last is None else f"{line.last:%Y-%m-%d %H:%M}",
            }
        )
    return rows


def _others(status: Status) -> list[tuple[str, str, int]]:
    """Name, role and number of labels of judges and imports, also of imports under the name of somebody who logs in now."""
    counts = Counter((label.annotator, label.role) for label in status.labels)
    return [
        (annotator.name, role, counts[annotator.name, role])
        for annotator in status.annotators
        for role in ("judge", "imported")
        if annotator.role == role or counts[annotator.name, role]
    ]


def _hours(status: Status) -> Sequence[dict[str, Any]]:
    """The bars of the chart: labels by people in each of the last 24 hours."""
    counts = per_hour(status.by_people, status.read_at)
    most = max(counts)
    return [
        {"ago": len(counts) - 1 - index, "count": count, "height": round(60 * count / most, 1) if most else 0.0}
        for index, count in enumerate(counts)
    ]


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.0f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def _interval(share: Share) -> str:
    interval = share.interval
    return "no preferences yet" if interval is None else f"95 %: {_percent(interval[0])} to {_percent(interval[1])}"
