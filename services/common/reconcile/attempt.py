"""One run for a key: why it happens, and how it ends if it is not done.

Next: :mod:`services.common.reconcile.queue`, which runs it.
"""

from typing import Literal, TypeAlias

import msgspec
from opentelemetry.context import Context

Source: TypeAlias = Literal["bus", "watch", "resync", "retry", "effect"]
"""What adds a key; ``watch`` also means the guest's events and timers, ``effect`` for a change made by a run."""

FIRST_BACKOFF = 0.1
"""Seconds before the second attempt; doubled for each further one."""


class _Unfinished(Exception):
    """The outcome of a run that is not done.

    :ivar reason: CamelCase, for Events and metrics.
    :ivar message: details for logs and users.
    """

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason
        self.message = message


class Retry(_Unfinished):
    """Raised by a role whose preconditions are not met yet: requeue the key.

    :ivar after: seconds until the next attempt; ``None`` for exponential backoff with jitter, 0.1 s to 30 s, without a
        last attempt. 0.0 means a conflict: another writer changed an object after it was observed.
    """

    def __init__(self, reason: str, message: str = "", *, after: float | None = None) -> None:
        super().__init__(reason, message)
        self.after = after

    @property
    def conflict(self) -> bool:
        """Whether to plan again at once, because of a conflict. Its span is then no error."""
        return self.after == 0.0


class Reject(_Unfinished):
    """Raised by a role that cannot do what is requested. The next add of the key, or the resync, runs it again."""


class Cause(msgspec.Struct, frozen=True):
    """The reason for a run.

    :ivar source: what added the key.
    :ivar context: trace context of the message or request; ``None`` if there is none.
    """

    source: Source
    context: Context | None = None


class Attempt(msgspec.Struct, frozen=True):
    """One run for a key.

    :ivar number: 1 for the first run after a success or a rejection, then counting up.
    :ivar backoff: seconds until the next run if this one ends by a :class:`Retry` without ``after``. Known in advance,
        because the event of a failure carries it.
    :ivar causes: oldest first. Causes of failed attempts are passed again until one succeeds, so a retry has its trace.
    """

    number: int = 1
    causes: tuple[Cause, ...] = ()
    backoff: float = FIRST_BACKOFF
