"""What events add to the ladder: since when, at which attempt, and why a stage is not reached.

Pure. Joining is commutative, associative and idempotent, so events may come in any order, twice or not at all; the
stage itself is never theirs to say. The fold of objects is :mod:`services.common.domain.ladder`.
"""

import datetime

import msgspec

from schemas.events import Event, Failed
from schemas.ladder import Entry, News, Reached, Rung, Trouble
from schemas.stages import Stage, path

MAX_MESSAGE = 1024
MAX_REASON = 64
GENERIC = "WaitingFor"
"""Beginning of the reasons that objects give when they know none; an event's is better."""


def news_of(event: Event, time: str) -> News:
    """What one event tells.

    :param time: of the event (``ce-time``). One that cannot be read makes no stage's time.
    """
    when = normal(time)
    if isinstance(event, Failed):
        reason, message = event.reason[:MAX_REASON], event.message[:MAX_MESSAGE]
        return News(trouble=Trouble(when, event.attempt, event.at, reason, message))
    return News({event.stage: Reached(when, event.attempt)}) if when else News()


def join(one: News, other: News) -> News:
    """Both. A stage was reached when it was first told; of two failures the later one counts."""
    reached = dict(one.reached)
    for stage, found in other.reached.items():
        reached[stage] = min(found, reached.get(stage, found))
    troubles = [trouble for trouble in (one.trouble, other.trouble) if trouble is not None]
    return News(dict(sorted(reached.items())), max(troubles) if troubles else None)


def told(rung: Rung, news: News) -> Rung:
    """A rung as objects have it, with what events told of its operation on its pod."""
    since = news.reached.get(rung.stage)
    trouble = news.trouble if news.trouble is not None and _ahead(rung, news.trouble.at) else None
    requested = normal(rung.requested_at or "") or None
    return msgspec.structs.replace(
        rung,
        # The request's own time stands in the objects.
        since=requested if rung.stage is Stage.REQUESTED and requested else since.time if since else None,
        attempts=trouble.attempt if trouble else since.attempt if since else None,
        last_attempt=(trouble.time or None) if trouble else None,
        reason=trouble.reason if trouble and _unexplained(rung) else rung.reason,
        message=trouble.message if trouble and (_unexplained(rung) or rung.reason == trouble.reason) else rung.message,
    )


def entry(rung: Rung, vmi_uid: str, pod_uid: str, before: Entry | None, heard: News) -> Entry:
    """What the bucket should hold for a NIC.

    :param rung: from objects alone. :param before: what it holds. :param heard: since.
    """
    known = known_of(before, rung, vmi_uid, pod_uid)
    if before is not None and known is None and before.rung.operation == rung.operation:
        # Another pod: what was done to the earlier one says nothing of it, but the request is the same.
        requested = before.news.reached.get(Stage.REQUESTED)
        known = News({Stage.REQUESTED: requested}) if requested else None
    news = join(known or News(), heard)
    return Entry(vmi_uid, pod_uid, told(rung, news), news)


def known_of(found: Entry | None, rung: Rung, vmi_uid: str, pod_uid: str) -> News | None:
    """The news of an entry, where they are of the same operation on the same pod; else ``None``."""
    if found is None or found.rung.operation != rung.operation or found.rung.interface != rung.interface:
        return None
    return found.news if (found.vmi_uid, found.pod_uid) == (vmi_uid, pod_uid) else None


def normal(time: str) -> str:
    """A time in the one form in which text sorts as time does; empty where it cannot be read or names no zone."""
    try:
        found = datetime.datetime.fromisoformat(time)
        if found.tzinfo is None:
            return ""
        text = found.astimezone(datetime.UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        return ""
    return text.replace("+00:00", "Z")


def _ahead(rung: Rung, at: Stage) -> bool:
    """Whether a stage of the rung's operation is still to come."""
    steps = path(rung.kind)
    return rung.waiting_for is not None and at in steps and steps.index(at) > steps.index(rung.stage)


def _unexplained(rung: Rung) -> bool:
    return rung.reason is None or rung.reason.startswith(GENERIC)
