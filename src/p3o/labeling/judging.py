"""Labels by a judge: a model that compares instead of people, into the same store."""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

from sqlmodel import col, select

from p3o.errors import P3OError, shorten
from p3o.labeling.annotators import add_annotator
from p3o.labeling.answers import Answer
from p3o.labeling.pairs import Messages
from p3o.labeling.store import Store, record_label
from p3o.labeling.tables import Annotator, Assignment, Choice, Item


@runtime_checkable
class Verdict(Protocol):
    """What a judge says of one pair."""

    @property
    def preference(self) -> float | None:
        """In [−1, 1]: 1 for response a, −1 for response b, 0 for neither; None if there is no valid answer."""


@runtime_checkable
class Judge(Protocol):
    """Whatever compares responses; it asks in both orders by itself."""

    def compare(
        self, prompts: Sequence[str], responses_a: Sequence[str], responses_b: Sequence[str]
    ) -> Sequence[Verdict]:
        """One verdict per pair, in order."""


def label_with_judge(
    store: Store,
    judge: Judge,
    *,
    name: str,
    batch_size: int = 16,
    tie_margin: float = 0.0,
    advance: Callable[[int], None] | None = None,
) -> int:
    """Have a judge label every pair that it has not labelled yet; returns how many labels came of it.

    Pairs to which it gives no valid answer stay unlabelled, and are asked again the next time.

    Each answer is committed as the batch it comes in returns: a run that stops halfway goes on where it was. Gold pairs are
    judged too, so that the admin page shows how often the judge is right on them.

    Args:
        name: of the judge, among the annotators.
        batch_size: pairs per call.
        tie_margin: a preference of at most this size is a tie.
        advance: called with the number of pairs just labelled.

    Raises:
        P3OError: if someone who is no judge has this name, or a verdict is no number in [−1, 1].
    """
    annotator, waiting = _waiting(store, name)
    labelled = 0
    for start in range(0, len(waiting), batch_size):
        items = waiting[start : start + batch_size]
        verdicts = judge.compare(
            [prompt_text(item.prompt) for item in items],
            [item.response_a for item in items],
            [item.response_b for item in items],
        )
        if len(verdicts) != len(items):
            raise P3OError(f"judge {name}: returned {len(verdicts)} verdicts for {len(items)} pairs; none was saved")
        answers = [_answer(verdict, item, name, tie_margin) for verdict, item in zip(verdicts, items, strict=True)]
        for item, answer in zip(items, answers, strict=True):
            if answer is not None:
                _record(store, annotator, item, answer)
                labelled += 1
        if advance is not None:
            advance(len(items))
    return labelled


def count_waiting(store: Store, name: str) -> int:
    """How many pairs this judge has not labelled yet."""
    return len(_waiting(store, name)[1])


def prompt_text(prompt: str | Messages) -> str:
    """A prompt as one text; of a conversation, each message after the name of its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)


def _waiting(store: Store, name: str) -> tuple[int, list[Item]]:
    with store.database.writing() as session:
        annotator = session.exec(select(Annotator).where(Annotator.name == name)).first()
        if annotator is None:
            annotator = add_annotator(session, name, "judge", token_hash=None)
        if annotator.role != "judge":
            raise P3OError(f"judge {shorten(name)}: an annotator has this name; give the judge another name")
        assert annotator.id is not None
        answered = select(Assignment.item_id).where(Assignment.annotator_id == annotator.id)
        items = session.exec(select(Item).where(col(Item.id).not_in(answered)).order_by(col(Item.id)))
        return annotator.id, list(items)


def _answer(verdict: Verdict, item: Item, name: str, tie_margin: float) -> Answer | None:
    if verdict.preference is None:
        return None
    preference = float(verdict.preference)
    if not (math.isfinite(preference) and abs(preference) <= 1):
        raise P3OError(f"judge {name}: preference {preference} on pair {shorten(item.key)}; it must be in [-1, 1]")
    choice: Choice = "tie" if abs(preference) <= tie_margin else "a" if preference > 0 else "b"
    return Answer(choice, preference=preference)


def _record(store: Store, annotator: int, item: Item, answer: Answer) -> None:
    now = datetime.now(UTC)
    with store.database.writing() as session:
        assert item.id is not None
        held = Assignment(item_id=item.id, annotator_id=annotator, swapped=False, shown_at=now, expires_at=now)
        record_label(session, held, f"judge {item.id}", answer, timed=False)
