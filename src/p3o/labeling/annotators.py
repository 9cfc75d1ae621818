"""Who labels: names, roles and the tokens that let someone in; inside a transaction of the store."""

import hashlib
import secrets
from datetime import UTC, datetime

from sqlmodel import Session, select

from p3o.errors import P3OError, shorten
from p3o.labeling.tables import ADMIN, LOG_IN, Annotator, Role


def new_token() -> str:
    """A token that cannot be guessed: 256 random bits."""
    return secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """What is kept of a token. One round of SHA-256 is enough for 256 random bits: there is no list of likely ones."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def add_annotator(session: Session, name: str, role: Role, *, token_hash: str | None) -> Annotator:
    """Register someone, inside a transaction. Who is known by imported labels alone can be registered as one who logs in.

    Raises:
        P3OError: if the name is empty, too long, taken or the admin's.
    """
    name = name.strip()
    if not name or len(name) > 100 or not name.isprintable():
        raise P3OError(f"annotator {shorten(name)}: give a name of 1 to 100 printable characters")
    if name == ADMIN and role != "admin":
        raise P3OError(f"annotator {ADMIN!r}: this name is reserved for the administrator; choose another name")
    annotator = session.exec(select(Annotator).where(Annotator.name == name)).first()
    if annotator is None:
        annotator = Annotator(name=name, role=role, token_hash=token_hash, created_at=datetime.now(UTC))
    elif annotator.role == "imported" and role in LOG_IN:
        annotator.role, annotator.token_hash, annotator.active = role, token_hash, True
    else:
        raise P3OError(f"annotator {shorten(name)}: an annotator with this name exists already; choose another name")
    session.add(annotator)
    session.flush()
    return annotator


def named(session: Session, name: str) -> Annotator:
    """The annotator of a name, inside a transaction.

    Raises:
        P3OError: if there is none.
    """
    annotator = session.exec(select(Annotator).where(Annotator.name == name)).first()
    if annotator is None:
        raise P3OError(f"annotator {shorten(name)}: there is no annotator with this name")
    return annotator
